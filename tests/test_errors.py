"""Every error keeps what it knows, also across a process border, and is caught as what Python calls it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest

import torchwick
from torchwick import errors
from torchwick.errors import BusyError, TorchwickError

WHERE: dict[str, Any] = {"uri": "s3://models/new.pt", "hint": "Try this."}
STORE: dict[str, Any] = {**WHERE, "code": "NoSuchThing", "request_id": "ID7"}

ERRORS: list[TorchwickError] = [
    errors.TorchwickError("it failed", **WHERE),
    errors.URIError("it failed", **WHERE),
    errors.FormatError("it failed", **WHERE),
    errors.UnsafePickleError("it failed", refused=("os.system", "a.B"), **WHERE),
    errors.IntegrityError("it failed", algorithm="crc32", expected="1f", found="2f", **WHERE),
    errors.TensorNotFoundError("it failed", name="lm_head.weight", **WHERE),
    errors.StateDictError(
        "it failed", missing=("a",), unexpected=("b",), mismatched={"c": ((2, 3), ())}, **WHERE
    ),
    errors.MemoryLimitError("it failed", needed=7, limit=5, **WHERE),
    errors.GroupError("it failed", rank=2, cause="FormatError: no", **WHERE),
    errors.StoreError("it failed", **STORE),
    errors.BusyError("it failed", retry_after=1.5, **STORE),
    errors.CredentialsError("it failed", **STORE),
    errors.ObjectNotFoundError("it failed", **STORE),
    errors.ObjectExistsError("it failed", **STORE),
    errors.AccessDeniedError("it failed", **STORE),
    errors.ObjectChangedError("it failed", **STORE),
    errors.TransferError("it failed", range=(5, None), attempts=6, **STORE),
]

each = pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)


def _tree(root: type[TorchwickError]) -> set[type[TorchwickError]]:
    ours = [child for child in root.__subclasses__() if child.__module__ == errors.__name__]
    return {root}.union(*map(_tree, ours))


def test_none_is_forgotten_here() -> None:
    assert {type(error) for error in ERRORS} == _tree(TorchwickError)


def test_all_but_one_are_public() -> None:
    public = {getattr(torchwick, name) for name in torchwick.__all__ if name.endswith("Error")}
    assert public == _tree(TorchwickError) - {BusyError}  # which a transfer turns into a TransferError


@each
def test_it_says_where_what_and_what_to_do(error: TorchwickError) -> None:
    assert str(error) == "s3://models/new.pt: it failed. Try this."


@each
def test_it_survives_pickling(error: TorchwickError) -> None:
    _assert_same(pickle.loads(pickle.dumps(error)), error)


@each
def test_it_survives_copying(error: TorchwickError) -> None:
    _assert_same(copy.copy(error), error)


@pytest.fixture(scope="module")
def other_process() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield pool


@each
def test_it_crosses_a_process_border(error: TorchwickError, other_process: ProcessPoolExecutor) -> None:
    with pytest.raises(type(error)) as caught:
        other_process.submit(_raise, error).result()
    _assert_same(caught.value, error)


def _raise(error: TorchwickError) -> None:
    raise error


def _assert_same(actual: TorchwickError, expected: TorchwickError) -> None:
    assert type(actual) is type(expected)
    assert (str(actual), actual.args) == (str(expected), expected.args)
    assert _facts(actual) == _facts(expected)


def _facts(error: TorchwickError) -> dict[str, Any]:
    """What programs read, but for the traceback that concurrent.futures adds as a note."""
    return {name: value for name, value in vars(error).items() if not name.startswith("__")}


@pytest.mark.parametrize(
    ("kind", "base"),
    [
        (errors.URIError, ValueError),
        (errors.FormatError, ValueError),
        (errors.UnsafePickleError, errors.FormatError),
        (errors.StateDictError, RuntimeError),  # which is what load_state_dict raises
        (errors.MemoryLimitError, MemoryError),
        (errors.GroupError, RuntimeError),
        (errors.BusyError, errors.StoreError),
        (errors.CredentialsError, errors.StoreError),
        (errors.ObjectNotFoundError, errors.StoreError),
        (errors.ObjectNotFoundError, FileNotFoundError),
        (errors.ObjectExistsError, errors.StoreError),
        (errors.ObjectExistsError, FileExistsError),
        (errors.AccessDeniedError, errors.StoreError),
        (errors.AccessDeniedError, PermissionError),
        (errors.ObjectChangedError, errors.StoreError),
        (errors.TransferError, errors.StoreError),
        (errors.TransferError, ConnectionError),
    ],
)
def test_it_is_caught_as_its_kin(kind: type[TorchwickError], base: type[Exception]) -> None:
    assert issubclass(kind, base)


def test_which_may_succeed_another_time() -> None:
    retryable = {type(error) for error in ERRORS if error.retryable}
    assert retryable == {errors.BusyError, errors.ObjectChangedError, errors.TransferError}


def test_without_an_address_or_a_hint() -> None:
    error = errors.StoreError("it failed")
    assert str(error) == "it failed"
    assert (error.uri, error.hint, error.code, error.request_id) == (None, None, None, None)
