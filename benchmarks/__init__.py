"""Benchmark of whole model loads from S3: `python -m benchmarks` from the repository root."""
