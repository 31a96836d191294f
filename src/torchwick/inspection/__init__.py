"""Looks at checkpoints where they are: what they hold, whether they are sound, whether they are safe."""

from torchwick.inspection.diff import Difference, TensorPair, ValueDifference, diff
from torchwick.inspection.scan import Finding, ScanReport, scan
from torchwick.inspection.verify import NotFinite, Verification, VerifiedObject, verify

__all__ = [
    "Difference",
    "Finding",
    "NotFinite",
    "ScanReport",
    "TensorPair",
    "ValueDifference",
    "Verification",
    "VerifiedObject",
    "diff",
    "scan",
    "verify",
]
