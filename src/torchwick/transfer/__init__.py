"""Moves ranges into memory, and memory into objects. Knows plans and buffers; never formats."""

from torchwick.transfer.budget import Budget
from torchwick.transfer.ceiling import Ceiling, ClosedError
from torchwick.transfer.checksum import NO_WITNESS, Digest, NoWitness, Sums, Witness, algorithm
from torchwick.transfer.engine import Transfer
from torchwick.transfer.memory import populate
from torchwick.transfer.persist import ask, list_directory, persist
from torchwick.transfer.plan import Fill, Part, choose_part_size, plan
from torchwick.transfer.ranges import RangeCache
from torchwick.transfer.retry import TRANSIENT
from torchwick.transfer.stream import read_stream
from torchwick.transfer.supply import Gated, Listed, Supply
from torchwick.transfer.tally import Tally
from torchwick.transfer.upload import Receipt, Upload
from torchwick.transfer.uploads import Uploads

__all__ = [
    "NO_WITNESS",
    "TRANSIENT",
    "Budget",
    "Ceiling",
    "ClosedError",
    "Digest",
    "Fill",
    "Gated",
    "Listed",
    "NoWitness",
    "Part",
    "RangeCache",
    "Receipt",
    "Sums",
    "Supply",
    "Tally",
    "Transfer",
    "Upload",
    "Uploads",
    "Witness",
    "algorithm",
    "ask",
    "choose_part_size",
    "list_directory",
    "persist",
    "plan",
    "populate",
    "read_stream",
]
