"""What a thread that reads has, whether it reads for a part or races for one: a connection to be aborted."""

from __future__ import annotations

from torchwick.store import Connection
from torchwick.transfer.holder import Holder

__all__ = ["SLICE", "Reader"]

SLICE = 1 << 20
"""Bytes of one readinto: what a broken connection may cost in bytes read twice."""

Reader = Holder[Connection]
