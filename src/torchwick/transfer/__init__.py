"""Moves ranges into memory. Knows plans and buffers; never formats."""

from torchwick.transfer.budget import Budget
from torchwick.transfer.checksum import ALGORITHMS, Digest, NoWitness, Sums, Witness
from torchwick.transfer.engine import Transfer
from torchwick.transfer.plan import Fill, Part, plan
from torchwick.transfer.ranges import RangeCache
from torchwick.transfer.retry import TRANSIENT
from torchwick.transfer.stream import read_stream
from torchwick.transfer.tally import Tally

__all__ = [
    "ALGORITHMS",
    "TRANSIENT",
    "Budget",
    "Digest",
    "Fill",
    "NoWitness",
    "Part",
    "RangeCache",
    "Sums",
    "Tally",
    "Transfer",
    "Witness",
    "plan",
    "read_stream",
]
