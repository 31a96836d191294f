"""Moves ranges into memory. Knows plans and buffers; never formats."""

from torchwick.transfer.engine import Tally, Transfer
from torchwick.transfer.plan import Fill, Part, plan
from torchwick.transfer.ranges import RangeCache
from torchwick.transfer.stream import read_stream

__all__ = ["Fill", "Part", "RangeCache", "Tally", "Transfer", "plan", "read_stream"]
