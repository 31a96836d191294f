"""Other names of a tensor, as safetensors notes them in the metadata: the name left out, the name kept."""

from __future__ import annotations

from dataclasses import replace

from torchwick.formats.catalog import Catalog

__all__ = ["told_ties", "with_ties"]

_OF_INDEXES = ("total_size", "total_parameters")
_OTHERS = ("format", *_OF_INDEXES)  # what safetensors and writers of indexes put there


def told_ties(catalog: Catalog) -> dict[str, str]:
    """Return names that are no entries, each with the entry that it is another name of.

    So `safetensors.torch.save_model` notes them: ``{"lm_head.weight": "embed.weight"}``.
    """
    return {
        other: name
        for other, name in catalog.metadata.items()
        if name in catalog.entries and other not in catalog.entries and other not in _OTHERS
    }


def with_ties(catalog: Catalog) -> Catalog:
    """Return the catalog with an entry for each of them."""
    ties = {other: catalog.entries[name] for other, name in told_ties(catalog).items()}
    metadata = {
        key: text for key, text in catalog.metadata.items() if key not in ties and key not in _OF_INDEXES
    }
    return replace(catalog, entries=catalog.entries | ties, metadata=metadata)
