"""Files that lie: every size, offset, count and name that a reader might believe, made absurd.

Each is refused, in little time and memory, and the message holds the words given beside it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from checkpoints.assembly import (
    Code,
    call,
    legacy_of,
    name,
    old_storage,
    program,
    push,
    storage,
    tensor,
    zip_of,
    zip_records,
)
from checkpoints.safetensors import entry, framed
from checkpoints.zipcraft import Record, write_zip

EIB = 1 << 60
GB = 10**9


@dataclass(frozen=True)
class Attack:
    """A file to build, and words of the message that refuses it."""

    build: Callable[[], bytes]
    says: str = ""


# -- safetensors -------------------------------------------------------------------------------------------


def _tensors(data: int = 8, **entries: Any) -> bytes:
    return framed(json.dumps(entries).encode(), bytes(data))


def _line(dtype: str = '"F32"', shape: str = "[2]", offsets: str = "[0, 8]", data: int = 8) -> bytes:
    """One tensor whose fields are written as given, valid JSON or not."""
    return framed(
        f'{{"t":{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}}}}}'.encode(), bytes(data)
    )


_DIGITS = "9" * 5000
_DEEP = "[" * 100_000 + "]" * 100_000

_SAFETENSORS: dict[str, Attack] = {
    "length_8_eib": Attack(lambda: struct.pack("<Q", 8 * EIB) + b'{"t":{}}', "the header claims"),
    "length_all_ones": Attack(lambda: b"\xff" * 8 + b'{"t":{}}', "the header claims"),
    "length_100_gb": Attack(lambda: struct.pack("<Q", 100 * GB) + b'{"t":{}}', "the header claims"),
    "length_one_beyond": Attack(lambda: struct.pack("<Q", 9) + b'{"t":{}}', "the header claims"),
    "length_too_short": Attack(lambda: struct.pack("<Q", 3) + b'{"t":{}}', "Unterminated string"),
    "header_never_ends": Attack(lambda: framed(b'{"t":' + b" " * 1_000_000), "Expecting"),
    "header_of_names": Attack(lambda: framed(b'{"' + b"n" * 1_000_000 + b'":7}'), ""),
    "name_not_utf8": Attack(
        lambda: framed(b'{"\xff":{"dtype":"U8","shape":[],"data_offsets":[0,1]}}', b"1"), "can't decode byte"
    ),
    "name_surrogate": Attack(
        lambda: framed(b'{"\\ud800":{"dtype":"U8","shape":[],"data_offsets":[0,1]}}', b"1"),
        "surrogates not allowed",
    ),
    "header_utf16": Attack(lambda: framed("{ }".encode("utf-16-le")), "Expecting"),
    "header_after_text": Attack(lambda: framed(b"{} {}"), "Extra data"),
    "nested_100k": Attack(lambda: framed(b'{"t":' + _DEEP.encode() + b"}"), "recursion"),
    "nested_900": Attack(lambda: _line(shape="[" * 900 + "]" * 900), ""),
    "nested_metadata": Attack(lambda: framed(b'{"__metadata__":{"a":' + _DEEP.encode() + b"}}"), "recursion"),
    "duplicate_field": Attack(
        lambda: framed(b'{"t":{"dtype":"F32","shape":[2],"shape":[2],"data_offsets":[0,8]}}', bytes(8)),
        "a name occurs twice",
    ),
    "duplicate_metadata": Attack(
        lambda: framed(b'{"__metadata__":{"a":"1","a":"2"}}'), "a name occurs twice"
    ),
    "duplicate_name_escaped": Attack(
        lambda: framed(
            b'{"t":{"dtype":"U8","shape":[],"data_offsets":[0,1]},'
            b'"\\u0074":{"dtype":"U8","shape":[],"data_offsets":[1,2]}}',
            b"12",
        ),
        "a name occurs twice",
    ),
    "offset_1e400": Attack(lambda: _line(offsets="[0, 1e400]"), "lacks its dtype, shape or offsets"),
    "offset_float": Attack(lambda: _line(offsets="[0, 8.0]"), "lacks its dtype, shape or offsets"),
    "offset_nan": Attack(lambda: _line(offsets="[0, NaN]"), "is no number"),
    "offset_infinite": Attack(lambda: _line(offsets="[0, Infinity]"), "is no number"),
    "offset_text": Attack(lambda: _line(offsets='["0", "8"]'), "lacks its dtype, shape or offsets"),
    "offset_5000_digits": Attack(
        lambda: _line(offsets=f"[0, {_DIGITS}]"), "counts neither bytes nor elements"
    ),
    "offset_4000_digits": Attack(
        lambda: _line(offsets=f"[0, {_DIGITS[:4000]}]"), "counts neither bytes nor elements"
    ),
    "offset_2_64": Attack(
        lambda: _line(offsets=f"[{2**64}, {2**64 + 8}]"), "counts neither bytes nor elements"
    ),
    "offset_true": Attack(
        lambda: _line('"U8"', "[1]", "[false, true]", 1), "lacks its dtype, shape or offsets"
    ),
    "offset_minus_zero": Attack(lambda: _line(offsets="[-0, 8]"), "counts neither bytes nor elements"),
    "offsets_three": Attack(lambda: _line(offsets="[0, 8, 8]"), "lacks its dtype, shape or offsets"),
    "offsets_none": Attack(lambda: _line(offsets="null"), "lacks its dtype, shape or offsets"),
    "offsets_object": Attack(lambda: _line(offsets='{"0": 0, "1": 8}'), "lacks its dtype, shape or offsets"),
    "shape_true": Attack(lambda: _line(shape="[2, true]"), "which is no shape"),
    "shape_nan": Attack(lambda: _line(shape="[NaN]"), "is no number"),
    "shape_text": Attack(lambda: _line(shape='"2"'), "lacks its dtype, shape or offsets"),
    "shape_null": Attack(lambda: _line(shape="null"), "lacks its dtype, shape or offsets"),
    "shape_nested": Attack(lambda: _line(shape="[[2]]"), "which is no shape"),
    "shape_huge_and_empty": Attack(
        lambda: _line(shape=f"[{2**62}, 4, 0]", offsets="[0, 0]", data=0), "which is no shape"
    ),
    "shape_empty_beyond_64_bits": Attack(
        lambda: _line(shape=f"[0, {2**70}]", offsets="[0, 0]", data=0), "counts neither bytes nor elements"
    ),
    "shape_empty_2_63": Attack(
        lambda: _line(shape=f"[0, {2**63}]", offsets="[0, 0]", data=0), "counts neither bytes nor elements"
    ),
    "shape_product_of_digits": Attack(
        lambda: _line(shape="[" + ",".join([_DIGITS[:4000]] * 2000) + "]", offsets="[0, 8]"),
        "counts neither bytes nor elements",
    ),
    "shape_wraps_to_8_bytes": Attack(
        lambda: _line(shape=f"[{2**63}, 2, {2**62}, 2]"), "counts neither bytes nor elements"
    ),
    "shape_exabyte": Attack(
        lambda: _line('"U8"', f"[{8 * EIB - 1}]", f"[0, {8 * EIB - 1}]"), "the header accounts for"
    ),
    "data_100_gb": Attack(
        lambda: _line('"U8"', f"[{100 * GB}]", f"[0, {100 * GB}]"), "the header accounts for"
    ),
    "dtype_number": Attack(lambda: _line(dtype="32"), "lacks its dtype, shape or offsets"),
    "dtype_null": Attack(lambda: _line(dtype="null"), "lacks its dtype, shape or offsets"),
    "dtype_list": Attack(lambda: _line(dtype='["F32"]'), "lacks its dtype, shape or offsets"),
    "dtype_long": Attack(lambda: _line(dtype=f'"{"F" * 1_000_000}"'), "has the unknown dtype"),
    "f4_odd": Attack(lambda: _line('"F4"', "[3]", "[0, 2]", 2), "bytes."),
    "f4_scalar": Attack(lambda: _line('"F4"', "[]", "[0, 1]", 1), "bytes."),
    "f4_odd_rows": Attack(lambda: _line('"F4"', "[2, 3]", "[0, 3]", 3), "takes them in pairs"),
    "metadata_false": Attack(lambda: framed(b'{"__metadata__":false}'), "no map of texts"),
    "metadata_zero": Attack(lambda: framed(b'{"__metadata__":0}'), "no map of texts"),
    "metadata_list": Attack(lambda: framed(b'{"__metadata__":[]}'), "no map of texts"),
    "metadata_text": Attack(lambda: framed(b'{"__metadata__":""}'), "no map of texts"),
    "metadata_nested": Attack(lambda: framed(b'{"__metadata__":{"a":{"b":"c"}}}'), "no map of texts"),
    "metadata_null_value": Attack(lambda: framed(b'{"__metadata__":{"a":null}}'), "no map of texts"),
    "one_byte_shared": Attack(
        lambda: _tensors(a=entry("U8", [8], 0, 8), b=entry("U8", [8], 0, 8)), "was due"
    ),
    "empty_tensor_outside": Attack(
        lambda: _tensors(a=entry("U8", [8], 0, 8), b=entry("U8", [0], 99, 99)), "was due"
    ),
    "empty_tensor_inside": Attack(
        lambda: _tensors(a=entry("U8", [8], 0, 8), b=entry("U8", [0], 4, 4)), "was due"
    ),
}

# -- the zip's directory -----------------------------------------------------------------------------------

_ZIP_PICKLE = program([tensor(storage())])


def _good() -> bytearray:
    return bytearray(zip_of(_ZIP_PICKLE))


def _end(where: int, layout: str, value: int) -> bytes:
    """A field of the end record, overwritten."""
    data = _good()
    struct.pack_into(layout, data, data.rindex(b"PK\5\6") + where, value)
    return bytes(data)


def _central(of: str, where: int, layout: str, value: int) -> bytes:
    """A field of one record's entry in the directory, overwritten."""
    data = _good()
    struct.pack_into(layout, data, data.rindex(f"archive/{of}".encode()) - 46 + where, value)
    return bytes(data)


def _local(of: str, where: int, layout: str, value: int) -> bytes:
    """A field of one record's own header, overwritten."""
    data = _good()
    struct.pack_into(layout, data, data.index(f"archive/{of}".encode()) - 30 + where, value)
    return bytes(data)


def _zip64(where: int, layout: str, value: int, *, saturate: bool = True) -> bytes:
    """A zip64 archive with a field of its zip64 records overwritten, counted from the end record."""
    data = bytearray(write_zip(zip_records(_ZIP_PICKLE), zip64_end=True))
    end = data.rindex(b"PK\5\6")
    struct.pack_into(layout, data, end + where, value)
    if saturate:
        struct.pack_into("<HII", data, end + 10, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
    return bytes(data)


def _zip64_field(sizes: tuple[int, ...], claimed: int | None = None) -> bytes:
    """The directory entry of data/0 says "see the zip64 field", and that says `sizes`."""
    body = struct.pack(f"<{len(sizes)}Q", *sizes)
    extra = struct.pack("<HH", 1, len(body) if claimed is None else claimed) + body
    data = _good()
    at = data.rindex(b"archive/data/0") - 46
    struct.pack_into("<II", data, at + 20, 0xFFFFFFFF, 0xFFFFFFFF)
    struct.pack_into("<H", data, at + 30, len(extra))
    name_end = at + 46 + len(b"archive/data/0")
    data[name_end:name_end] = extra
    end = data.rindex(b"PK\5\6")
    (length,) = struct.unpack_from("<I", data, end + 12)
    struct.pack_into("<I", data, end + 12, length + len(extra))
    return bytes(data)


def _two_directories() -> bytes:
    """The end record names one directory, the zip64 record another: readers differ in which they believe."""
    mine = zip_records(program([1, 2, 3]))
    data = bytearray(write_zip(zip_records(_ZIP_PICKLE)))
    end = data.rindex(b"PK\5\6")
    count, length, directory = struct.unpack_from("<HII", data, end + 10)
    body = write_zip(mine, prefix=bytes(data[:end]))
    other_end = body.rindex(b"PK\5\6")
    other = struct.unpack_from("<HII", body, other_end + 10)
    end64 = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, other[0], other[0], other[1], other[2])
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, other_end, 1)
    last = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, count, count, length, directory, 0)
    return body[:other_end] + end64 + locator + last


def _bomb(of: str, claimed: int | None = None) -> bytes:
    """A megabyte and more of zeros, compressed a thousandfold, under one record's name."""
    data_pkl = program([tensor(storage(1 << 20))])
    records = [
        Record(r.name, bytes(4 << 20), deflate=True) if r.name.endswith(of) else r
        for r in zip_records(data_pkl, s0=b"")
    ]
    data = bytearray(write_zip(records))
    if claimed is not None:
        at = data.rindex(f"archive/{of}".encode())
        struct.pack_into("<I", data, at - 46 + 24, claimed)
        struct.pack_into("<I", data, data.index(f"archive/{of}".encode()) - 30 + 22, claimed)
    return bytes(data)


def _overlapping(count: int = 3) -> bytes:
    """Several entries of the directory share one record's bytes: a small file that unfolds to a large one."""
    tensors = [tensor(storage(6, str(key))) for key in range(count)]
    held = {f"s{key}": bytes(24) for key in range(count)}
    data = bytearray(write_zip(zip_records(program(tensors), **held)))
    (first,) = struct.unpack_from("<I", data, data.rindex(b"archive/data/0") - 4)
    for key in range(1, count):
        struct.pack_into("<I", data, data.rindex(f"archive/data/{key}".encode()) - 4, first)
    return bytes(data)


def _swallowing() -> bytes:
    """The first storage is said to reach over the records behind it."""
    data = bytearray(write_zip(zip_records(program([tensor(storage(12))]))))
    at = data.rindex(b"archive/data/0") - 46
    struct.pack_into("<II", data, at + 20, 48, 48)
    return bytes(data)


def _unpacked_from_nothing() -> bytes:
    """A compressed storage of no bytes: torch makes its memory, and unpacks nothing into it."""
    data = bytearray(_central("data/0", 10, "<H", 8))
    struct.pack_into("<I", data, data.rindex(b"archive/data/0") - 46 + 20, 0)
    return bytes(data)


def _deflated_and_shifted() -> bytes:
    """The data of a compressed storage begin where its header says, which is in the middle of its name."""
    records = [replace(r, deflate=True) for r in zip_records(_ZIP_PICKLE)]
    data = bytearray(write_zip(records))
    struct.pack_into("<H", data, data.index(b"archive/data/0") - 4, 0)
    return bytes(data)


def _in_two_cases() -> bytes:
    """Record names are compared without regard to case, so that keys by the thousand can share a record."""
    return zip_of(program([tensor(storage(6, "a")), tensor(storage(6, "A"))]), sa=bytes(24))


def _deflated(data_pkl: bytes) -> bytes:
    return write_zip([replace(r, deflate=r.name.endswith(".pkl")) for r in zip_records(data_pkl)])


_ZIPS: dict[str, Attack] = {
    "end_count_65534": Attack(partial(_end, 10, "<H", 0xFFFE), "its directory claims"),
    "end_count_wide": Attack(partial(_end, 10, "<H", 0xFFFF), "its directory claims"),
    "end_count_less": Attack(partial(_end, 10, "<H", 2), "of which there is no record"),
    "end_count_zero": Attack(partial(_end, 10, "<H", 0), "without the data.pkl"),
    "end_length_4_gb": Attack(partial(_end, 12, "<I", 0xFFFFFFFE), "its directory claims"),
    "end_length_short": Attack(partial(_end, 12, "<I", 50), "its directory claims"),
    "end_directory_beyond": Attack(partial(_end, 16, "<I", 0xFFFFFFFE), "its directory claims"),
    "end_directory_zero": Attack(partial(_end, 16, "<I", 0), "is damaged"),
    "end64_locator_beyond": Attack(partial(_zip64, -12, "<Q", 8 * EIB), "is said to be at byte"),
    "end64_locator_at_itself": Attack(partial(_zip64, -12, "<Q", 0), "no zip64 record"),
    "end64_count": Attack(partial(_zip64, -20 - 56 + 32, "<Q", 2**64 - 1), "its directory claims"),
    "end64_length": Attack(partial(_zip64, -20 - 56 + 40, "<Q", 2**64 - 1), "its directory claims"),
    "end64_length_8_eib": Attack(partial(_zip64, -20 - 56 + 40, "<Q", 8 * EIB - 1), "its directory claims"),
    "end64_directory": Attack(partial(_zip64, -20 - 56 + 48, "<Q", 2**64 - 8), "its directory claims"),
    "end64_directory_unsaturated": Attack(
        partial(_zip64, -20 - 56 + 48, "<Q", 2**63, saturate=False), "its directory claims"
    ),
    "end64_wrong_signature": Attack(partial(_zip64, -20 - 56, "<I", 0), "no zip64 record"),
    "two_directories": Attack(_two_directories, "different directories"),
    "entry_size_4_gb": Attack(partial(_central, "data/0", 24, "<I", 0xFFFFFFFE), "bytes, unpacked from"),
    "entry_packed_4_gb": Attack(partial(_central, "data/0", 20, "<I", 0xFFFFFFFE), "where they end"),
    "entry_sizes_wide": Attack(partial(_central, "data/0", 20, "<Q", 2**64 - 1), "where they end"),
    "entry_pickle_size": Attack(
        partial(_central, "data.pkl", 20, "<Q", (10**9 << 32) | 10**9), "where they end"
    ),
    "entry_name_64k": Attack(partial(_central, "data/0", 28, "<H", 0xFFFF), "reaches beyond it"),
    "entry_extra_64k": Attack(partial(_central, "version", 30, "<H", 0xFFFF), "reaches beyond it"),
    "entry_comment_64k": Attack(partial(_central, "version", 32, "<H", 0xFFFF), "reaches beyond it"),
    "entry_folder_with_bytes": Attack(partial(_central, "data/0", 38, "<I", 0xFF), "said to be a folder"),
    "entry_folder_by_name": Attack(
        lambda: write_zip(zip_records(program([tensor(storage(6, "0/"))]), **{"s0/": bytes(24)})),
        "said to be a folder",
    ),
    "entry_unpacked_from_nothing": Attack(_unpacked_from_nothing, "unpacked from 0"),
    "deflated_storage_damaged": Attack(_deflated_and_shifted, "does not unpack"),
    "entry_packed_less": Attack(partial(_central, "data/0", 20, "<I", 8), "unpacked from 8"),
    "entry_header_beyond": Attack(partial(_central, "data/0", 42, "<I", 0x7FFFFFFF), "where they end"),
    "entry_header_wide": Attack(partial(_central, "data/0", 42, "<I", 0xFFFFFFFF), "where they end"),
    "entry_header_of_another": Attack(partial(_central, "data/0", 42, "<I", 0), "where they end"),
    "entry_method_unknown": Attack(partial(_central, "data/0", 10, "<H", 97), "does not unpack"),
    "entry_size_zero": Attack(partial(_central, "data/0", 20, "<Q", 0), "is said to have"),
    "zip64_field_100_gb": Attack(partial(_zip64_field, (100 * GB, 100 * GB)), "where they end"),
    "zip64_field_16_eib": Attack(partial(_zip64_field, (2**64 - 1, 2**64 - 1)), "where they end"),
    "zip64_field_cut": Attack(partial(_zip64_field, (24,)), "is too short"),
    "zip64_field_missing": Attack(partial(_central, "data/0", 20, "<I", 0xFFFFFFFF), "where they end"),
    "zip64_field_longer_than_entry": Attack(partial(_zip64_field, (24, 24), 60_000), "is too short"),
    "local_name_64k": Attack(partial(_local, "data/0", 26, "<H", 0xFFFF), "header or archive is corrupted"),
    "local_extra_64k": Attack(partial(_local, "data/0", 28, "<H", 0xFFFF), "header or archive is corrupted"),
    "local_signature": Attack(partial(_local, "data/0", 0, "<I", 0), "header or archive is corrupted"),
    "overlapping_storages": Attack(_overlapping, "where they end"),
    "storage_swallows_records": Attack(_swallowing, "where they end"),
    "bomb_pickle_claims_100_gb": Attack(partial(_bomb, "data.pkl", 0xFFFFFFF0), "bytes, unpacked from"),
    "bomb_storage_claims_4_gb": Attack(partial(_bomb, "data/0", 0xFFFFFFF0), "bytes, unpacked from"),
    "storage_keys_in_two_cases": Attack(_in_two_cases, "one record for two storages"),
    "deflated_pickle_takes_2_gb": Attack(
        lambda: _deflated(program(call(name("builtins", "bytearray"), 2 * GB - 1))),
        "by its size alone",
    ),
    "deflated_pickle_memo": Attack(lambda: _deflated(b"\x80\x02Nr\xff\xff\xff\xff."), "asks for a memo"),
    "bomb_zeros_for_pickle": Attack(partial(_bomb, "data.pkl"), "there is no instruction"),
}

# -- pickles, in a zip and in the legacy format ------------------------------------------------------------


def _tower(levels: int, step: bytes) -> Code:
    """A value nested `levels` deep."""
    return Code(b")" + step * levels)


def _doubling(levels: int) -> Code:
    """A tuple of two references to a tuple of two references …: 2**levels items in 3 bytes a level."""
    return Code(b"N" + b"2\x86" * levels)


def _doubling_by_memo(levels: int) -> Code:
    return Code(b"N" + b"q\0h\0\x86" * levels)


def _as_key(code: Code) -> Code:
    return Code(b"}" + code.raw + b"Ns")


def _keys_again_and_again() -> Code:
    """A long tuple, hashed anew for each of a million uses."""
    return Code(b"}(" + b"K\1" * 100_000 + b"tq\0Ns" + b"h\0Ns" * 1_000_000)


def _pickles(storage: Callable[..., Code]) -> dict[str, tuple[bytes, str]]:
    return {
        "ends_at_once": (b"\x80\x02", ""),
        "never_stops": (b"\x80\x02" + b"N" * 1000, ""),
        "binunicode_4_gb": (b"\x80\x02X\xff\xff\xff\xffabc.", "it goes on to byte"),
        "binunicode8_8_eib": (
            b"\x80\x04\x8d" + struct.pack("<Q", 8 * EIB - 1) + b"abc.",
            "it goes on to byte",
        ),
        "binunicode8_16_eib": (b"\x80\x04\x8d" + b"\xff" * 8 + b"abc.", "it goes on to byte"),
        "binbytes8_100_gb": (b"\x80\x04\x8e" + struct.pack("<Q", 100 * GB) + b"abc.", "it goes on to byte"),
        "binbytes_2_gb": (b"\x80\x03B" + struct.pack("<I", 2 * GB) + b"abc.", "it goes on to byte"),
        "binstring_negative": (b"\x80\x02T" + struct.pack("<i", -5) + b"abc.", "claims -5 bytes"),
        "bytearray8_100_gb": (b"\x80\x05\x96" + struct.pack("<Q", 100 * GB) + b"abc.", "it goes on to byte"),
        "bytearray8_10_gb": (b"\x80\x05\x96" + struct.pack("<Q", 10 * GB) + b"abc.", "it goes on to byte"),
        "long4_2_gb": (b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"abc.", "it goes on to byte"),
        "long4_negative": (b"\x80\x02\x8b" + struct.pack("<i", -5) + b"abc.", "claims -5 bytes"),
        "frame_8_eib": (
            b"\x80\x04\x95" + struct.pack("<Q", 8 * EIB) + b"N.",
            "builds what no pickle can build",
        ),
        "text_int_5000_digits": (b"\x80\x02I" + b"9" * 5000 + b"\n.", "builds what no pickle can build"),
        "text_long_5000_digits": (b"\x80\x02L" + b"9" * 5000 + b"L\n.", "builds what no pickle can build"),
        "unknown_instruction": (b"\x80\x02\xfe.", "there is no instruction"),
        "protocol_255": (b"\x80\xffN.", "builds what no pickle can build"),
        "memo_index_4_g": (b"\x80\x02Nr\xff\xff\xff\xff.", "asks for a memo of"),
        "memo_index_300_m": (b"\x80\x02Nr\0\0\0\x12.", "asks for a memo of"),
        "memo_index_text": (b"\x80\x02Np4000000000\n.", "asks for a memo of"),
        "memo_index_negative": (b"\x80\x02Np-1\n.", "an index into its memo is"),
        "memo_missing": (b"\x80\x02h\x07.", ""),
        "stack_underflow": (b"\x80\x020.", "finds nothing to work on"),
        "stack_underflow_tuple": (b"\x80\x02\x87.", "finds nothing to work on"),
        "mark_missing": (b"\x80\x02Nt.", "misses the mark"),
        "only_marks": (b"\x80\x02" + b"(" * 100_000 + b".", "finds nothing to work on"),
        "setitems_odd": (b"\x80\x02}(K\1u.", "builds what no pickle can build"),
        "build_on_none": (b"\x80\x02NNb.", ""),
        "tuples_doubling_as_key": (program(_as_key(_doubling(60))), "unfold to more than"),
        "tuples_doubling_by_memo_as_key": (program(_as_key(_doubling_by_memo(60))), "unfold to more than"),
        "tuples_doubling_in_persistent_id": (program(Code(_doubling(60).raw + b"Q")), "unfold to more than"),
        "tuples_nested_1m_as_key": (program(_as_key(_tower(1_000_000, b"\x85"))), "tuples lie in tuples"),
        "tuples_nested_1m_in_set": (
            program(Code(b"(" + _tower(1_000_000, b"\x85").raw + b"\x91"), protocol=4),
            "tuples lie in tuples",
        ),
        "tuples_doubling_in_set": (
            program(call(name("builtins", "set"), Code(b"](" + _doubling(60).raw + b"e"))),
            "unfold to more than",
        ),
        "long_tuple_hashed_1m_times": (program(_keys_again_and_again()), "unfold to more than"),
        "bytearray_of_8_eib": (
            program(call(name("__builtin__", "bytearray"), 8 * EIB - 1)),
            "by its size alone",
        ),
        "bytearray_of_100_gb": (
            program(call(name("__builtin__", "bytearray"), 100 * GB)),
            "by its size alone",
        ),
        "bytearray_of_2_gb": (
            program(call(name("__builtin__", "bytearray"), 2 * GB - 1)),
            "by its size alone",
        ),
        "bytearray_by_another_call": (
            program(
                call(
                    name("torch._tensor", "_rebuild_from_type_v2"),
                    name("builtins", "bytearray"),
                    None,
                    (GB,),
                    None,
                )
            ),
            "by its size alone",
        ),
        "bytearray_by_a_list": (
            program(Code(name("builtins", "bytearray").raw + push([GB]) + b"R")),
            "builds what no pickle can build",
        ),
        "text_grown_by_encoding": (
            program(call(name("_codecs", "encode"), call(name("_codecs", "encode"), "a", "hex"), "hex")),
            "encodes a text as",
        ),
        "tensor_of_a_size": (
            program(call(name("torch", "Tensor"), call(name("torch", "Size"), (25 * GB,)))),
            "by its size alone",
        ),
        "storage_of_a_number_too_wide": (program(call(name("torch.storage", "UntypedStorage"), [2**63])), ""),
        "quantized_by_a_list": (
            program(
                call(
                    name("torch._utils", "_rebuild_qtensor"),
                    storage(kind="QInt8Storage"),
                    0,
                    [25 * GB],
                    [1],
                    (),
                    False,
                    (),
                )
            ),
            "outside storage",
        ),
        "globals_20k": (program(*(name("m", str(n)) for n in range(20_000))), "names more than"),
        "extension": (b"\x80\x02\x82\x01.", "there is no instruction"),
        "tensor_of_100_gb": (program(call(name("torch", "Tensor"), 25 * GB)), "by its size alone"),
        "storage_of_100_gb_made": (
            program(call(name("torch.storage", "UntypedStorage"), 100 * GB)),
            "by its size alone",
        ),
        "storage_numel_8_eib": (program([tensor(storage(2 * EIB - 1))]), ""),
        "storage_numel_beyond_64_bits": (program([tensor(storage(2**70))]), "describes a storage otherwise"),
        "storage_numel_100_gb": (program([tensor(storage(25 * GB))]), ""),
        "storage_numel_negative": (program([tensor(storage(-6))]), "is said to have"),
        "storage_numel_text": (program([tensor(storage("6"))]), "describes a storage otherwise"),
        "storage_numel_none": (program([tensor(storage(None))]), "describes a storage otherwise"),
        "storage_larger_than_record": (program([tensor(storage(7))]), ""),
        "storage_not_there": (program([tensor(storage(6, "1"))]), ""),
        "storage_key_number": (program([tensor(storage(6, 0))]), "describes a storage otherwise"),
        "storage_key_climbs": (program([tensor(storage(6, "../data/0"))]), ""),
        "storage_key_nul": (program([tensor(storage(6, "0\0x"))]), ""),
        "storage_key_tuple": (program([tensor(storage(6, (1, 2)))]), "describes a storage otherwise"),
        "storage_location_number": (
            program([tensor(storage(6, "0", "FloatStorage", 7))]),
            "describes a storage otherwise",
        ),
        "storage_kind_unknown": (
            program([tensor(storage(6, "0", "NoSuchStorage"))]),
            "refuses what its pickle would import",
        ),
        "persistent_id_list": (program(Code(push(["storage"]) + b"Q")), "describes a storage otherwise"),
        "persistent_id_short": (program(Code(push(("storage",)) + b"Q")), "describes a storage otherwise"),
        "persistent_id_text": (program(Code(b"Pstorage\n")), ""),
        "view_beyond_storage": (program([tensor(storage(), 0, (7,), (1,))]), "outside storage"),
        "view_offset_beyond": (program([tensor(storage(), 6, (1,), (1,))]), "outside storage"),
        "view_offset_negative": (program([tensor(storage(), -1, (2,), (1,))]), "outside storage"),
        "view_offset_8_eib": (program([tensor(storage(), 2 * EIB, (1,), (1,))]), "outside storage"),
        "view_stride_beyond": (program([tensor(storage(), 0, (2,), (6,))]), "outside storage"),
        "view_stride_negative": (program([tensor(storage(), 5, (2,), (-1,))]), "outside storage"),
        "view_stride_overflows": (program([tensor(storage(), 0, (2, 2), (2**62, 2**62))]), "outside storage"),
        "view_size_negative": (program([tensor(storage(), 0, (-1,), (1,))]), "outside storage"),
        "view_size_100_gb": (program([tensor(storage(), 0, (25 * GB,), (1,))]), "outside storage"),
        "view_size_8_eib": (program([tensor(storage(), 0, (2**62,), (1,))]), "outside storage"),
        "view_size_beyond_64_bits": (program([tensor(storage(), 0, (2**64,), (1,))]), "outside storage"),
        "view_without_strides": (
            program([tensor(storage(), 0, (3, 2**31 - 1), ())]),
            "outside storage",
        ),
        "view_rank_mismatch": (program([tensor(storage(), 0, (2, 3), (1,))]), "outside storage"),
        "view_grows_then_another": (
            program([tensor(storage(), 0, (600,), (1,)), tensor(storage(), 0, (6,), (1,))]),
            "outside storage",
        ),
    }


# -- the legacy format alone -------------------------------------------------------------------------------

_OLD_PICKLE = program([tensor(old_storage())])
_SIX = struct.pack("<q", 6) + bytes(24)

_LEGACY: dict[str, Attack] = {
    "count_8_eib": Attack(
        lambda: legacy_of(_OLD_PICKLE, data=struct.pack("<q", 8 * EIB - 1) + bytes(24)), "wrong byte size"
    ),
    "count_negative": Attack(
        lambda: legacy_of(_OLD_PICKLE, data=struct.pack("<q", -1) + bytes(24)), "wrong byte size"
    ),
    "count_one_less": Attack(
        lambda: legacy_of(_OLD_PICKLE, data=struct.pack("<q", 5) + bytes(24)), "wrong byte size"
    ),
    "storage_100_gb": Attack(
        lambda: legacy_of(program([tensor(old_storage(25 * GB))])), "its storages end at byte"
    ),
    "storage_100_gb_unlisted": Attack(
        lambda: legacy_of(program([tensor(old_storage()), tensor(old_storage(25 * GB, "1"))])),
        "is only in one of",
    ),
    "storage_unlisted": Attack(
        lambda: legacy_of(program([tensor(old_storage()), tensor(old_storage(6, "1"))])),
        "is only in one of",
    ),
    "storage_negative_hides_another": Attack(
        lambda: legacy_of(
            program([tensor(old_storage(6, "0")), tensor(old_storage(-6, "1"))]), ("0", "1"), _SIX + bytes(8)
        ),
        "is said to have",
    ),
    "key_twice": Attack(lambda: legacy_of(_OLD_PICKLE, ("0", "0"), _SIX * 2), "names one twice"),
    "keys_not_a_list": Attack(lambda: legacy_of(_OLD_PICKLE, {"0": 1}), "no list of its storages"),
    "key_a_list": Attack(lambda: legacy_of(_OLD_PICKLE, (["0"],)), "no list of its storages"),
    "key_a_number": Attack(lambda: legacy_of(_OLD_PICKLE, (0,)), "no list of its storages"),
    "view_of_storage_beyond": Attack(
        lambda: legacy_of(program([tensor(old_storage(6, "0", view=("1", 4, 100)))])),
        "",
    ),
    "view_of_storage_negative": Attack(
        lambda: legacy_of(program([tensor(old_storage(6, "0", view=("1", -4, 2)))])),
        "",
    ),
    "magic_only_then_text": Attack(
        lambda: legacy_of(b"\x80\x02X\xff\xff\xff\xff" + b"x" * 300_000), "it goes on to byte"
    ),
}

HOSTILE: dict[str, Attack] = {
    **{f"safetensors_{label}": attack for label, attack in _SAFETENSORS.items()},
    **{f"zip_{label}": attack for label, attack in _ZIPS.items()},
    **{
        f"pickle_{label}": Attack(partial(zip_of, raw), says)
        for label, (raw, says) in _pickles(storage).items()
    },
    **{
        f"legacy_pickle_{label}": Attack(partial(legacy_of, raw), says)
        for label, (raw, says) in _pickles(old_storage).items()
    },
    **{f"legacy_{label}": attack for label, attack in _LEGACY.items()},
}
