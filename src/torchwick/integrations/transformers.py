"""Hugging Face transformers, with weights that go from S3 straight into the model."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchwick.checkpoint.opening import open_objects
from torchwick.checkpoint.progress import watched
from torchwick.config import S3Config, TransferConfig
from torchwick.errors import FormatError, TorchwickError, URIError
from torchwick.integrations.small_files import Directory, list_directory
from torchwick.report import ProgressCallback
from torchwick.store import open_store
from torchwick.uri import URI, parse

try:
    import transformers
    from transformers import PreTrainedConfig, PreTrainedModel
except ImportError as error:
    message = (
        "torchwick.integrations.transformers needs transformers 5: pip install 'torchwick[transformers]'"
    )
    raise ImportError(message) from error

if TYPE_CHECKING:
    import torch

__all__ = ["from_pretrained"]

_log = logging.getLogger("torchwick")

_CONFIG, _GENERATION = "config.json", "generation_config.json"
_ADAPTER = "adapter_config.json"
_OF_A_MODEL = re.compile(r"config(\.[\w.]+)?\.json|generation_config\.json")
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
    _CONFIG,
    _GENERATION,
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
_OF_THE_MODEL = ("quantization_config", "generation_config", "torch_dtype")
"""Arguments of which the configuration is told nothing, though it has something of that name."""


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
        task = _Model(directory, str(address), trusted, progress)
        loaded = task.load(model_class, placed, kwargs)
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

    with directory.fetched(wanted, _GUESSES) as folder, _explained(directory, folder, class_):
        if issubclass(class_, transformers.GenerationConfig):
            kwargs.pop("trust_remote_code")
        loaded = class_.from_pretrained(str(folder), local_files_only=True, **kwargs)
    _rename(loaded, name)
    return loaded


@contextlib.contextmanager
def _explained(directory: Directory, folder: Path, class_: Any) -> Iterator[None]:
    """Have what transformers says of the temporary directory be said of the one it stands for."""
    try:
        yield
    except (TorchwickError, ImportError, MemoryError):
        raise
    except Exception as error:  # tokenizers raises nothing more exact
        said = re.sub(r"\s+", " ", str(error)).replace(str(folder), str(directory.uri))
        hint = f"Look into the directory, {directory.names}."
        text = f"transformers makes no {_name(class_)} of it: {said}"
        raise FormatError(text, uri=directory.uri, hint=hint) from error


def _rename(loaded: Any, name: str) -> None:
    """Have an object say where it is really from."""
    for attribute in ("name_or_path", "_name_or_path"):
        if isinstance(getattr(loaded, attribute, None), str):
            setattr(loaded, attribute, name)


class _Model:
    """A model that is to be loaded.

    Args:
        directory: where it is.
        name: what it is to be called.
        trusted: whether code of the directory may be run.
        progress: see `from_pretrained`.
    """

    def __init__(
        self, directory: Directory, name: str, trusted: bool, progress: bool | ProgressCallback
    ) -> None:
        self._directory = directory
        self._name = name
        self._trusted = trusted
        self._progress = progress

    def load(self, class_: Any, placed: dict[str, Any], kwargs: dict[str, Any]) -> Any:
        with self._directory.fetched(self._wants, (_CONFIG, _GENERATION)) as folder:
            arguments = {name: kwargs.pop(name) for name in _OF_THE_MODEL if name in kwargs} | placed
            class_, config, rest = self._settle(folder, class_, kwargs)
            loaded = self._read(class_, config, arguments | rest)
            model = loaded[0] if isinstance(loaded, tuple) else loaded
            self._say_where_from(model)
            if model.can_generate() and "generation_config" not in arguments and (folder / _CONFIG).exists():
                with _explained(self._directory, folder, transformers.GenerationConfig):
                    model.generation_config = _generation(folder)
        return loaded

    def _wants(self, file: str) -> bool:
        return bool(_OF_A_MODEL.fullmatch(file)) or (self._trusted and file.endswith(".py"))

    def _settle(
        self, folder: Path, class_: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, PreTrainedConfig, dict[str, Any]]:
        """Return the class, the configuration, and the arguments that are not of the configuration."""
        given = kwargs.pop("config", None)
        if given is not None and not isinstance(given, PreTrainedConfig):
            raise TypeError(f"config has to be a configuration of transformers, not {type(given).__name__}")
        if given is None and not (folder / _CONFIG).exists():
            hint = "Name the directory that save_pretrained wrote, or pass config=."
            text = f"no {_CONFIG} is in the directory, {self._directory.names}"
            raise FormatError(text, uri=self._directory.uri, hint=hint)
        if given is not None:
            config, rest = given, kwargs
        else:
            with _explained(self._directory, folder, PreTrainedConfig):
                config, rest = _config(folder, class_, kwargs)
        with _explained(self._directory, folder, class_ or PreTrainedModel):
            class_ = self._of_architecture(config) if class_ is None else class_
            if not issubclass(class_, PreTrainedModel):
                class_, config = self._of_auto(class_, config, folder)
        return class_, config, rest

    def _of_architecture(self, config: PreTrainedConfig) -> Any:
        named = next(iter(config.architectures or ()), None)
        for auto, reference in (getattr(config, "auto_map", None) or {}).items():
            class_ = getattr(transformers, str(auto), None)
            if str(reference).rpartition(".")[2] == named and hasattr(class_, "_model_mapping"):
                return class_
        found = getattr(transformers, named, None) if isinstance(named, str) else None
        if isinstance(found, type) and issubclass(found, PreTrainedModel):
            return found
        said = (
            "names no class of models" if named is None else f"names {str(named)[:100]!r}, no class of models"
        )
        hint = "Pass model_class, such as transformers.AutoModel; or is this transformers too old for it?"
        raise FormatError(f"its {_CONFIG} {said}", uri=self._directory.uri, hint=hint)

    def _of_auto(self, auto: Any, config: PreTrainedConfig, folder: Path) -> tuple[Any, PreTrainedConfig]:
        """Return what an Auto class would choose, and its part of the configuration.

        Its own `from_pretrained` does not get as far without a path.
        """
        from transformers.dynamic_module_utils import get_class_from_dynamic_module
        from transformers.models.auto.auto_factory import (
            _get_model_class,
            add_generation_mixin_to_remote_model,
        )

        reference = (getattr(config, "auto_map", None) or {}).get(_name(auto))
        if reference is not None and self._trusted:
            class_ = get_class_from_dynamic_module(reference, str(folder), local_files_only=True)
            class_.register_for_auto_class(_name(auto))
            return add_generation_mixin_to_remote_model(class_), config
        mapping = auto._model_mapping  # noqa: SLF001
        if type(config) not in mapping:
            hint = f"Pass another class; its {_CONFIG} names {config.architectures}."
            if reference is not None:
                hint = (
                    "The class is code of the directory: pass trust_remote_code=True if you trust its maker."
                )
            text = f"{_name(auto)} has no class for {type(config).__name__}"
            raise FormatError(text, uri=self._directory.uri, hint=hint)
        class_ = _get_model_class(config, mapping)
        text_config = config.sub_configs.get("text_config")
        if text_config is not None and getattr(class_, "config_class", None) == text_config:
            quantized = getattr(config, "quantization_config", None)
            config = config.get_text_config()
            if quantized is not None:
                config.quantization_config = quantized
        return class_, config

    def _read(self, class_: Any, config: PreTrainedConfig, arguments: dict[str, Any]) -> Any:
        """Make the model, and read its weights into it."""
        from torchwick.integrations.on_demand import OnDemand

        directory = self._directory
        if _ADAPTER in (directory.listed or ()):
            _log.warning("%s: the adapter in it is not applied: model.load_adapter does that", directory.uri)
        catalog, objects = open_objects(_weights(directory, config), directory.store, directory.config)
        with watched(self._progress) as on_progress, OnDemand(catalog, objects, on_progress) as tensors:
            loaded = class_.from_pretrained(
                None, config=config, state_dict=tensors.stand_ins(), local_files_only=True, **arguments
            )
            tensors.finish()
        return loaded

    def _say_where_from(self, model: Any) -> None:
        for part in (model, model.config):
            part.name_or_path = self._name


def _config(folder: Path, class_: Any, kwargs: dict[str, Any]) -> tuple[PreTrainedConfig, dict[str, Any]]:
    """Read the configuration, with what the arguments change of it; return the other arguments, too."""
    of_class = getattr(class_, "config_class", None)
    trust = {"trust_remote_code": kwargs.pop("trust_remote_code")}
    reads, told = (transformers.AutoConfig, trust | kwargs) if of_class is None else (of_class, kwargs)
    config, rest = reads.from_pretrained(
        str(folder), return_unused_kwargs=True, local_files_only=True, **told
    )
    return config, rest | trust


def _generation(folder: Path) -> transformers.GenerationConfig:
    """Read how to generate, from a file of its own or, as older models have it, from the configuration."""
    read = transformers.GenerationConfig.from_pretrained
    if (folder / _GENERATION).exists():
        return read(str(folder), local_files_only=True)
    return read(str(folder), config_file_name=_CONFIG, local_files_only=True, _from_model_config=True)


def _weights(directory: Directory, config: PreTrainedConfig) -> URI:
    """Return where the weights are: in the directory, unless the configuration names a file of it."""
    name = getattr(config, "transformers_weights", None)
    if name is None:
        return directory.uri
    try:
        return directory.uri.child(str(name))
    except URIError as error:
        raise FormatError(error.message, uri=directory.uri, hint=error.hint) from error
