"""A model of transformers: its configuration, its class, and its weights, each from a directory."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from torchwick.checkpoint.opening import open_objects
from torchwick.checkpoint.progress import watched
from torchwick.errors import FormatError, URIError
from torchwick.integrations.explained import explained
from torchwick.integrations.small_files import Directory
from torchwick.report import ProgressCallback
from torchwick.uri import URI

__all__ = ["StoredModel"]

_log = logging.getLogger("torchwick")

_CONFIG, _GENERATION = "config.json", "generation_config.json"
_ADAPTER = "adapter_config.json"
_OF_A_MODEL = re.compile(r"config(\.[\w.]+)?\.json|generation_config\.json")
_OF_THE_MODEL = ("quantization_config", "generation_config", "torch_dtype")
"""Arguments of which the configuration is told nothing, though it has something of that name."""


class StoredModel:
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
        """Return what transformers' own `from_pretrained` does.

        Args:
            class_: a model class, an Auto class, or None: what the configuration names.
            placed: arguments about dtype and device.
            kwargs: the caller's other arguments, among them ``trust_remote_code``.

        Raises:
            FormatError: there is no configuration, no weights, or no such class; or they are corrupt.
            StoreError: it cannot be read.
        """
        with self._directory.fetched(self._wants, (_CONFIG, _GENERATION)) as folder:
            arguments = {name: kwargs.pop(name) for name in _OF_THE_MODEL if name in kwargs} | placed
            class_, config, rest = self._settle(folder, class_, kwargs)
            loaded = self._read(class_, config, arguments | rest)
            model = loaded[0] if isinstance(loaded, tuple) else loaded
            self._say_where_from(model)
            if model.can_generate() and "generation_config" not in arguments and (folder / _CONFIG).exists():
                with explained(self._directory, folder, transformers.GenerationConfig):
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
            with explained(self._directory, folder, PreTrainedConfig):
                config, rest = _config(folder, class_, kwargs)
        with explained(self._directory, folder, class_ or PreTrainedModel):
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

        reference = (getattr(config, "auto_map", None) or {}).get(auto.__name__)
        if reference is not None and self._trusted:
            class_ = get_class_from_dynamic_module(reference, str(folder), local_files_only=True)
            class_.register_for_auto_class(auto.__name__)
            return add_generation_mixin_to_remote_model(class_), config
        mapping = auto._model_mapping  # noqa: SLF001
        if type(config) not in mapping:
            hint = f"Pass another class; its {_CONFIG} names {config.architectures}."
            if reference is not None:
                hint = (
                    "The class is code of the directory: pass trust_remote_code=True if you trust its maker."
                )
            text = f"{auto.__name__} has no class for {type(config).__name__}"
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
