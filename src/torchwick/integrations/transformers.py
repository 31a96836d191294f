"""Hugging Face transformers, with weights that go from S3 straight into the model."""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Any

from torchwick.config import S3Config, TransferConfig
from torchwick.integrations.explained import explained
from torchwick.integrations.small_files import Directory, list_directory
from torchwick.report import ProgressCallback
from torchwick.store import open_store
from torchwick.uri import parse

try:
    from transformers import PreTrainedModel

    from torchwick.integrations.stored_model import StoredModel
except ImportError as error:
    message = (
        "torchwick.integrations.transformers needs transformers 5: pip install 'torchwick[transformers]'"
    )
    raise ImportError(message) from error

if TYPE_CHECKING:
    import torch

__all__ = ["from_pretrained"]

_log = logging.getLogger("torchwick")

_ENDINGS = (
    ".json",
    ".txt",
    ".jinja",
    ".model",
    ".spm",
    ".vocab",
    ".codes",
    ".bpe",
    ".tiktoken",
    ".tokenizer",
)
"""Of the files that tokenizers and processors of transformers read: settings, vocabularies, templates."""
_GUESSES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
)
"""Files to try where there is no listing."""
_NOT_HERE = {
    "state_dict": "the weights are those of the directory",
    "subfolder": "name the folder in the URI",
    "variant": "name a directory with those weights",
    "gguf_file": "GGUF is not a format that torchwick reads",
    "offload_folder": "no weights are written to disk",
    **dict.fromkeys(
        ("tp_plan", "tp_size", "distributed_config", "device_mesh"), "one process loads all of it"
    ),
    **dict.fromkeys(("cache_dir", "force_download", "proxies", "revision", "token"), "it is of the Hub"),
    **dict.fromkeys(("local_files_only", "use_safetensors"), "it is of the Hub"),
}
"""Arguments of transformers that mean nothing here, or something that is not done, and why."""


def from_pretrained(
    uri: str | os.PathLike[str],
    model_class: Any = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | int | None = None,
    *,
    progress: bool | ProgressCallback = False,
    s3: S3Config | None = None,
    transfer: TransferConfig | None = None,
    **kwargs: Any,
) -> Any:
    """Load what `from_pretrained` of transformers loads, from a directory in S3.

    A model's weights are read into memory that its parameters then are: they touch no disk, and there is no
    second copy of them. What becomes of them is transformers' doing: the class, dtypes, renamed and fused
    weights, tied weights, what is missing. Settings and vocabularies pass through a temporary directory.
    Nothing is asked of the Hub.

    Args:
        uri: a directory: ``s3://bucket/folder/``, a local path, or a URL under which the files are.
        model_class: a model class, or one of the ``AutoModel`` classes; or whatever else of transformers has
            ``from_pretrained``: ``AutoTokenizer``, ``AutoProcessor``, ``AutoConfig``, ``GenerationConfig``.
            None: the model class that ``architectures`` in ``config.json`` names.
        dtype: as transformers': a dtype, its name, or ``"auto"``; None is transformers' default.
        device: the one device to load onto. For several, pass ``device_map`` as to transformers.
        progress: True for a bar on standard error, or a function that is called with a `Progress` about ten
            times a second, on a thread that reads. transformers has a bar of its own.
        s3: who asks and which S3; by default all of it is found as boto3 finds it.
        transfer: how fast and with how much memory; by default it adapts.
        **kwargs: for transformers. With ``trust_remote_code=True``, Python files of the directory are run:
            only for directories whose maker you trust as you would trust their programs.

    Returns:
        What transformers returns: a model in evaluation mode, a tokenizer, a configuration, or, with
        ``output_loading_info=True``, a model and what did not fit.

    Raises:
        URIError: `uri` is no address of a directory.
        ValueError: an argument makes no sense here.
        FormatError: there is no ``config.json``, no weights, or no such class; or they are corrupt.
        IntegrityError: the weights are not those that were stored.
        MemoryLimitError: one tensor alone is larger than ``TransferConfig.memory_limit``.
        StoreError: it cannot be read.

    Example:
        >>> model = from_pretrained("s3://models/llama/", dtype="auto")  # doctest: +SKIP
        >>> tokenizer = from_pretrained("s3://models/llama/", AutoTokenizer)  # doctest: +SKIP
    """
    started = time.perf_counter()
    address, config = parse(uri), transfer or TransferConfig()
    _refuse_misplaced(kwargs)
    directory = list_directory(
        address.as_directory(), open_store(address, s3 or S3Config(), config.timeout), config
    )
    trusted = kwargs["trust_remote_code"] = bool(kwargs.get("trust_remote_code"))
    if model_class is None or _makes_models(model_class):
        placed: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
        if device is not None:
            placed["device_map"] = _device(device, kwargs)
        model = StoredModel(directory, str(address), trusted, progress)
        loaded = model.load(model_class, placed, kwargs)
    elif dtype is not None or device is not None:
        raise ValueError(f"dtype and device are for models, not for {_name(model_class)}")
    else:
        loaded = _load_small(directory, str(address), model_class, kwargs, trusted=trusted)
    _log.info("loaded %s: %s in %.1f s", address, type(loaded).__name__, time.perf_counter() - started)
    return loaded


def _refuse_misplaced(kwargs: dict[str, Any]) -> None:
    for name in kwargs:
        if name in _NOT_HERE:
            raise ValueError(f"{name} is not for torchwick's from_pretrained: {_NOT_HERE[name]}")
    device_map = kwargs.get("device_map")
    if isinstance(device_map, dict) and "disk" in device_map.values():
        raise ValueError(f"device_map names the disk: {_NOT_HERE['offload_folder']}")


def _makes_models(class_: Any) -> bool:
    """Whether it is a class of models, or one that chooses among them."""
    if not isinstance(class_, type):
        raise TypeError(f"model_class has to be a class, not {type(class_).__name__}")
    return issubclass(class_, PreTrainedModel) or hasattr(class_, "_model_mapping")


def _name(class_: Any) -> str:
    return str(class_.__name__)


def _device(device: torch.device | str | int, kwargs: dict[str, Any]) -> torch.device:
    import torch

    if kwargs.get("device_map") is not None:
        raise ValueError("device and device_map say the same: give one of them")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"{device!r} is no device; device_map takes more than one") from error
    if found.type == "meta":
        raise ValueError(
            "no weights are read for the device meta: use model_class(config) under torch.device"
        )
    return found


def _load_small(
    directory: Directory, name: str, class_: Any, kwargs: dict[str, Any], *, trusted: bool
) -> Any:
    """Load what has no weights."""

    def wanted(file: str) -> bool:
        settings = file.endswith(_ENDINGS) and not file.endswith(".index.json")
        return settings or file.startswith("tokenizer.model") or (trusted and file.endswith(".py"))

    with directory.fetched(wanted, _GUESSES) as folder, explained(directory, folder, class_):
        if not _name(class_).startswith("Auto"):  # no other class can have code of its own
            kwargs.pop("trust_remote_code")
        loaded = class_.from_pretrained(str(folder), local_files_only=True, **kwargs)
    _rename(loaded, name)
    return loaded


def _rename(loaded: Any, name: str) -> None:
    """Have an object say where it is really from."""
    for attribute in ("name_or_path", "_name_or_path"):
        if isinstance(getattr(loaded, attribute, None), str):
            setattr(loaded, attribute, name)
