"""What users import: every name is there, documented and typed, and the import costs nearly nothing."""

from __future__ import annotations

import importlib
import importlib.resources

import pytest

import torchwick
from conftest import run_python

SURFACE = [
    "AccessDeniedError",
    "Check",
    "Checkpoint",
    "Client",
    "CredentialsError",
    "Diagnosis",
    "File",
    "FormatError",
    "IntegrityError",
    "LoadReport",
    "LoadResult",
    "MemoryLimitError",
    "ObjectChangedError",
    "ObjectExistsError",
    "ObjectNotFoundError",
    "Progress",
    "PutOptions",
    "S3Config",
    "SaveReport",
    "SavedFile",
    "StateDictError",
    "StoreError",
    "TensorInfo",
    "TensorNotFoundError",
    "TensorSlice",
    "TorchwickError",
    "TransferConfig",
    "TransferError",
    "URIError",
    "UnsafePickleError",
    "doctor",
    "load",
    "load_file",
    "load_model",
    "open",
    "open_file",
    "save",
    "save_async",
    "save_file",
    "save_model",
]


def test_a_name_is_public_on_purpose() -> None:
    assert torchwick.__all__ == SURFACE


@pytest.mark.parametrize("name", torchwick.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    documented = getattr(torchwick, name).__doc__
    assert documented
    assert not documented.startswith(f"{name}(")  # what dataclasses put where nothing was written


@pytest.mark.parametrize("name", torchwick.__all__)
def test_every_public_name_lives_where_its_module_says_it_does(name: str) -> None:
    module = importlib.import_module(getattr(torchwick, name).__module__)
    assert name in module.__all__


def test_it_is_typed() -> None:
    assert importlib.resources.files("torchwick").joinpath("py.typed").is_file()


@pytest.mark.parametrize(
    "module", ["torch", "numpy", "awscrt", "botocore", "boto3", "tqdm", "typer", "rich", "http.client"]
)
def test_importing_it_leaves_heavy_modules_alone(module: str) -> None:
    assert run_python(f"import sys, torchwick; print({module!r} in sys.modules)") == "False\n"


def test_a_refused_address_costs_no_torch_either() -> None:
    script = (
        "import sys, torchwick\n"
        "try:\n"
        "    torchwick.load('/no/such/model.pt')\n"
        "except torchwick.ObjectNotFoundError:\n"
        "    print('torch' in sys.modules, 'botocore' in sys.modules)\n"
    )
    assert run_python(script) == "False False\n"
