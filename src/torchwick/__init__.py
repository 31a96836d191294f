"""Load PyTorch models straight from S3: parallel, one copy in memory, safe by default.

>>> import torchwick
>>> torchwick.load("s3://models/resnet.pt")  # doctest: +SKIP
"""

from torchwick.checkpoint import Checkpoint, TensorInfo, TensorSlice, open
from torchwick.client import Client
from torchwick.config import S3Config, TransferConfig
from torchwick.diagnosis import Check, Diagnosis, doctor
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
from torchwick.report import LoadReport, LoadResult, Progress

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
    "S3Config",
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
    "load_model",
    "open",
    "open_file",
]
