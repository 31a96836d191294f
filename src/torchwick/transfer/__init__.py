"""Moves ranges into memory. Knows plans and buffers; never formats."""

from torchwick.transfer.budget import Budget
from torchwick.transfer.checksum import Digest, NoWitness, Sums, Witness, algorithm
from torchwick.transfer.engine import Transfer
from torchwick.transfer.plan import Fill, Part, plan
from torchwick.transfer.ranges import RangeCache
from torchwick.transfer.retry import TRANSIENT
from torchwick.transfer.stream import read_stream
from torchwick.transfer.tally import Tally

__all__ = [
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
    "algorithm",
    "plan",
    "read_stream",
]
