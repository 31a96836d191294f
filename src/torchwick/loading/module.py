"""Fills a module: decides where each tensor goes, has it read there, and puts into the module what is new."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from torchwick.checkpoint.objects import Objects
from torchwick.checkpoint.verification import Verify, unverifiable
from torchwick.errors import StateDictError, TorchwickError
from torchwick.formats.catalog import Catalog
from torchwick.loading.facts import facts_of
from torchwick.loading.matching import Match, match, refuse_misfit
from torchwick.loading.selected import Selection
from torchwick.loading.slots import Slot, is_plain, slots
from torchwick.report import LoadResult, ProgressCallback

__all__ = ["Filling"]

_PARTLY = "The module is partly filled: load it again before you use it."


@dataclass(frozen=True)
class Filling:
    """What is to be filled, and with what.

    Attributes:
        model: the module.
        catalog: of the checkpoint.
        objects: where that is.
        original: the names of the tensors that are wanted, by what they are called in the module.
        on_progress: called about ten times a second, or None.
    """

    model: nn.Module
    catalog: Catalog
    objects: Objects
    original: Mapping[str, str]
    on_progress: ProgressCallback | None

    def run(
        self,
        *,
        strict: bool,
        device: str | torch.device | None,
        dtype: str | None,
        verify: Verify,
        sha256: str | None,
    ) -> tuple[LoadResult, dict[str, Any]]:
        """Fill it, and return what did not fit and what there is to report."""
        how = _How(
            strict=strict, device=_settled(device), dtype=None if dtype is None else getattr(torch, dtype)
        )
        selection = Selection(self.catalog, self.objects, [*self.original.values()], self.on_progress)
        if is_plain(self.model):
            found = self._match(how)
            selection = selection.only([self.original[name] for name in found.chosen.values()])
            self._fill(found, how, partial(self._read_into, selection, verify, sha256))
            result = LoadResult([*found.missing], [*found.unexpected])
        else:
            result = self._hand_over(selection.read(verify=verify, sha256=sha256), how)
        tally, size = self.objects.tally, self.objects.size
        size = tally.bytes_read if size is None else size
        return result, facts_of(tally, selection.sources, self.catalog.format, "filled", size)

    def _match(self, how: _How) -> Match:
        shapes = {new: self.catalog.entries[name].shape for new, name in self.original.items()}
        found = match(slots(self.model), shapes)
        refuse_misfit(found, self.objects.uri, strict=how.strict, original=self.original)
        return found

    def _fill(self, found: Match, how: _How, read_into: Callable[[dict[str, torch.Tensor]], None]) -> None:
        targets = {slot: how.target(slot) for slot in found.chosen}
        in_place = [slot.tensor for slot, target in targets.items() if target is slot.tensor]
        with _telling(partly=bool(in_place)):
            read_into({self.original[found.chosen[slot]]: target for slot, target in targets.items()})
        for tensor in in_place:  # what autograd kept of it is not valid any more
            torch.autograd.graph.increment_version(tensor)
        for slot, target in targets.items():
            if target is not slot.tensor:
                slot.put(target)
        for slot in found.left:
            how.move(slot)

    def _read_into(
        self, selection: Selection, verify: Verify, sha256: str | None, targets: dict[str, torch.Tensor]
    ) -> None:
        selection.fill(targets, verify=verify, sha256=sha256)
        if verify is True and any(source.verified is None for source in selection.sources):
            raise unverifiable(self.objects.uri)

    def _hand_over(self, tensors: dict[str, torch.Tensor], how: _How) -> LoadResult:
        """Let the module's own code take the tensors, as torch has it do."""
        state = {new: how.cast(tensors[name]) for new, name in self.original.items()}
        meta = any(slot.tensor.is_meta for slot in slots(self.model))
        assign = meta or how.device is not None or how.dtype is not None
        with _telling(partly=True):
            try:
                missing, unexpected = self.model.load_state_dict(state, strict=False, assign=assign)
            except RuntimeError as error:
                message = f"it does not fit the module: {error}"
                raise StateDictError(message, uri=self.objects.uri) from error
            shapes = {new: self.catalog.entries[name].shape for new, name in self.original.items()}
            lacking = {name: shapes.get(name, ()) for name in missing}
            found = Match(missing=lacking, unexpected={name: shapes.get(name, ()) for name in unexpected})
            refuse_misfit(found, self.objects.uri, strict=how.strict, original=self.original)
        for slot in slots(self.model):
            how.move(slot)
        return LoadResult(missing, unexpected)


@dataclass(frozen=True)
class _How:
    """What was asked for, where the module's tensors are concerned."""

    strict: bool
    device: torch.device | None
    dtype: torch.dtype | None

    def target(self, slot: Slot) -> torch.Tensor:
        """Return what a slot's tensor is read into: itself, if it is where and of the dtype it is to be."""
        tensor = slot.tensor
        dtype = self.dtype if self.dtype is not None and tensor.is_floating_point() else tensor.dtype
        device = self.device or (torch.device("cpu") if tensor.is_meta else tensor.device)
        if (dtype, device) == (tensor.dtype, tensor.device):
            return tensor
        return torch.empty_like(tensor, dtype=dtype, device=device, requires_grad=False)

    def cast(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor as it is to be."""
        dtype = self.dtype if tensor.is_floating_point() else None
        return tensor.to(device=self.device, dtype=dtype)

    def move(self, slot: Slot) -> None:
        """Bring what the checkpoint has nothing for to where the module is to be."""
        if slot.tensor.is_meta and slot.optional:
            slot.put(torch.zeros_like(slot.tensor, device=self.device or "cpu"))
        elif self.device is not None and slot.tensor.device != self.device and not slot.tensor.is_meta:
            slot.put(slot.tensor.detach().to(self.device))


def _settled(device: str | torch.device | None) -> torch.device | None:
    """Return a device by its full name: ``cuda`` is the current one of several."""
    if device is None:
        return None
    settled = torch.empty(0, device=device).device
    if settled.type == "meta":
        raise ValueError("device='meta' holds no elements: there is nothing to fill")
    return settled


@contextmanager
def _telling(*, partly: bool) -> Iterator[None]:
    """Have what goes wrong say that the module is partly filled, if it is."""
    try:
        yield
    except TorchwickError as error:
        if partly:
            error.add_remark(_PARTLY)
        raise
    except BaseException as error:
        if partly:
            error.add_note(_PARTLY)
        raise
