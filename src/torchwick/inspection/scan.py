"""`scan`: what the pickles of a checkpoint would import, without its tensors and without torch.

Each reader believes in its own first bytes. What one takes for safetensors may be a pickle to another, so
that an object is scanned as everything that ``torch.load`` could take it for.
"""

from __future__ import annotations

import os
import struct
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from torchwick.config import S3Config, TransferConfig
from torchwick.errors import FormatError
from torchwick.formats.sniff import Kind, sniff
from torchwick.formats.torch_zip import LOCAL_BYTES, Archive, Record, header_agrees, read_archive
from torchwick.inspection.listing import Listing, list_damaged, list_globals
from torchwick.inspection.rules import Verdict, judge, judge_in_torchscript
from torchwick.uri import parse

__all__ = ["Finding", "ScanReport", "scan"]

_ORDER: tuple[Verdict, ...] = ("safe", "unknown", "dangerous")
_MOST_PICKLED = 256 << 20  # bytes of pickles in one object; a checkpoint has some hundred thousand
_MOST_PICKLES = 1000  # in one object; a legacy file has five
_MOST_IN_A_ROW = 100_000  # pickles, in a file of nothing else
_MOST_FINDINGS = 20_000
_MOST_NESTED = 3  # archives in archives
_FIRST_LOOK = 256 << 10
_HEAD = 512
_SLACK = 128  # bytes of padding before a record's data that are fetched along with it
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # torch/serialization.py, MAGIC_NUMBER
_LEGACY_PARTS = ("magic number", "protocol version", "system information", "object", "storage keys")
_LONGEST = 1000  # characters of a name that are told

_Judge = Callable[[str], tuple[Verdict, str]]


@dataclass(frozen=True)
class Finding:
    """One thing that a pickle would import, or that is to be known of a file as a whole.

    Attributes:
        name: the global's dotted name, or the name of the format.
        verdict: ``"safe"``, ``"unknown"`` or ``"dangerous"``.
        rule: why, in a few words.
        where: the record of the archive, or the pickle of the file, that it is in.
    """

    name: str
    verdict: Verdict
    rule: str
    where: str


_TOO_MANY = Finding("more findings", "dangerous", f"more than {_MOST_FINDINGS} are not told", "")


@dataclass(frozen=True)
class ScanReport:
    """What `scan` found.

    Attributes:
        uri: the object, as text without secrets.
        format: ``"torch zip"``, ``"torch legacy"``, ``"torch tar"``, ``"TorchScript"``, ``"pt2"``,
            ``"torch package"``, ``"zip"``, ``"safetensors"`` or ``"pickle"``.
        findings: each once, in the order of the file.
        bytes_read: bytes received.
        requests: requests sent.

    Example:
        >>> import dataclasses
        >>> report = ScanReport("s3://models/new.pt", "torch zip", (), 524288, 2)
        >>> bad = Finding("os.system", "dangerous", "runs commands", "data.pkl")
        >>> report.verdict, dataclasses.replace(report, findings=(bad,)).verdict
        ('safe', 'dangerous')
    """

    uri: str
    format: str
    findings: tuple[Finding, ...]
    bytes_read: int
    requests: int

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of all findings; ``"safe"`` where there are none."""
        return max((finding.verdict for finding in self.findings), key=_ORDER.index, default="safe")

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain types, for JSON."""
        return {"verdict": self.verdict, **asdict(self)}


def scan(
    uri: str | os.PathLike[str], *, s3: S3Config | None = None, transfer: TransferConfig | None = None
) -> ScanReport:
    """Tell what the pickles of a checkpoint would import, and judge it, without loading or running any of it.

    The pickles alone are fetched: some hundred kilobytes of a file of any size. Nothing that they name is
    imported, and torch is not either.

    Args:
        uri: an object, as for `torchwick.load`.
        s3: who asks and which S3, as for `torchwick.load`.
        transfer: how to read.

    Returns:
        The report. Its verdict is the worst of its findings': ``"safe"`` is a name that
        ``torch.load(weights_only=True)`` allows, ``"dangerous"`` one that is known to run, open or reach more
        than a checkpoint needs, ``"unknown"`` every other. A pickle that cannot be read to its end is
        dangerous: what comes before the damage still runs.

    Raises:
        URIError: `uri` is no address.
        FormatError: it is neither a checkpoint nor a pickle, or its archive contradicts itself.
        StoreError: it cannot be read.

    Example:
        >>> import pickle, tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "model.pkl")
        ...     _ = path.write_bytes(pickle.dumps([eval, {"epoch": 7}]))
        ...     report = scan(path)
        >>> report.verdict, report.findings[0].name, report.findings[0].rule
        ('dangerous', 'builtins.eval', 'runs code')
    """
    # Imported here, so that importing this costs no import of HTTP and TLS.
    from torchwick.store import open_store
    from torchwick.transfer import RangeCache

    address, config = parse(uri), transfer or TransferConfig()
    cache = RangeCache(open_store(address, s3 or S3Config(), config.timeout), address, config)
    scanner = _Scanner(str(address))
    format = scanner.look(_Piece(cache.read, cache.info.size, ""))
    findings = tuple(scanner.findings)
    return ScanReport(str(address), format, findings, cache.tally.bytes_read, cache.tally.requests)


@dataclass(frozen=True)
class _Piece:
    """Bytes that are looked at by themselves: an object, or a record of an archive.

    Attributes:
        read: returns a half-open range, or what there is of it.
        size: all there is, or None where the server does not say.
        name: of the record; empty for the object.
    """

    read: Callable[[int, int], memoryview]
    size: int | None
    name: str

    def most(self, stop: int) -> int:
        """Return `stop`, or the end."""
        return stop if self.size is None else min(stop, self.size)

    def within(self, name: str) -> str:
        """Return the name of a part."""
        return f"{self.name}/{name}" if self.name else name


class _Scanner:
    """Collects findings of one object."""

    def __init__(self, uri: str) -> None:
        self.findings: dict[Finding, None] = {}
        self._uri = uri
        self._bytes_left = _MOST_PICKLED
        self._pickles_left = _MOST_PICKLES

    def look(self, piece: _Piece, nested: int = 0) -> str:
        """Look into whatever it is, and return the name of its format.

        Raises:
            FormatError: it is nothing that could be told.
        """
        kind: Kind | None = None
        refused: FormatError | None = None
        head = piece.read(0, piece.most(_HEAD))
        try:
            kind = "tar" if _is_tar(head) else sniff(head, self._uri)
        except FormatError as error:
            refused = error
        if kind == "zip":
            return self._zip(piece, nested)
        if kind == "tar":
            self._find("torch tar", "dangerous", "pickles that torch reads without restraint", piece.name)
            return "torch tar"
        listings = self._row(piece, bytes(piece.read(0, piece.most(_FIRST_LOOK))))
        if kind == "safetensors" and not any(listing.names for listing in listings):
            return "safetensors"
        if refused is not None and not _is_pickle(bytes(head), listings):
            raise refused
        return self._pickles(piece, listings)

    def _find(self, name: str, verdict: Verdict, rule: str, where: str) -> None:
        finding = Finding(_shown(name), verdict, rule, _shown(where))
        self.findings[finding if len(self.findings) < _MOST_FINDINGS else _TOO_MANY] = None

    # -- pickles, one behind the other ---------------------------------------------------------------------

    def _pickles(self, piece: _Piece, listings: list[Listing], judged_by: _Judge = judge) -> str:
        legacy = _is_legacy(listings)
        names = _LEGACY_PARTS if legacy else ["pickle", *(f"pickle {n + 1}" for n in range(1, len(listings)))]
        named = [piece.name] if piece.name and len(listings) == 1 else [piece.within(name) for name in names]
        for where, listing in zip(named, listings, strict=False):
            for name in listing.names:
                self._find(name, *judged_by(name), where)
            if not listing.whole:
                rule = "cannot be read to its end; what comes before would run"
                self._find("damaged pickle", "dangerous", rule, where)
        return "torch legacy" if legacy else "pickle"

    def _row(self, piece: _Piece, data: bytes) -> list[Listing]:
        """Return what is in one pickle after the other: five of a legacy file, else as many as there are.

        Args:
            piece: where they are.
            data: its beginning, or all of it.
        """
        at, listings = 0, list[Listing]()
        while len(listings) < _MOST_IN_A_ROW:
            data, listing = self._next(piece, data, at)
            listings.append(listing)
            at = listing.stop
            if at == len(data):
                data = self._more(piece, data)
            complete = _is_legacy(listings) and len(listings) == len(_LEGACY_PARTS)
            if complete or not listing.whole or at == len(data):
                return listings
        return [*listings, Listing((), at, whole=False)]

    def _next(self, piece: _Piece, data: bytes, at: int) -> tuple[bytes, Listing]:
        """Return the pickle at `at`, and the bytes that had to be read for it."""
        while True:
            try:
                return data, list_globals(data, at, piece.size, self._uri)
            except EOFError:
                longer = self._more(piece, data)
            if len(longer) == len(data):  # too much of it, or too little
                return data, list_damaged(data, at)
            data = longer

    def _more(self, piece: _Piece, data: bytes) -> bytes:
        """Return the bytes together with those that follow, as far as they may be read."""
        wanted = min(3 * len(data) + _FIRST_LOOK, self._bytes_left)
        stop = piece.most(len(data) + wanted)
        if stop <= len(data):
            return data
        more = bytes(piece.read(len(data), stop))
        self._bytes_left -= len(more)
        return data + more

    # -- archives ------------------------------------------------------------------------------------------

    def _zip(self, piece: _Piece, nested: int) -> str:
        if piece.size is None:
            hint = "Scan it where its size is known: in S3, or as a file."
            raise FormatError("the server does not say how long the zip archive is", uri=self._uri, hint=hint)
        archive = read_archive(piece.read, piece.size, self._uri)
        format = _format(archive)
        pickles = [record for name, record in archive.records.items() if name.endswith(".pkl")]
        if format == "zip" and not pickles:
            hint = "Is it an .npz, a Keras model, or a zip of a model? Unpack it first."
            raise FormatError("a zip archive without a pickle", uri=self._uri, hint=hint)
        if format in _AS_A_WHOLE:
            self._find(format, *_AS_A_WHOLE[format], piece.name or "archive")
        judged_by = judge_in_torchscript if format == "TorchScript" else judge
        for record in pickles:
            self._record(piece, archive, record, judged_by)
        for name, record in archive.records.items() if format == "pt2" else ():
            if name.endswith((".pt", ".pth")):
                self._nested(piece, archive, record, nested)
        return format

    def _record(self, piece: _Piece, archive: Archive, record: Record, judged_by: _Judge) -> None:
        where = piece.within(record.name)
        self._pickles_left -= 1
        self._bytes_left -= record.size
        if min(self._pickles_left, self._bytes_left) < 0:
            most = f"{_MOST_PICKLES} pickles and {_MOST_PICKLED >> 20} MiB of them"
            self._find("pickle not read", "dangerous", f"more than {most}", where)
            return
        data, unpacked = self._unpack(piece, archive, record)
        if not unpacked:
            self._find("damaged record", "dangerous", "does not unpack to what it claims", where)
        inner = _Piece(lambda start, stop: memoryview(data)[start:stop], len(data), where)
        self._pickles(inner, self._row(inner, data), judged_by)

    def _unpack(self, piece: _Piece, archive: Archive, record: Record) -> tuple[bytes, bool]:
        """Return a record's data, and whether they are what it claims; else they are as they lie there."""
        start = self._start(piece, archive, record)
        packed = bytes(piece.read(start, start + record.packed))
        if record.stored:
            return packed, True
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            data = inflater.decompress(packed, record.size + 1)
        except zlib.error:
            return packed, False
        return data, len(data) == record.size and inflater.eof

    def _start(self, piece: _Piece, archive: Archive, record: Record) -> int:
        """Return where a record's data begin, as its own header has it."""
        about = record.header + LOCAL_BYTES + len(record.name_bytes) + record.packed + _SLACK
        header = piece.read(record.header, min(about, archive.directory))
        start: int = record.header + LOCAL_BYTES + sum(struct.unpack_from("<HH", header, 26))
        if not header_agrees(header, record, start) or start + record.packed > archive.directory:
            hint = "It is corrupt or was cut short: upload it again, whole."
            what = f"record {_shown(record.name)!r} is not where its directory says"
            raise FormatError(f"the zip archive cannot be read: {what}", uri=self._uri, hint=hint)
        return start

    def _nested(self, piece: _Piece, archive: Archive, record: Record, nested: int) -> None:
        """Look into a file in the archive, where it lies."""
        where, reason = piece.within(record.name), ""
        if not record.stored or nested == _MOST_NESTED:
            reason = "compressed, or too deep"
        else:
            start = self._start(piece, archive, record)
            inner = _Piece(lambda a, b: piece.read(start + a, start + b), record.size, where)
            try:
                self.look(inner, nested + 1)
            except FormatError as error:
                reason = error.message
        if reason:
            self._find("file in the archive", "unknown", f"not looked into: {reason}", where)


_AS_A_WHOLE: dict[str, tuple[Verdict, str]] = {
    "TorchScript": ("unknown", "a program, which torch.jit.load runs; it can import no Python"),
    "pt2": ("unknown", "a program, with pickles that torch.export.load reads without restraint"),
    "torch package": ("dangerous", "Python source, which torch.package runs"),
}


def _format(archive: Archive) -> str:
    """Return which of torch's archives it is, by the record that gives it away."""
    marks = {
        "constants.pkl": "TorchScript",
        "archive_format": "pt2",
        "serialized_exported_program.json": "pt2",
        ".data/extern_modules": "torch package",
        "data.pkl": "torch zip",
    }
    return next((format for mark, format in marks.items() if mark in archive.records), "zip")


def _is_legacy(listings: list[Listing]) -> bool:
    return listings[0].value == _LEGACY_MAGIC


def _is_tar(head: memoryview) -> bool:
    """Whether torch would open it as a tar archive: its header holds whatever else the bytes may be."""
    if bytes(head[:4]) == b"PK\x03\x04":  # which torch looks for first
        return False
    try:
        tarfile.TarInfo.frombuf(bytes(head), "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _is_pickle(head: bytes, listings: list[Listing]) -> bool:
    """Whether bytes that look like nothing are a pickle nevertheless."""
    first = listings[0]
    known = head[:1] == b"\x80" and head[1:2] <= b"\x05"
    return known or first.whole or any(judge(name)[0] == "dangerous" for name in first.names)


def _shown(name: str) -> str:
    """Return a name from the file as text that can be printed: no control characters, and not too long."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name[:_LONGEST])
    return text + ("…" if len(name) > _LONGEST else "")
