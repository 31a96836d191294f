"""Checkpoints odd in their archive: other torch versions' layouts, other tools' zips, small damage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch.utils.serialization import config as torch_config

from checkpoints.base import OddCheckpoint, Outcome, save_bytes, written
from checkpoints.zipcraft import Record, saved_records, under, write_zip

Change = Callable[[list[Record]], list[Record]]

_ARCHIVE = "archive"


def _content() -> dict[str, Any]:
    """Several storages of several sizes, one of them shared."""
    base = torch.arange(33.0)
    return {"a": base, "b": base[3:], "c": torch.arange(5), "d": torch.tensor([True]), "text": "weights"}


def _archive(change: Change, root: str = _ARCHIVE, **options: Any) -> bytes:
    return write_zip(under(root, change(saved_records(_content()))), **options)


def _zip(name: str, path: Outcome, change: Change, note: str = "", **options: Any) -> OddCheckpoint:
    return written(f"zip_{name}", partial(_archive, change, **options), path, note=note)


# -- ways to change the records ----------------------------------------------------------------------------


def _as_is(records: list[Record]) -> list[Record]:
    return records


def _each(**fields: Any) -> Change:
    return lambda records: [replace(record, **fields) for record in records]


def _only(prefix: str, **fields: Any) -> Change:
    def change(records: list[Record]) -> list[Record]:
        return [replace(r, **fields) if r.name.startswith(prefix) else r for r in records]

    return change


def _without(*names: str) -> Change:
    return lambda records: [record for record in records if record.name not in names]


def _plus(*extra: Record) -> Change:
    return lambda records: [*records, *extra]


def _first(*extra: Record) -> Change:
    return lambda records: [*extra, *records]


def _essentials(records: list[Record]) -> list[Record]:
    """What torch 1.6 wrote: the pickle, the storages, the version."""
    return [r for r in records if r.name in {"data.pkl", "version"} or r.name.startswith("data/")]


def _pickle_last(records: list[Record]) -> list[Record]:
    return sorted(records, key=lambda record: record.name == "data.pkl")


def _cut_storage(records: list[Record]) -> list[Record]:
    return [replace(r, data=r.data[:-8]) if r.name == "data/0" else r for r in records]


def _long_storage(records: list[Record]) -> list[Record]:
    return [replace(r, data=r.data + b"surplus") if r.name == "data/0" else r for r in records]


def _python2_strings(records: list[Record]) -> list[Record]:
    """The keys as Python 2 pickled its str: SHORT_BINSTRING where Python 3 writes BINUNICODE."""
    return [
        replace(r, data=r.data.replace(b"X\4\0\0\0text", b"U\4text")) if r.name == "data.pkl" else r
        for r in records
    ]


def _upper(name: str) -> Change:
    return _only(name, name=name.upper())


# -- whole archives of their own ---------------------------------------------------------------------------


def _big_endian(with_record: bool = True) -> bytes:
    """A checkpoint from a big-endian machine: every element reversed, and a record that says so."""
    values = {"f": torch.arange(7.0), "h": torch.arange(5).short(), "z": torch.tensor([1 + 2j])}
    widths = {"data/0": 4, "data/1": 2, "data/2": 4}  # a complex number swaps its two parts one by one
    records = [
        replace(r, data=_swapped(r.data, widths[r.name])) if r.name in widths else r
        for r in saved_records(values)
    ]
    told = [replace(r, data=b"big") if r.name == "byteorder" else r for r in records]
    return write_zip(under(_ARCHIVE, told if with_record else _without("byteorder")(records)))


def _swapped(data: bytes, width: int) -> bytes:
    return b"".join(data[at : at + width][::-1] for at in range(0, len(data), width))


def _big_endian_untyped() -> bytes:
    """torch swaps an untyped storage (uint16, float8...) as bytes, that is not at all."""
    records = saved_records({"u": torch.arange(7).to(torch.uint16)})
    return write_zip(under(_ARCHIVE, _only("byteorder", data=b"big")(records)))


def _aligned(alignment: int) -> bytes:
    with torch_config.patch("save.storage_alignment", alignment):  # type: ignore[attr-defined]
        return save_bytes(_content())


def _without_crc() -> bytes:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        return save_bytes(_content())
    finally:
        torch.serialization.set_crc32_options(before)


def _skipped() -> bytes:
    with torch.serialization.skip_data():
        return save_bytes(_content())


def _commented(comment: bytes) -> bytes:
    """A file long enough for torch to search 64 KiB from its end."""
    return write_zip(under(_ARCHIVE, saved_records({"t": torch.arange(40_000.0)})), comment=comment)


def _two_pickles(first: str, second: str) -> Change:
    """Two records named data.pkl: which one torch takes depends on its binary search."""

    def change(records: list[Record]) -> list[Record]:
        others = [r for r in records if r.name != "data.pkl"]
        mine = {"own": next(r for r in records if r.name == "data.pkl")}
        mine["other"] = next(r for r in saved_records({"z": 1}) if r.name == "data.pkl")
        return [mine[first], mine[second], *others]

    return change


def _two_roots() -> bytes:
    return write_zip([*under(_ARCHIVE, saved_records(_content())), Record("other/stray", b"x")])


_DUPLICATE = Record("data/0", torch.arange(100, 133.0).numpy().tobytes())
_EXTRAS = (Record("code/model.py", b"# not run\n"), Record("extra/labels.json", b"[]"), Record("a/b/c", b""))
_EVERYTHING_ZIP64 = _each(zip64=True, descriptor=True)

ZIPS: tuple[OddCheckpoint, ...] = (
    _zip("rewritten", "deferred", _as_is, note="no alignment, no descriptors, no zip64"),
    _zip("torch_1_6", "deferred", _essentials),
    _zip("torch_2_0", "deferred", _without("byteorder", ".format_version", ".storage_alignment")),
    _zip("no_byteorder", "deferred", _without("byteorder")),
    _zip("no_serialization_id", "deferred", _without(".data/serialization_id")),
    _zip("no_format_version", "deferred", _without(".format_version", ".storage_alignment")),
    _zip("format_version_99", "deferred", _only(".format_version", data=b"99")),
    _zip("alignment_lies", "deferred", _only(".storage_alignment", data=b"4096")),
    _zip("alignment_not_a_number", "error", _only(".storage_alignment", data=b"wide")),
    *(_zip(f"version_{text}", "deferred", _only("version", data=text.encode())) for text in ("1", "2", "10")),
    _zip("version_11", "error", _only("version", data=b"11\n")),
    _zip("version_not_a_number", "error", _only("version", data=b"three")),
    _zip("version_empty", "error", _only("version", data=b"")),
    _zip("version_missing", "error", _without("version")),
    _zip("version_in_data", "deferred", _only("version", name=".data/version")),
    *(
        _zip(f"root_{label}", "deferred", _as_is, root=root)
        for label, root in (
            ("a", "a"),
            ("dotted", "my.model.v1"),
            ("spaced", "my model"),
            ("unicode", "modèle☃"),
            ("long", "x" * 200),
            ("data", "data"),
            ("dot", "."),
        )
    ),
    _zip("root_empty", "either", _as_is, root="", note="names begin with a slash"),
    _zip("root_nested", "error", _as_is, root="model/inner"),
    written("zip_no_root", lambda: write_zip(saved_records(_content())), "error"),
    written("zip_two_roots", _two_roots, "error"),
    _zip("pickle_last", "deferred", _pickle_last),
    _zip("reversed", "deferred", lambda records: records[::-1]),
    *(written(f"zip_aligned_{n}", partial(_aligned, n), "deferred") for n in (1, 16, 64, 4096)),
    _zip("aligned_by_hand", "deferred", _only("data/", align=512)),
    _zip("deflated", "spooled", _each(deflate=True)),
    _zip("deflated_storages", "spooled", _only("data/", deflate=True), note="mmap=True reads garbage here"),
    _zip("deflated_pickle", "spooled", _only("data.pkl", deflate=True)),
    _zip("deflated_extra", "either", lambda records: [*records, replace(_EXTRAS[0], deflate=True)]),
    _zip("descriptors", "deferred", _each(descriptor=True)),
    _zip("zip64", "deferred", _each(zip64=True), zip64_end=True),
    _zip("zip64_descriptors", "deferred", _EVERYTHING_ZIP64, zip64_end=True),
    _zip("zip64_end_only", "deferred", _as_is, zip64_end=True),
    _zip("comment", "deferred", _as_is, comment=b"made by hand"),
    written("zip_comment_30k", partial(_commented, b"c" * 30_000), "either"),
    written("zip_comment_64k", partial(_commented, b"c" * 65_535), "either", note="fails in smaller files"),
    _zip("comment_with_end_record", "error", _as_is, comment=b"x" * 60 + b"PK\5\6" + bytes(18)),
    written("zip_tail_garbage", lambda: _archive(_as_is) + b"garbage" * 10, "either"),
    _zip(
        "prefix", "error", _as_is, prefix=b"#!/bin/sh\nexit 0\n", note="torch asks for PK at the very start"
    ),
    _zip("prefix_like_zip", "either", _as_is, prefix=b"PK\3\4" + b"j" * 50),
    written("zip_prefix_uncounted", lambda: b"PK\3\4" + b"j" * 60 + _archive(_as_is), "error"),
    _zip("extra_records", "deferred", _plus(*_EXTRAS)),
    _zip("extra_records_first", "deferred", _first(*_EXTRAS)),
    _zip("constants_record", "torchscript", _plus(Record("constants.pkl", b"x"))),
    _zip("folder_entries", "either", _first(Record("", b""), Record("data/", b""))),
    _zip("duplicate_storage_last", "either", _plus(_DUPLICATE), note="torch's choice is its own"),
    _zip("duplicate_storage_first", "either", lambda records: [records[0], _DUPLICATE, *records[1:]]),
    _zip("duplicate_pickle_own_first", "either", _two_pickles("own", "other")),
    _zip("duplicate_pickle_own_last", "either", _two_pickles("other", "own")),
    _zip("upper_case_pickle", "either", _upper("data.pkl"), note="miniz finds names in any case"),
    _zip("upper_case_storage", "either", _upper("data/0")),
    _zip("unused_storage", "deferred", _plus(Record("data/77", b"z" * 100))),
    _zip("missing_storage", "error", _without("data/1")),
    _zip("missing_pickle", "error", _without("data.pkl")),
    _zip("short_storage", "error", _cut_storage, note="but mmap=True would not notice"),
    _zip("long_storage", "error", _long_storage, note="but mmap=True would not notice"),
    _zip("wrong_crc", "deferred", _each(crc=0x12345678), note="torch checks no checksum"),
    written("zip_no_crc", _without_crc, "deferred"),
    written("zip_skipped_data", _skipped, "deferred", note="records of zeros"),
    _zip("encrypted_flag", "error", _each(flags=1)),
    _zip("utf8_flag", "deferred", _each(flags=0x800)),
    _zip("python2_strings", "either", _python2_strings),
    _zip("byteorder_unknown", "error", _only("byteorder", data=b"middle")),
    written("big_endian", _big_endian, "spooled"),
    written("big_endian_untold", partial(_big_endian, with_record=False), "deferred", note="taken as little"),
    written("big_endian_untyped", _big_endian_untyped, "spooled"),
)
