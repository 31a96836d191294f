"""A real S3 server on this machine, models to put into it, and the comparison `torchwick demo` shows."""
