"""The rows of the table, by name: what loads, which file, and where the bytes end up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks import floors, loaders

if TYPE_CHECKING:
    from collections.abc import Callable

BASE = "fill"


@dataclass(frozen=True)
class Row:
    """One way to load. What `load` returns is checked by `benchmarks.check`."""

    load: Callable[[str], object]
    file: str = "model.pt"
    ram_disk: bool = False


ROWS = {
    "drain": Row(floors.drain),
    BASE: Row(floors.fill),
    "torchwick-pt": Row(loaders.load_torchwick),
    "torchwick-safetensors": Row(loaders.load_torchwick, file="model.safetensors"),
    "torchwick-file": Row(loaders.torchwick_file),
    "boto3-read": Row(loaders.boto3_read),
    "boto3-chunks": Row(loaders.boto3_chunks),
    "boto3-managed": Row(loaders.boto3_managed),
    "obstore": Row(loaders.obstore),
    "s3torchconnector": Row(loaders.s3torchconnector),
    "runai-streamer": Row(loaders.runai_streamer, file="model.safetensors"),
    "s5cmd-ram-disk": Row(loaders.s5cmd_ram_disk, ram_disk=True),
}
