"""What a library says of the temporary directory, said of the one that it stands for."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from torchwick.errors import FormatError, TorchwickError
from torchwick.integrations.small_files import Directory

__all__ = ["explained"]


@contextlib.contextmanager
def explained(directory: Directory, folder: Path, class_: type) -> Iterator[None]:
    """Have whatever keeps transformers from making something of small files be a `FormatError`.

    Args:
        directory: where they are from.
        folder: the temporary directory with them.
        class_: what was to be made.

    Raises:
        FormatError: nothing was made; it says what transformers said.
    """
    try:
        yield
    except (TorchwickError, ImportError, MemoryError):
        raise
    except Exception as error:  # tokenizers raises nothing more exact
        said = re.sub(r"\s+", " ", str(error)).replace(str(folder), str(directory.uri))
        hint = f"Look into the directory, {directory.names}."
        text = f"transformers makes no {class_.__name__} of it: {said}"
        raise FormatError(text, uri=directory.uri, hint=hint) from error
