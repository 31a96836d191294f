"""Who asks, in words for messages: which key, and where it was found. Never a secret."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import botocore.session
from botocore.exceptions import NoCredentialsError

from torchwick.config import S3Config

__all__ = ["SOURCES", "asked_as", "key_hint", "role_of", "searched"]

SOURCES = {
    "env": "environment variables",
    "assume-role": "the profile's role",
    "assume-role-with-web-identity": "web identity token",
    "sso": "single sign-on",
    "login": "console login",
    "shared-credentials-file": "credentials file",
    "custom-process": "credential process",
    "config-file": "configuration file",
    "ec2-credentials-file": "AWS_CREDENTIAL_FILE",
    "boto-config": "boto configuration",
    "container-role": "container's role",
    "iam-role": "instance's role",
}
"""Where botocore looks for credentials, in its order, by the names it gives the places."""

_AMAZONS_LENGTH = 16  # characters at least (IAM API reference, AccessKey); others' may be a word
_OF_A_PROFILE = {"assume-role", "sso", "login", "shared-credentials-file", "custom-process", "config-file"}


def key_hint(access_key: str) -> str:
    """Return enough of an access key's identifier to know it by, as the AWS command line shows it.

    Example:
        >>> key_hint("AKIAIOSFODNN7EXAMPLE")
        'AKIA…MPLE'
    """
    return (
        f"{access_key[:4]}…{access_key[-4:]}" if len(access_key) >= _AMAZONS_LENGTH else f"{access_key[:2]}…"
    )


def asked_as(session: botocore.session.Session, config: S3Config) -> str:
    """Return as whom requests are signed; credentials are found or renewed for that, if need be.

    Raises:
        BotoCoreError: there are none, or they cannot be had.
        ClientError: a service that gives credentials refused.

    Example:
        >>> asked_as(botocore.session.Session(), S3Config(anonymous=True))
        'nobody (unsigned)'
    """
    if config.anonymous:
        return "nobody (unsigned)"
    credentials: Any = session.get_credentials()
    if credentials is None:
        raise NoCredentialsError
    key = credentials.get_frozen_credentials().access_key
    if config.role_arn is not None:
        return f"{config.role_arn}, access key {key_hint(key)}"
    return f"access key {key_hint(key)} from the {_place(session, credentials.method)}"


def _place(session: botocore.session.Session, method: str) -> str:
    place = SOURCES.get(method, method).removeprefix("the ")
    if method not in _OF_A_PROFILE:
        return place
    return f"{place}, profile {session.profile or 'default'}"


def role_of(config: S3Config) -> str:
    """Return which role is to be assumed, in words."""
    told = os.environ.get("AWS_ROLE_ARN")
    return config.role_arn or (f"the role in AWS_ROLE_ARN, {told}," if told else "the profile's role")


def searched(session: botocore.session.Session, config: S3Config) -> str:
    """Return the places where credentials were looked for, as a list in words."""
    if config.role_arn is not None:  # they were to assume it
        session = botocore.session.Session(profile=config.profile)
    methods: Iterable[str] = [p.METHOD for p in session.get_component("credential_provider").providers]
    return ", ".join(dict.fromkeys(SOURCES.get(method, method) for method in methods))
