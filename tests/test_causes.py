"""Each cause of failure ends in the right error, which names the fix and no secret; the page shows them all.

`TORCHWICK_WRITE_PAGES=1 pytest tests/test_causes.py` writes the messages into docs/errors.md.
"""

from __future__ import annotations

import logging
import os
import pickle
import re
import textwrap
import traceback
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import torchwick
from causes import (
    ACCESS_KEY,
    CAUSES,
    CUSTOMER_KEY,
    MODEL,
    PASSWORD,
    QUICK,
    SECRET_KEY,
    SECRETS,
    TOKEN,
    Cause,
    World,
)
from faulty import FaultyServer
from relay import Relay
from torchwick.demo.environment import aws_environment
from torchwick.uri import parse

if TYPE_CHECKING:
    import trustme

    from torchwick.demo.server import SeaweedFS

PAGE = Path(__file__).parents[1] / "docs" / "errors.md"


@dataclass(frozen=True)
class Outcome:
    """What a cause led to."""

    error: torchwick.TorchwickError
    uri: str
    folder: Path
    log: str
    signatures: frozenset[str]


@pytest.fixture(scope="module")
def real_models(s3_server: SeaweedFS, s3_client: Any) -> None:
    """Objects that are there, for those that are not."""
    with aws_environment(s3_server.environment()):
        if "models" not in [bucket["Name"] for bucket in s3_client.list_buckets()["Buckets"]]:
            s3_client.create_bucket(Bucket="models")
        for key in ("resnet.pt", "vision/v1/resnet.pt"):
            s3_client.put_object(Bucket="models", Key=key, Body=MODEL)


@pytest.fixture(scope="module")
def outcomes(
    s3_server: SeaweedFS, real_models: None, authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Outcome]:
    """Bring every cause about, once, each in a world of its own."""
    folder = tmp_path_factory.mktemp("causes")
    ca_file = folder / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    return {
        each.title: _bring_about(each, s3_server, authority, ca_file, tmp_path_factory.mktemp("cause"))
        for each in CAUSES
    }


def _bring_about(
    each: Cause, seaweed: SeaweedFS, authority: trustme.CA, ca_file: Path, folder: Path
) -> Outcome:
    with ExitStack() as open_, pytest.MonkeyPatch.context() as patch:
        server = open_.enter_context(FaultyServer())
        secure = open_.enter_context(FaultyServer(authority=authority, ca_file=ca_file))
        misnamed = open_.enter_context(
            FaultyServer(authority=authority, ca_file=ca_file, hosts=("elsewhere.example.com",))
        )
        relay = open_.enter_context(Relay(password="open sesame"))
        open_.enter_context(aws_environment(server.environment()))
        for name, value in {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_SESSION_TOKEN": TOKEN,
            "HOME": str(folder),
        }.items():
            patch.setenv(name, value)
        patch.delenv("NO_PROXY")
        patch.chdir(folder)
        server.put("models/resnet.pt", MODEL)
        world = World(server, secure, misnamed, seaweed, relay, 9, folder, patch)
        uri = each.arrange(world) or each.uri
        log = open_.enter_context(_everything_logged())
        with pytest.raises(torchwick.TorchwickError) as caught:
            each.call(uri, **({"transfer": QUICK} | each.options))
        signed = (request.headers.get("authorization", "") for request in server.requests + secure.requests)
        signatures = frozenset(text.rpartition("Signature=")[2] for text in signed if "Signature=" in text)
        return Outcome(caught.value, uri, folder, "\n".join(log), signatures)


class _everything_logged:  # noqa: N801 - a context manager
    """Collect what anyone in the process logs at any level, as text."""

    def __enter__(self) -> list[str]:
        self.lines: list[str] = []
        handler = self.handler = logging.Handler(logging.NOTSET)
        handler.emit = lambda record: self.lines.append(handler.format(record))  # type: ignore[method-assign]
        self.before = logging.root.level
        logging.root.addHandler(handler)
        logging.root.setLevel(logging.DEBUG)
        return self.lines

    def __exit__(self, *_: object) -> None:
        logging.root.removeHandler(self.handler)
        logging.root.setLevel(self.before)


@pytest.fixture(params=CAUSES, ids=lambda each: each.title)
def each(request: pytest.FixtureRequest) -> Cause:
    cause: Cause = request.param
    return cause


@pytest.fixture
def outcome(each: Cause, outcomes: dict[str, Outcome]) -> Outcome:
    return outcomes[each.title]


def test_the_class_is_the_one_of_the_cause(each: Cause, outcome: Outcome) -> None:
    assert type(outcome.error) is each.kind, str(outcome.error)


def test_the_message_says_what_happened(each: Cause, outcome: Outcome) -> None:
    assert each.says in str(outcome.error)


def test_the_message_names_the_object(each: Cause, outcome: Outcome) -> None:
    if outcome.error.uri is None:
        assert each.kind is torchwick.URIError  # whose text may be a secret
    else:
        named = str(parse(outcome.uri))
        # Whatever it is, it is in the directory.
        within = named[: named.rindex("/") + 1] if named.endswith(("/", ".index.json")) else named
        assert outcome.error.uri in (named, within) or outcome.error.uri.startswith(f"{within.rstrip('/')}/")
        assert str(outcome.error).startswith(f"{outcome.error.uri}: ")


def test_the_message_says_what_to_do(each: Cause, outcome: Outcome) -> None:
    hint = outcome.error.hint
    assert hint
    assert hint in str(outcome.error)
    assert len(hint.split()) >= 3
    assert str(outcome.error).endswith((".", "?"))


def test_the_message_says_who_asked(each: Cause, outcome: Outcome) -> None:
    if not each.asked_as:
        return
    assert isinstance(outcome.error, torchwick.StoreError)
    assert outcome.error.identity
    assert f"asked as {outcome.error.identity}" in str(outcome.error)


def test_it_crosses_process_borders(each: Cause, outcome: Outcome) -> None:
    twin = pickle.loads(pickle.dumps(outcome.error))
    assert (type(twin), str(twin), vars(twin)) == (
        type(outcome.error),
        str(outcome.error),
        vars(outcome.error),
    )


def test_no_secret_is_shown(each: Cause, outcome: Outcome) -> None:
    error = outcome.error
    shown = {
        "str": str(error),
        "repr": repr(error),
        "attributes": repr(vars(error)),
        "log": outcome.log,
        "traceback": _traceback_with_locals(error),
    }
    for place, text in shown.items():
        for secret in (*SECRETS, *outcome.signatures):
            # What the caller put into the address stands in the caller's own frame in any case.
            if not (place == "traceback" and secret in outcome.uri):
                assert secret not in text, f"{place} of {each.title}"


def _traceback_with_locals(error: BaseException) -> str:
    """What a tool that shows local variables would print, from torchwick's own frames on."""
    below = error.__traceback__.tb_next if error.__traceback__ else None
    shown = traceback.TracebackException(type(error), error, below, capture_locals=True)
    return "".join(shown.format())


def test_secrets_are_looked_for_in_earnest() -> None:
    def fails(secret: str) -> None:
        raise torchwick.StoreError("it failed")

    with pytest.raises(torchwick.StoreError) as caught:
        fails(PASSWORD)
    assert PASSWORD in _traceback_with_locals(caught.value)
    assert repr(CUSTOMER_KEY) in SECRETS


# -- the page ----------------------------------------------------------------------------------------------

_GENERATED = re.compile(r"<!-- causes of (\w+) -->\n.*?<!-- end -->", re.DOTALL)


def test_the_page_shows_every_cause(outcomes: dict[str, Outcome]) -> None:
    page = PAGE.read_text(encoding="utf-8")
    written = _GENERATED.sub(lambda match: _section(match[1], outcomes), page)
    if os.environ.get("TORCHWICK_WRITE_PAGES"):
        PAGE.write_text(written, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == written
    assert {each.kind.__name__ for each in CAUSES} == set(_GENERATED.findall(page))


def _section(kind: str, outcomes: dict[str, Outcome]) -> str:
    lines = [f"<!-- causes of {kind} -->"]
    for each in CAUSES:
        if each.kind.__name__ == kind:
            message = _as_on_the_page(outcomes[each.title])
            wrapped = textwrap.fill(message, 110, break_long_words=False, break_on_hyphens=False)
            lines += ["", f"**{each.title}**", "", "```text", wrapped, "```"]
    return "\n".join([*lines, "", "<!-- end -->"])


def _as_on_the_page(outcome: Outcome) -> str:
    """Put examples in the place of what differs from run to run."""
    message = str(outcome.error).replace(str(outcome.folder), "~/.aws")
    message = re.sub(r"AKIA…\w{4}", "AKIA…MPLE", message)
    message = re.sub(r"127\.0\.0\.1:(?!9\b)\d+", "127.0.0.1:9000", message)
    return re.sub(r"whose \d+ bytes", "whose 2723 bytes", message)
