"""Things that end up under a model's name and are not models: the loader must say so, and never crash."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from checkpoints.base import save_bytes
from checkpoints.safetensors import entry, framed
from checkpoints.zipcraft import Record, write_zip

if TYPE_CHECKING:
    from collections.abc import Callable

_S3_ERROR = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>NoSuchKey</Code>'
    b"<Message>The specified key does not exist.</Message><Key>model.pt</Key></Error>"
)
_LFS_POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 102445327\n"
)


def _checkpoint() -> bytes:
    return save_bytes({"a": torch.arange(100.0), "b": torch.arange(10)})


def _legacy() -> bytes:
    return save_bytes({"a": torch.arange(100.0)}, _use_new_zipfile_serialization=False)


def _bad_directory() -> bytes:
    """The last directory entry points past the end of the file."""
    data = bytearray(_checkpoint())
    struct.pack_into("<I", data, data.rindex(b"PK\1\2") + 42, 0x7FFFFFFF)
    return bytes(data)


def _bad_signature() -> bytes:
    """The first directory entry does not begin like one."""
    data = bytearray(_checkpoint())
    data[data.index(b"PK\1\2")] = 0
    return bytes(data)


def _bad_local_header() -> bytes:
    """The directory is fine, but the storage's own header is overwritten."""
    data = bytearray(_checkpoint())
    name = data.index(b"archive/data/0")
    data[name - 30 : name - 26] = b"\0\0\0\0"
    return bytes(data)


def _npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, weights=np.arange(4.0))
    return buffer.getvalue()


def _plain_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("folder/readme.txt", "no model here")
    return buffer.getvalue()


def _header(header: Any, data: bytes = b"") -> bytes:
    return framed(json.dumps(header).encode(), data)


def _tensors(*entries: dict[str, Any], data: int) -> Callable[[], bytes]:
    named = {f"t{index}": found for index, found in enumerate(entries)}
    return lambda: _header(named, bytes(data))


_BUILDERS: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "one_byte": lambda: b"\x80",
    "html": lambda: b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head></html>\n",
    "s3_error": lambda: _S3_ERROR,
    "json": lambda: b'{"architectures": ["LlamaForCausalLM"], "hidden_size": 4096}\n',
    "json_list": lambda: b"[1, 2, 3]",
    "text": lambda: b"This is a text file about models.\n" * 10,
    "zeros": lambda: bytes(4096),
    "png": lambda: b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(64),
    "gzip": lambda: gzip.compress(_checkpoint(), mtime=0),
    "gguf": lambda: b"GGUF" + struct.pack("<IQQ", 3, 2, 5) + bytes(64),
    "hdf5": lambda: b"\x89HDF\r\n\x1a\n" + bytes(128),
    "git_lfs_pointer": lambda: _LFS_POINTER,
    "elf": lambda: b"\x7fELF\2\1\1" + bytes(100),
    "npy": lambda: b"\x93NUMPY\1\0" + bytes(120),
    "npz": _npz,
    "pickle_without_magic": lambda: pickle.dumps({"a": [1, 2, 3]}, protocol=2),
    "pickle_protocol_5": lambda: pickle.dumps({"a": [1, 2, 3]}, protocol=5),
    "legacy_only_magic": lambda: pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2),
    "legacy_cut": lambda: _legacy()[:-100],
    "legacy_half": lambda: _legacy()[:200],
    "zip_without_pickle": _plain_zip,
    "zip_only_version": lambda: write_zip([Record("archive/version", b"3\n")]),
    "zip_empty": lambda: write_zip([]),
    "zip_magic_only": lambda: b"PK\3\4",
    "pt_half": lambda: _checkpoint()[: len(_checkpoint()) // 2],
    "pt_cut_in_directory": lambda: _checkpoint()[:-150],
    "pt_cut_last_byte": lambda: _checkpoint()[:-1],
    "pt_cut_first_byte": lambda: _checkpoint()[1:],
    "pt_long_tail_garbage": lambda: _checkpoint() + b"garbage!" * 10_000,
    "pt_bad_directory": _bad_directory,
    "pt_bad_signature": _bad_signature,
    "pt_bad_local_header": _bad_local_header,
    "safetensors_cut_in_data": lambda: _tensors(entry("F32", [4], 0, 16), data=16)()[:-1],
    "safetensors_cut_in_header": lambda: _tensors(entry("F32", [4], 0, 16), data=16)()[:30],
    "safetensors_only_length": lambda: struct.pack("<Q", 100),
    "safetensors_absurd_length": lambda: struct.pack("<Q", 2**62) + b"{}" * 10,
    "safetensors_zero_length": lambda: struct.pack("<Q", 0) + b"{}" * 10,
    "safetensors_header_not_json": lambda: framed(b'{"t": oops}'),
    "safetensors_header_not_utf8": lambda: framed(b'{"\xff\xfe": 1}'),
    "safetensors_header_list": lambda: framed(b'["t"]'),
    "safetensors_header_number": lambda: framed(b"17"),
    "safetensors_entry_not_object": lambda: framed(b'{"t": 3}'),
    "safetensors_entry_incomplete": lambda: framed(b'{"t": {"dtype": "F32", "shape": [1]}}', bytes(4)),
    "safetensors_metadata_not_text": lambda: framed(b'{"__metadata__": {"epoch": 3}}'),
    "safetensors_overlap": _tensors(entry("F32", [2], 0, 8), entry("F32", [2], 4, 12), data=12),
    "safetensors_hole": _tensors(entry("F32", [2], 0, 8), entry("F32", [2], 12, 20), data=20),
    "safetensors_leading_hole": _tensors(entry("F32", [2], 4, 12), data=12),
    "safetensors_out_of_range": _tensors(entry("F32", [4], 0, 16), data=8),
    "safetensors_backwards": _tensors(entry("F32", [2], 8, 0), data=8),
    "safetensors_negative_offset": _tensors(entry("F32", [2], -8, 0), data=8),
    "safetensors_surplus_data": _tensors(entry("F32", [2], 0, 8), data=20),
    "safetensors_unknown_dtype": _tensors(entry("F13", [2], 0, 8), data=8),
    "safetensors_shape_mismatch": _tensors(entry("F32", [3], 0, 8), data=8),
    "safetensors_negative_shape": _tensors(entry("F32", [-2], 0, 8), data=8),
    "safetensors_shape_overflow": _tensors(entry("F32", [2**62, 4], 0, 0), data=0),
    "safetensors_float_shape": lambda: framed(
        b'{"t": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}}', bytes(8)
    ),
    "safetensors_duplicate_names": lambda: framed(
        b'{"t": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},'
        b' "t": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
        bytes(8),
    ),
}

NOT_MODELS: dict[str, bytes] = {name: build() for name, build in _BUILDERS.items()}
