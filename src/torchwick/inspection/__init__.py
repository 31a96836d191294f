"""Looks at checkpoints where they are: what they hold, whether they are sound, whether they are safe."""

from torchwick.inspection.scan import Finding, ScanReport, scan

__all__ = ["Finding", "ScanReport", "scan"]
