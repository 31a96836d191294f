"""Options that say who asks and which S3: one for each field of `S3Config`, alike in every command."""

from __future__ import annotations

import functools
import inspect
import shlex
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from torchwick.config import S3Config

__all__ = ["KEY_FILE", "as_options", "option_of", "s3_options"]

KEY_FILE = "--sse-customer-key-file"

_PANEL = "S3"
_RAW_KEY_BYTES = 32


def s3_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command these options in the place of its parameter ``s3``, and hand it one `S3Config`.

    Settings that contradict each other are a wrong command line.
    """
    own = inspect.signature(command, eval_str=True)
    options = inspect.signature(_config, eval_str=True)

    @functools.wraps(command)
    def run(**given: Any) -> None:
        chosen = {name: given.pop(name) for name in options.parameters}
        try:
            s3 = _config(**chosen)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        command(s3=s3, **given)

    parameters: list[inspect.Parameter] = []
    for parameter in own.parameters.values():
        parameters += options.parameters.values() if parameter.name == "s3" else [parameter]
    run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _config(
    *,
    profile: Annotated[
        str | None, typer.Option(help="A profile of the AWS configuration.", rich_help_panel=_PANEL)
    ] = None,
    region: Annotated[str | None, typer.Option(help="The AWS region.", rich_help_panel=_PANEL)] = None,
    endpoint_url: Annotated[
        str | None, typer.Option(help="An S3-compatible server.", rich_help_panel=_PANEL)
    ] = None,
    anonymous: Annotated[
        bool, typer.Option("--anonymous", help="Send unsigned requests.", rich_help_panel=_PANEL)
    ] = False,
    role_arn: Annotated[
        str | None, typer.Option(help="An IAM role to assume.", rich_help_panel=_PANEL)
    ] = None,
    external_id: Annotated[
        str | None, typer.Option(help="What the role's owner wants to hear.", rich_help_panel=_PANEL)
    ] = None,
    requester_pays: Annotated[
        bool,
        typer.Option("--requester-pays", help="Accept the bill for the requests.", rich_help_panel=_PANEL),
    ] = False,
    # A file: the command line is there for all to see, in the list of processes and the shell's history.
    sse_customer_key_file: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            readable=True,
            help="The key the object is encrypted with: 32 bytes, or their base64 text.",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    ca_bundle: Annotated[
        str | None, typer.Option(help="A PEM file of certificate authorities.", rich_help_panel=_PANEL)
    ] = None,
    addressing_style: Annotated[
        Literal["auto", "path", "virtual"],
        typer.Option(help="Where the bucket's name goes: path or host.", rich_help_panel=_PANEL),
    ] = "auto",
) -> S3Config:
    return S3Config(
        profile=profile,
        region=region,
        endpoint_url=endpoint_url,
        anonymous=anonymous,
        role_arn=role_arn,
        external_id=external_id,
        requester_pays=requester_pays,
        sse_customer_key=None if sse_customer_key_file is None else _key(sse_customer_key_file),
        ca_bundle=ca_bundle,
        addressing_style=addressing_style,
    )


def as_options(s3: S3Config) -> list[str]:
    """Return the options that make a `S3Config`, as a shell takes them: without the key's file and passwords.

    Example:
        >>> as_options(S3Config(region="eu-west-3", anonymous=True, profile="my own"))
        ['--profile', "'my own'", '--region', 'eu-west-3', '--anonymous']
    """
    options: list[str] = []
    for field in fields(s3):
        value = getattr(s3, field.name)
        if field.name == "sse_customer_key" and value is not None:
            options += [KEY_FILE, "…"]
        elif value is True:
            options.append(option_of(field.name))
        elif value != field.default:
            shown = "…" if "@" in value and "//" in value else shlex.quote(value)
            options += [option_of(field.name), shown]
    return options


def option_of(name: str) -> str:
    """Return the option of a parameter.

    Example:
        >>> option_of("endpoint_url")
        '--endpoint-url'
    """
    return f"--{name.replace('_', '-')}"


def _key(file: Path) -> bytes | str:
    """Return the key as it is in the file, or its text without the line's end."""
    content = file.read_bytes()
    return content if len(content) == _RAW_KEY_BYTES else content.decode("ascii", "replace").strip()
