"""Fills a module: decides where each tensor goes, has it read there, and puts into the module what is new."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from torchwick.checkpoint.objects import Objects
from torchwick.checkpoint.tensors import as_torch_counts
from torchwick.checkpoint.verification import Verify, unverifiable
from torchwick.errors import StateDictError, TorchwickError
from torchwick.formats.catalog import Catalog, TensorEntry
from torchwick.loading.casting import is_castable
from torchwick.loading.devices import is_faking
from torchwick.loading.dtensors import is_sharded, reshard, tell_fsdp
from torchwick.loading.facts import facts_of
from torchwick.loading.matching import Match, match, refuse_misfit
from torchwick.loading.selected import Selection
from torchwick.loading.sharded import Place, ShardedPlace
from torchwick.loading.slots import Slot, is_plain, slots
from torchwick.loading.together import together
from torchwick.report import LoadResult, ProgressCallback

__all__ = ["Filling"]

_SAID = 1000  # letters of torch's own message
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
        select: makes the selection that reads.
    """

    model: nn.Module
    catalog: Catalog
    objects: Objects
    original: Mapping[str, str]
    on_progress: ProgressCallback | None
    select: Callable[..., Selection] = Selection

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
        if is_faking():
            raise ValueError("there is no memory to fill under FakeTensorMode: load the module outside of it")
        how = _How(
            strict=strict, device=_settled(device), dtype=None if dtype is None else getattr(torch, dtype)
        )
        reshard(self.model)
        if is_plain(self.model):
            found = self._match(how)
            places = self._places(found, how)
            catalog = replace(self.catalog, entries={name: place.entry for name, place in places.items()})
            with together(places.values(), self.objects) as ranks:
                on_progress = ranks.heeded(self.on_progress)
                selection = self.select(catalog, self.objects, [*places], on_progress)
                self._read_into(selection, places, verify=verify, sha256=sha256)
                ranks.all_have_read()
                for place in places.values():
                    place.settle()
            for slot in found.left:
                how.move(slot)
            tell_fsdp(self.model)
            result = LoadResult([*found.missing], [*found.unexpected])
        else:
            names = [*self.original.values()]
            selection = self.select(self.catalog, self.objects, names, self.on_progress)
            result = self._hand_over(selection.read(verify=verify, sha256=sha256), how)
        tally, size = self.objects.tally, self.objects.size
        size = tally.bytes_read if size is None else size
        return result, facts_of(tally, selection.sources, self.catalog.format, "filled", size)

    def _match(self, how: _How) -> Match:
        found = match(slots(self.model), self._shapes())
        refuse_misfit(found, self.objects.uri, strict=how.strict, original=self.original)
        return found

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Return what torch has for shapes of the tensors, by what they are called in the module."""
        entries = {new: self.catalog.entries[name] for new, name in self.original.items()}
        return {
            new: as_torch_counts(entry.dtype, entry.shape, self.objects.uri) for new, entry in entries.items()
        }

    def _places(self, found: Match, how: _How) -> dict[str, Place]:
        """Return where the checkpoint's tensors go, by its names for them."""
        places: dict[str, Place] = {}
        for slot, name in found.chosen.items():
            entry = self.catalog.entries[self.original[name]]
            if is_sharded(slot.tensor):
                places[self.original[name]] = ShardedPlace(slot, entry, how.dtype_of(slot.tensor), how.device)
            else:
                places[self.original[name]] = _PlainPlace(slot, entry, how.target(slot))
        return places

    def _read_into(
        self, selection: Selection, places: Mapping[str, Place], *, verify: Verify, sha256: str | None
    ) -> None:
        telling = partial(_telling, partly=any(place.in_place for place in places.values()))
        targets = {name: place.target for name, place in places.items()}
        selection.fill(targets, verify=verify, sha256=sha256, writing=telling())
        if verify is True and any(source.verified is None for source in selection.sources):
            with telling():
                raise unverifiable(self.objects.uri)

    def _hand_over(self, tensors: dict[str, torch.Tensor], how: _How) -> LoadResult:
        """Let the module's own code take the tensors, as torch has it do."""
        places = slots(self.model)
        assign = how.device is not None or how.dtype is not None or any(p.tensor.is_meta for p in places)
        state = self._state(tensors, places, how if assign else None)
        with _telling(partly=True):
            try:
                missing, unexpected = self.model.load_state_dict(state, strict=False, assign=assign)
            except RuntimeError as error:
                shapes = match([slot for slot in places if slot.is_plain], self._shapes()).mismatched
                refuse_misfit(
                    Match(mismatched=shapes), self.objects.uri, strict=False, original=self.original
                )
                raise _as_torch_says(error, self.objects.uri) from error
            places = slots(self.model)
            found = self._left(places, missing, unexpected)
            refuse_misfit(found, self.objects.uri, strict=how.strict, original=self.original)
        for slot in places:
            how.move(slot)
        return LoadResult([*found.missing], unexpected)

    def _state(
        self, tensors: dict[str, torch.Tensor], places: list[Slot], how: _How | None
    ) -> dict[str, torch.Tensor]:
        """Return the state dict that the module is given: what it is to have, if it takes that as it is."""
        state = {new: tensors[name] for new, name in self.original.items()}
        if how is not None:
            state = {name: how.cast(tensor) for name, tensor in state.items()}
        for slot in places:
            present = [name for name in slot.names if name in state]
            if present:
                tensor = state[present[-1]]
                state |= dict.fromkeys(slot.names, tensor if how is None else how.assigned(slot, tensor))
        return state

    def _left(self, places: list[Slot], missing: list[str], unexpected: list[str]) -> Match:
        shapes = self._shapes()
        found = Match(
            missing=dict.fromkeys(missing, ()), unexpected={n: shapes.get(n, ()) for n in unexpected}
        )
        for slot in places:
            lacking = slot.required if slot.is_stranded else [n for n in slot.names if n in found.missing]
            if lacking:
                found.left.append(slot)
                found.missing |= dict.fromkeys(lacking, tuple(slot.tensor.shape) if slot.is_plain else ())
        return found


@dataclass(frozen=True)
class _PlainPlace:
    """A slot of plain memory; see `Place`."""

    slot: Slot
    entry: TensorEntry
    target: torch.Tensor

    @property
    def in_place(self) -> bool:
        """Whether it is read into the module's own memory."""
        return self.target is self.slot.tensor

    def settle(self) -> None:
        """Have the module hold what was read."""
        if self.in_place:  # what autograd kept of it is not valid any more
            torch.autograd.graph.increment_version(self.target)
        else:
            self.slot.put(self.target)


@dataclass(frozen=True)
class _How:
    """What was asked for, where the module's tensors are concerned."""

    strict: bool
    device: torch.device | None
    dtype: torch.dtype | None

    def target(self, slot: Slot) -> torch.Tensor:
        """Return what a slot's tensor is read into: itself, if it is where and of the dtype it is to be."""
        tensor = slot.tensor
        dtype, device = self.dtype_of(tensor), self._device(tensor)
        if (dtype, device) == (tensor.dtype, tensor.device) and not _repeats(tensor):
            return tensor
        return _empty_like(tensor, dtype, device)

    def cast(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor of the checkpoint as it is to be."""
        return tensor.to(device=self.device, dtype=self.dtype_of(tensor))

    def assigned(self, slot: Slot, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor as what a slot is to hold: one parameter, under however many names."""
        if not slot.is_plain:
            return tensor
        tensor = tensor.to(device=self._device(slot.tensor), dtype=self.dtype_of(slot.tensor))
        if isinstance(slot.tensor, nn.Parameter):
            return nn.Parameter(tensor, requires_grad=slot.tensor.requires_grad)
        return tensor

    def dtype_of(self, tensor: torch.Tensor) -> torch.dtype:
        """Return what a tensor's dtype is to be."""
        return self.dtype if self.dtype is not None and is_castable(tensor.dtype) else tensor.dtype

    def _device(self, tensor: torch.Tensor) -> torch.device:
        return self.device or (torch.device("cpu") if tensor.is_meta else tensor.device)

    def move(self, slot: Slot) -> None:
        """Bring what the checkpoint has nothing for to where the module is to be."""
        if slot.tensor.is_meta and slot.optional:
            shape, dtype = slot.tensor.shape, slot.tensor.dtype
            slot.put(torch.zeros(shape, dtype=dtype, device=self.device or "cpu"))
        elif self.device is not None and slot.tensor.device != self.device and not slot.tensor.is_meta:
            slot.put(slot.tensor.detach().to(self.device))


def _empty_like(tensor: torch.Tensor, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return memory of the same shape, laid out alike where no element is skipped or repeated.

    `torch.empty_like` of a tensor on ``meta`` does as much, and imports sympy for it: a third of a second.
    """
    steps = sorted(zip(tensor.stride(), tensor.shape, strict=True))
    dense = itertools.accumulate((length for _, length in steps), operator.mul, initial=1)
    if tensor.numel() and all(step == next_ for (step, _), next_ in zip(steps, dense, strict=False)):
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype, device=device)
    return torch.empty(tensor.shape, dtype=dtype, device=device)


def _repeats(tensor: torch.Tensor) -> bool:
    """Whether several of its elements are one in memory, which cannot hold what a checkpoint has for them."""
    return any(step == 0 and length > 1 for step, length in zip(tensor.stride(), tensor.shape, strict=True))


def _as_torch_says(error: RuntimeError, uri: object) -> StateDictError:
    said = " ".join(str(error).split())[:_SAID]
    hint = "Build the module that the checkpoint was saved from."
    return StateDictError(f"it does not fit the module: {said}", uri=uri, hint=hint)


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
