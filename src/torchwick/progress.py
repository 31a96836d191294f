"""A progress bar for people: bytes, rate and time left."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torchwick.report import Progress, ProgressCallback

__all__ = ["watched"]


@contextlib.contextmanager
def watched(progress: bool | ProgressCallback) -> Iterator[ProgressCallback | None]:
    """Yield what to call with each `Progress`: the caller's function, a bar's, or None.

    Args:
        progress: True for a bar on standard error (in a notebook, a widget), or a function.
    """
    if callable(progress):
        yield progress
    elif progress:
        with _bar() as update:
            yield update
    else:
        yield None


@contextlib.contextmanager
def _bar() -> Iterator[ProgressCallback]:
    from tqdm.auto import tqdm

    with tqdm(unit="B", unit_scale=True, dynamic_ncols=True) as bar:

        def update(progress: Progress) -> None:
            bar.total = progress.total
            bar.set_description(progress.uri.rpartition("/")[2], refresh=False)
            bar.update(progress.done - bar.n)

        yield update
