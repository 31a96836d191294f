"""What a destination means: one file, or a directory with a model in it, under the names that are known."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from torchwick.errors import ObjectExistsError, StoreError, URIError
from torchwick.saving.sink import Folder, LocalFolder
from torchwick.uri import URI, parse

__all__ = ["INDEX", "Destination", "destination", "shard_names"]

INDEX = "model.safetensors.index.json"
_WHOLE = "model.safetensors"
_OF_MODELS = re.compile(r"model(-\d{5}-of-\d{5,})?\.safetensors|model\.safetensors\.index\.json")
_ENDING = ".safetensors"


@dataclass(frozen=True)
class Destination:
    """Where a model is to be written.

    Attributes:
        uri: as it was given.
        directory: where its files are to be.
        file: the name of the one file; None: those of a directory's model.
    """

    uri: URI
    directory: URI
    file: str | None

    def present(self) -> list[str]:
        """Return the names of what is there already and in the way.

        Raises:
            StoreError: something else is there, which cannot be replaced.
        """
        path = Path(self.directory.key)
        if self.file is not None:
            return [self.file] if os.path.lexists(path / self.file) else []
        if not path.is_dir():
            if os.path.lexists(path):
                raise StoreError("it is no directory", uri=self.directory, hint="Name another.")
            return []
        try:
            return sorted(name for name in os.listdir(path) if _OF_MODELS.fullmatch(name))  # noqa: PTH208
        except OSError as error:
            text = f"the directory cannot be read: {error.strerror}"
            raise StoreError(text, uri=self.directory, hint="Check its mode.") from error

    def refuse_present(self) -> None:
        """Refuse to go on where something is.

        Raises:
            ObjectExistsError: a file, or a model, is there.
        """
        present = self.present()
        if present:
            what = "it exists" if self.file else f"there is a model already: {present[0]}"
            hint = "Write to another place, or pass overwrite=True."
            raise ObjectExistsError(what, uri=self.uri, hint=hint)

    def folder(self, *, overwrite: bool) -> Folder:
        """Return what makes its files."""
        return LocalFolder(self.directory, overwrite=overwrite)


def destination(given: str | os.PathLike[str]) -> Destination:
    """Say what is meant: a name that ends in ``.safetensors`` is a file, one without a dot a directory.

    Raises:
        URIError: nothing can be written there, or it is neither.

    Example:
        >>> destination("/no/such/new.safetensors").file
        'new.safetensors'
        >>> destination("/no/such/new").directory
        URI('/no/such/new/')
    """
    uri = parse(given)
    if uri.scheme == "s3":
        hint = "Convert to a local path, and upload what was written."
        raise URIError("conversions to S3 are not there yet", uri=uri, hint=hint)
    if uri.scheme != "file":
        raise URIError("web servers are read from, not written to", uri=uri, hint="Name a local path.")
    above, slash, name = uri.key.rpartition("/")
    if uri.is_directory or Path(uri.key).is_dir():
        return Destination(uri, uri.as_directory(), None)
    if name.endswith(_ENDING):
        directory = replace(uri, key=f"{above}{slash}" if slash else "./")
        return Destination(uri, directory, name)
    if "." in name:
        hint = f"End it in {_ENDING} for a file, or in a slash for a directory."
        raise URIError("it is not clear whether that is a file or a directory", uri=uri, hint=hint)
    return Destination(uri, uri.as_directory(), None)


def shard_names(count: int) -> list[str]:
    """Return the names that Hugging Face gives to the files of a model.

    Example:
        >>> shard_names(1), shard_names(2)
        (['model.safetensors'], ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors'])
    """
    if count == 1:
        return [_WHOLE]
    return [f"model-{number:05}-of-{count:05}{_ENDING}" for number in range(1, count + 1)]
