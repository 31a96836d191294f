"""Files of this machine, to S3 as they are: byte for byte, many connections, visible when all is there."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torchwick.config import PutOptions, S3Config, TransferConfig
from torchwick.errors import FormatError, ObjectNotFoundError, StoreError, URIError
from torchwick.formats.dcp import METADATA
from torchwick.formats.sniff import sniff
from torchwick.report import ProgressCallback, SaveReport
from torchwick.saving.destination import Destination
from torchwick.saving.files import Content, Draft
from torchwick.saving.job import Wishes, begin
from torchwick.saving.sink import Sink

__all__ = ["upload"]

_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_SLICE = 16 << 20  # bytes that are read at once: about a part
_HEAD = 512  # bytes that tell the format
_INDEX = ".index.json"
_FORMATS = {"zip": "torch zip", "legacy": "torch legacy", "tar": "torch tar", "safetensors": "safetensors"}


def upload(
    local: str | os.PathLike[str],
    uri: str,
    *,
    overwrite: bool = True,
    options: PutOptions | None = None,
    delete_replaced: bool = False,
    progress: bool | ProgressCallback = False,
    s3: S3Config | None = None,
    transfer: TransferConfig | None = None,
) -> SaveReport:
    """Upload a checkpoint of this machine byte for byte: one file, or all files of a directory.

    Args:
        local: the file, of any format that is loaded; or the directory. Of that, files whose names begin with
            a dot are left out, but for the ``.metadata`` of a distributed checkpoint.
        uri: where to, in S3; one that ends in a slash is a directory. The index of a directory comes last.
        overwrite: replace what is there.
        options: what S3 is told about each object.
        delete_replaced: delete the other files of the model that is replaced.
        progress: True for a bar on standard error, or a function.
        s3: who asks and which S3.
        transfer: how fast and with how much memory.

    Returns:
        What was uploaded.

    Raises:
        URIError: the address is no place in S3.
        FormatError: the file is no model.
        ObjectExistsError: there is something, as for `torchwick.save`.
        StoreError: it cannot be read, or not be uploaded.
    """
    path = Path(local)
    if not uri.startswith("s3://"):
        raise URIError("only to S3 is anything uploaded", uri=uri, hint="Name s3://bucket/key.")
    wishes = Wishes(
        overwrite=overwrite, options=options, delete_replaced=delete_replaced, s3=s3, transfer=transfer
    )
    if path.is_dir():
        job = begin(lambda *_: _draft_directory(path), f"{uri.rstrip('/')}/", wishes)
    else:
        where = f"{uri}{path.name}" if uri.endswith("/") else uri
        job = begin(lambda to, *_: _draft_file(path, to), where, wishes)
    return job.run(iter(()), progress)


def _draft_file(path: Path, to: Destination) -> Draft:
    with _told(path), path.open("rb") as file:
        kind = sniff(memoryview(file.read(_HEAD)), path)
    return Draft(_FORMATS[kind], (_Copy(to.file or path.name, path, _size(path)),), ())


def _draft_directory(path: Path) -> Draft:
    """Draft all files of a directory, those last that say what the others are."""
    with _told(path):
        found = sorted(file.relative_to(path) for file in path.rglob("*") if file.is_file())
    names = [name.as_posix() for name in found if not _is_hidden(name)]
    if not names:
        raise FormatError("the directory is empty", uri=path, hint="Name one with a model in it.")
    names.sort(key=lambda name: (name == METADATA, name.endswith(_INDEX)))
    return Draft("directory", tuple(_Copy(name, path / name, _size(path / name)) for name in names), ())


def _is_hidden(name: Path) -> bool:
    return any(part.startswith(".") for part in name.parts) and name.as_posix() != METADATA


def _size(path: Path) -> int:
    with _told(path):
        return path.stat().st_size


@dataclass(frozen=True)
class _Copy:
    """A file as it is on the disk."""

    name: str
    path: Path
    size: int

    tensors = 0

    def write(self, sink: Sink, contents: Iterator[Content]) -> None:  # noqa: ARG002
        """Write all of it; see `torchwick.saving.files.File`."""
        left = self.size
        with _told(self.path), self.path.open("rb", buffering=0) as file:
            while left:
                part = memoryview(
                    mmap.mmap(-1, min(left, _SLICE), flags=_PRIVATE)
                )  # which the sink may hold on to
                count = file.readinto(part)
                if not count:
                    hint = "Upload it when no one writes it."
                    raise StoreError("the file became shorter while it was read", uri=self.path, hint=hint)
                sink.write(part[:count])
                left -= count


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Raise what the system refuses as an error that says what to do."""
    try:
        yield
    except StoreError:  # which may be the system's, too, by its base
        raise
    except FileNotFoundError as error:
        raise ObjectNotFoundError("there is no such file", uri=path, hint="Check the path.") from error
    except OSError as error:
        hint = "Check its mode, and that nobody writes it."
        raise StoreError(f"it cannot be read: {error.strerror}", uri=path, hint=hint) from error
