"""The AWS environment that a demo runs in: the one given, and nothing of the user's own."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

QUIET: Final = {
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": "*",
}


def is_network_setting(name: str) -> bool:
    """Tell whether an environment variable steers where S3 clients connect, and as whom."""
    return name.startswith(("AWS_", "S3_")) or name.upper() in {
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "NO_PROXY",
        "REQUESTS_CA_BUNDLE",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
    }


@contextmanager
def aws_environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set `variables`, and hide all other AWS and proxy settings, for the duration of the context.

    The process's own environment is changed, and so that of its child processes and other threads.
    """
    hidden = {name: value for name, value in os.environ.items() if is_network_setting(name)}
    for name in hidden:
        del os.environ[name]
    ours = {**QUIET, **variables}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
        os.environ.update(hidden)
