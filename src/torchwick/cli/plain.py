"""Spares typer the conversion of values that are what they should be already.

Since 0.29 typer hands every value to pydantic, even the default of an option that was left out. Importing
pydantic and building its validators takes a quarter of the time that botocore takes to start.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from typer.core import TyperCommand, TyperGroup

__all__ = ["PlainCommand", "PlainGroup"]


class PlainCommand(TyperCommand):
    """Takes defaults, and the texts given for arguments, as they are; all arguments are texts."""

    def get_params(self, ctx: Any) -> Any:
        """Return the parameters, those of ``--help`` and the like included."""
        return _plain(super().get_params(ctx))


class PlainGroup(TyperGroup):
    """Does the same for the options of a group."""

    def get_params(self, ctx: Any) -> Any:
        """Return the parameters, those of ``--help`` and the like included."""
        return _plain(super().get_params(ctx))


def _plain(parameters: Any) -> Any:
    for parameter in parameters:
        if not isinstance(parameter.process_value, partial):
            parameter.process_value = partial(_process, parameter, parameter.process_value)
    return parameters


def _process(parameter: Any, convert: Any, ctx: Any, value: Any) -> Any:
    left_out = not parameter.required and (value is None or value == parameter.default)
    is_text = parameter.param_type_name == "argument" and isinstance(value, str)
    return value if left_out or is_text else convert(ctx, value)
