"""Tells a format from an object's first bytes, never from its name, and says what else they are."""

from __future__ import annotations

import re
from typing import Literal

from torchwick.errors import FormatError
from torchwick.formats import safetensors

__all__ = ["Kind", "sniff"]

Kind = Literal["zip", "legacy", "tar", "safetensors"]

_LEGACY_MAGIC = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")  # torch/serialization.py, MAGIC_NUMBER
_PICKLE_START = b"\x80"

_OTHERS: tuple[tuple[bytes, str, str], ...] = (
    (b"GGUF", "a GGUF file", "It is llama.cpp's format: load it there, or use the original checkpoint."),
    (b"\x89HDF", "an HDF5 file", "It is likely a Keras model: convert it first."),
    (
        b"\x1f\x8b",
        "a gzip file",
        "Decompress it before uploading; or was it stored with Content-Encoding: gzip?",
    ),
    (b"\x28\xb5\x2f\xfd", "a zstd file", "Decompress it before uploading."),
    (b"\x93NUMPY", "a numpy array", "Load it with numpy.load."),
    (
        b"version https://git-lfs",
        "a git-lfs pointer, not the file itself",
        "Run `git lfs pull`, then upload.",
    ),
    (b"\x89PNG", "a PNG picture", "Check the key."),
    (b"\xff\xd8\xff", "a JPEG picture", "Check the key."),
    (b"%PDF", "a PDF", "Check the key."),
)
_CHECK_URI = "Check the URI: a page or an error message was stored, or served, in the model's place."


def sniff(head: memoryview, uri: object) -> Kind:
    """Return what an object is.

    Args:
        head: its first bytes, 512 or more of a larger one.
        uri: the object, for the message.

    Raises:
        FormatError: it is nothing torchwick loads; the message says what it is instead.

    Example:
        >>> sniff(memoryview(b"PK" + bytes([3, 4]) + bytes(100)), "s3://models/new.pt")
        'zip'
    """
    start = bytes(head[:512])
    if start.startswith(b"PK\x03\x04"):
        return "zip"
    if start.startswith(_PICKLE_START) and _LEGACY_MAGIC in start[:32]:
        return "legacy"
    if start[257:262] == b"ustar":
        return "tar"
    what, hint = _foreign(start) or ("", "")
    if not what and safetensors.looks_like(head):
        return "safetensors"
    if not what:
        what, hint = _unknown(start)
    raise FormatError(f"not a model: {what}", uri=uri, hint=hint)


def _foreign(start: bytes) -> tuple[str, str] | None:
    """Say what other format the bytes are, if they clearly are, and what to do about it."""
    for magic, what, hint in _OTHERS:
        if start.startswith(magic):
            return what, hint
    if not start:
        return "it has zero bytes", "The upload was cut short, or made an empty object: upload it again."
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "an HTML page", _CHECK_URI
    if text.startswith((b"<?xml", b"<error")):
        code = re.search(rb"<Code>([\w.]{1,60})</Code>", start)
        return "an XML document" + (f" with the error {code[1].decode()}" if code else ""), _CHECK_URI
    if text.startswith((b"{", b"[")) and _is_text(start):
        return "a JSON document", _CHECK_URI
    return None


def _unknown(start: bytes) -> tuple[str, str]:
    """Say what can be said of bytes that are nothing clear."""
    if start.startswith(_PICKLE_START) and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a plain pickle, not one of torch.save's", "Save it with torch.save."
    if len(start) < 9 or _is_text(start):
        return "text", _CHECK_URI
    what = "unknown bytes, beginning " + start[:8].hex(" ")
    return what, "Is it a checkpoint saved by torch.save, or safetensors? Check the URI."


def _is_text(start: bytes) -> bool:
    return not re.search(rb"[\x00-\x08\x0e-\x1f\x7f-\xff]", start)
