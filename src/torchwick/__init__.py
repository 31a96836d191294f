"""Load PyTorch models straight from S3, and save them to it: parallel, one copy in memory, safe by default.

>>> import torchwick
>>> torchwick.load("s3://models/resnet.pt")  # doctest: +SKIP
"""

from torchwick.checkpoint import Checkpoint, TensorInfo, TensorSlice, open
from torchwick.client import Client
from torchwick.config import PutOptions, S3Config, TransferConfig
from torchwick.diagnosis import Check, Diagnosis, doctor
from torchwick.drop_in import load_file, save_file
from torchwick.errors import (
    AccessDeniedError,
    CredentialsError,
    FormatError,
    IntegrityError,
    MemoryLimitError,
    ObjectChangedError,
    ObjectExistsError,
    ObjectNotFoundError,
    StateDictError,
    StoreError,
    TensorNotFoundError,
    TorchwickError,
    TransferError,
    UnsafePickleError,
    URIError,
)
from torchwick.files import File, open_file
from torchwick.loading import load, load_model
from torchwick.report import LoadReport, LoadResult, Progress, SavedFile, SaveReport
from torchwick.saving import save, save_async, save_model

__version__ = "0.1.0"

__all__ = [
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
