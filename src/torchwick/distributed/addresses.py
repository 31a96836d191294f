"""Where a checkpoint is, and with which settings it is looked at. It pickles, and holds no connection."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Self

from torchwick.config import S3Config, TransferConfig
from torchwick.errors import AccessDeniedError, ObjectNotFoundError, URIError
from torchwick.store import ObjectInfo, Store, open_store
from torchwick.transfer import list_directory
from torchwick.uri import URI, parse

__all__ = ["Address"]

_GIVE_ONE = "Name it in the constructor, or as checkpoint_id."


@dataclass(frozen=True)
class Address:
    """The address of a checkpoint.

    Attributes:
        given: the address; None: it is still to be given.
        s3: who asks, and which S3.
        transfer: how bytes are moved.
    """

    address: URI | None
    s3: S3Config
    transfer: TransferConfig

    @classmethod
    def given(
        cls, text: str | os.PathLike[str] | None, s3: S3Config | None, transfer: TransferConfig | None
    ) -> Self:
        """Return the address that is given by a text, or by none so far.

        Raises:
            URIError: it is none.
        """
        uri = None if text is None else parse(text)
        return cls(uri, s3 or S3Config(), transfer or TransferConfig())

    @staticmethod
    def is_one(text: str | os.PathLike[str]) -> bool:
        """Return whether a text is an address.

        Example:
            >>> Address.is_one("s3://models/step-1000"), Address.is_one("gs://models/step-1000")
            (True, False)
        """
        try:
            parse(text)
        except URIError:
            return False
        return True

    def moved(self, text: str | os.PathLike[str]) -> Self:
        """Return another address with the same settings.

        Raises:
            URIError: it is none.
        """
        return replace(self, address=parse(text))

    @property
    def text(self) -> str | None:
        """The address as text without secrets, or None."""
        return None if self.address is None else str(self.address)

    @property
    def uri(self) -> URI:
        """The address.

        Raises:
            URIError: none was given.
        """
        if self.address is None:
            raise URIError("no checkpoint is named", hint=_GIVE_ONE)
        return self.address

    @property
    def directory(self) -> URI:
        """The directory.

        Raises:
            URIError: none was given, or it is the address of one version of an object.
        """
        return self.uri.as_directory()

    @property
    def store(self) -> Store:
        """What it is read from."""
        return open_store(self.uri, self.s3, self.transfer.timeout)

    def listed(self) -> dict[str, ObjectInfo]:
        """Return what is in the directory, by name; nothing where that cannot be told.

        Raises:
            StoreError: the store failed.
        """
        try:
            return list_directory(self.directory, self.store, self.transfer) or {}
        except (AccessDeniedError, ObjectNotFoundError):
            return {}
