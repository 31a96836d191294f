"""Looks at checkpoints where they are: what they hold, whether they are sound, whether they are safe."""

from torchwick.inspection.scan import Finding, ScanReport, scan
from torchwick.inspection.summary import Amount, Module, Summary, summarize

__all__ = ["Amount", "Finding", "Module", "ScanReport", "Summary", "scan", "summarize"]
