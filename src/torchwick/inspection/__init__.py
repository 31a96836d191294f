"""Looks at checkpoints where they are: what they hold, whether they are sound, whether they are safe."""

from torchwick.inspection.diff import Difference, TensorPair, ValueDifference, diff
from torchwick.inspection.scan import Finding, ScanReport, scan
from torchwick.inspection.summary import Amount, Module, Summary, summarize
from torchwick.inspection.verify import NotFinite, Verification, VerifiedObject, verify

__all__ = [
    "Amount",
    "Difference",
    "Finding",
    "Module",
    "NotFinite",
    "ScanReport",
    "Summary",
    "TensorPair",
    "ValueDifference",
    "Verification",
    "VerifiedObject",
    "diff",
    "scan",
    "summarize",
    "verify",
]
