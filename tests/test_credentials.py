"""Credentials: found where botocore finds them, and good enough for a server that checks every signature.

The S3 here is SeaweedFS, which is its own STS too: it refuses a wrong secret, and a session token that it did
not issue. A gate in front of it shows which keys signed which request, and refuses those that a test has
ended.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias

import botocore.session
import pytest
import torch
from botocore.exceptions import BotoCoreError

import torchwick
from checkpoints.base import save_bytes
from conftest import run_python
from oracle import assert_same
from standins import (
    READER,
    WEB_READER,
    Call,
    ContainerAgent,
    Gate,
    IdentityProvider,
    InstanceMetadata,
    Issue,
    Keys,
    Reply,
    RoleServer,
    Service,
    SingleSignOn,
    refusal,
    role_refusal,
    soon,
)
from torchwick import CredentialsError, S3Config, TransferConfig
from torchwick.demo.environment import aws_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

STATE = {"weight": torch.arange(100_000, dtype=torch.float32)}
MODEL = save_bytes(STATE)
URI = "s3://models/new.pt"
OTHER_URI = "s3://models/other.pt"  # a signature serves one object only: another one needs new signing
CONNECTIONS = 2
PARTS = TransferConfig(part_size=50_000, connections=CONNECTIONS)
SECONDS = 5.0  # in which a failure has to show, however long botocore would go on trying
AT_ONCE = 300.0  # seconds to live: so few that botocore renews at every use
DENIED = f"User: someone is not authorized to perform: sts:AssumeRole on resource: {READER}"  # Amazon's words
LONG = 3600.0  # seconds to live: so many that botocore sees no need to renew


@pytest.fixture(scope="module")
def provider() -> Iterator[IdentityProvider]:
    with IdentityProvider() as provider:
        yield provider


@pytest.fixture(scope="module")
def server(provider: IdentityProvider) -> Iterator[RoleServer]:
    """S3 and STS, with the model stored twice."""
    server = RoleServer(provider)
    with aws_environment(server.environment()):
        server.start()
        client = server.client()
        client.create_bucket(Bucket="models")
        for key in ("new.pt", "other.pt"):
            client.put_object(Bucket="models", Key=key, Body=MODEL)
        client.close()
    yield server
    server.close()


@pytest.fixture
def account(
    server: RoleServer, isolated_environment: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Account]:
    """A user without any credentials yet, who reaches the real S3 and STS through a gate."""
    with ExitStack() as services:
        gate = services.enter_context(Gate(server.endpoint_url))
        yield Account(server, gate, monkeypatch, tmp_path, services)


@dataclass
class Account:
    """What one user has set: variables, files, and the services that run around the process."""

    server: RoleServer
    gate: Gate
    monkeypatch: pytest.MonkeyPatch
    directory: Path
    services: ExitStack
    files: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.set(AWS_ENDPOINT_URL=self.gate.url, AWS_REGION="us-east-1", AWS_DEFAULT_REGION="us-east-1")
        self.set(AWS_CONFIG_FILE=str(self.directory / "config"))
        self.set(AWS_SHARED_CREDENTIALS_FILE=str(self.directory / "credentials"))

    def set(self, **variables: str) -> None:
        for name, value in variables.items():
            self.monkeypatch.setenv(name, value)

    def file(self, name: str, content: str) -> Path:
        """Write a file as other programs do: all of it at once."""
        path = self.directory / name
        path.with_suffix(".new").write_text(content)
        return path.with_suffix(".new").replace(path)

    def profile(self, name: str, /, **settings: str) -> None:
        """Add settings to a profile of ~/.aws/config."""
        self._add("config", name if name == "default" else f"profile {name}", settings)

    def stored(self, name: str, /, **settings: str) -> None:
        """Add settings to a profile of ~/.aws/credentials."""
        self._add("credentials", name, settings)

    def _add(self, file: str, section: str, settings: Mapping[str, str]) -> None:
        self.files.setdefault(file, {}).setdefault(section, {}).update(settings)
        self.file(file, _ini(self.files[file]))

    def instance(self, issue: Issue) -> InstanceMetadata:
        """Let the process run on an EC2 instance."""
        service = self.services.enter_context(InstanceMetadata(issue))
        self.monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
        self.set(AWS_EC2_METADATA_SERVICE_ENDPOINT=service.url)
        return service

    def container(self, issue: Issue) -> ContainerAgent:
        """Let the process run in an ECS task."""
        agent = self.services.enter_context(ContainerAgent(issue))
        self.set(AWS_CONTAINER_CREDENTIALS_FULL_URI=agent.uri, AWS_CONTAINER_AUTHORIZATION_TOKEN=agent.token)
        return agent

    def process(self, keys: Keys) -> None:
        """Let a program print these credentials from now on."""
        printed = self.file("printed.json", json.dumps({"Version": 1, **_as_json(keys)}))
        self.profile("default", credential_process=f"cat {printed}")

    def role(self, arn: str = READER, **settings: str) -> None:
        """Let the default profile be a role that the administrator's keys assume."""
        self.stored("base", **_as_settings(self.server.own))
        self.profile("default", **{"role_arn": arn, "source_profile": "base", **settings})

    def web_identity(self, web_token: str) -> None:
        """Let the process run in a pod with a service account's token."""
        path = self.file("web-token", web_token)
        self.set(AWS_WEB_IDENTITY_TOKEN_FILE=str(path), AWS_ROLE_ARN=WEB_READER)

    def load(self, uri: str = URI, s3: S3Config | None = None) -> list[str | None]:
        """Load the model, compare it, and return who signed the requests, each once, in the order of use."""
        before = len(self.gate.reads)
        assert_same(torchwick.load(uri, s3=s3, transfer=PARTS), STATE)
        return list(dict.fromkeys(call.signer for call in self.gate.reads[before:]))


def _ini(sections: Mapping[str, Mapping[str, str]]) -> str:
    return "\n".join(
        f"[{section}]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items())
        for section, settings in sections.items()
    )


def _as_settings(keys: Keys) -> dict[str, str]:
    settings = {"aws_access_key_id": keys.access_key, "aws_secret_access_key": keys.secret_key}
    return settings if keys.token is None else {**settings, "aws_session_token": keys.token}


def _as_variables(keys: Keys) -> dict[str, str]:
    return {name.upper(): value for name, value in _as_settings(keys).items()}


def _as_json(keys: Keys) -> dict[str, str]:
    named = {"AccessKeyId": keys.access_key, "SecretAccessKey": keys.secret_key}
    return named if keys.token is None else {**named, "SessionToken": keys.token, "Expiration": keys.end}


Source: TypeAlias = "Callable[[Account, Keys], object]"


def in_variables(account: Account, keys: Keys) -> None:
    account.set(**_as_variables(keys))


def in_the_credentials_file(account: Account, keys: Keys) -> None:
    account.stored("default", **_as_settings(keys))


def in_the_config_file(account: Account, keys: Keys) -> None:
    account.profile("default", **_as_settings(keys))


def in_the_profile_of_the_environment(account: Account, keys: Keys) -> None:
    account.stored("work", **_as_settings(keys))
    account.set(AWS_PROFILE="work")


def from_a_process(account: Account, keys: Keys) -> None:
    account.process(keys)


def from_a_container(account: Account, keys: Keys) -> None:
    account.container(lambda: keys)


def from_a_pod(account: Account, keys: Keys) -> None:
    """EKS gives the agent's token in a file, which it replaces from time to time."""
    agent = account.container(lambda: keys)
    account.monkeypatch.delenv("AWS_CONTAINER_AUTHORIZATION_TOKEN")
    account.set(AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE=str(account.file("pod-token", agent.token)))


def from_an_instance(account: Account, keys: Keys) -> None:
    account.instance(lambda: keys)


PERMANENT: list[Source] = [
    in_variables,
    in_the_credentials_file,
    in_the_config_file,
    in_the_profile_of_the_environment,
    from_a_process,
]
SOURCES: list[Source] = [*PERMANENT, from_a_container, from_a_pod, from_an_instance]


class TestEverySource:
    """What the source gives is what signs; what does not belong together is refused by the server."""

    @pytest.mark.parametrize("source", PERMANENT)
    def test_permanent_keys(self, account: Account, source: Source) -> None:
        source(account, account.server.own)
        assert account.load() == [account.server.own.access_key]
        assert not any("x-amz-security-token" in call.headers for call in account.gate.reads)

    @pytest.mark.parametrize("source", SOURCES)
    def test_temporary_keys(self, account: Account, source: Source) -> None:
        keys = account.server.session()
        source(account, keys)
        assert account.load() == [keys.access_key]
        assert {call.headers["x-amz-security-token"] for call in account.gate.reads} == {keys.token}

    @pytest.mark.parametrize("source", SOURCES)
    def test_a_secret_of_another_key(self, account: Account, source: Source) -> None:
        source(account, replace(account.server.session(), secret_key="wr0ng"))
        with pytest.raises(CredentialsError) as caught:
            torchwick.load(URI)
        assert caught.value.code == "SignatureDoesNotMatch"
        assert "wr0ng" not in str(caught.value)

    @pytest.mark.parametrize("source", PERMANENT)
    def test_the_token_forgotten(self, account: Account, source: Source) -> None:
        source(account, replace(account.server.session(), token=None))
        with pytest.raises(CredentialsError):
            torchwick.load(URI)

    @pytest.mark.parametrize("source", SOURCES)
    def test_a_token_of_other_keys(self, account: Account, source: Source) -> None:
        source(account, replace(account.server.session(), token=account.server.session().token))
        with pytest.raises(CredentialsError):
            torchwick.load(URI)


class TestProfiles:
    def test_in_code(self, account: Account) -> None:
        account.stored("work", **_as_settings(account.server.successor))
        in_the_credentials_file(account, account.server.own)
        assert account.load(s3=S3Config(profile="work")) == [account.server.successor.access_key]
        assert account.load() == [account.server.own.access_key]

    def test_in_code_before_the_environment(self, account: Account) -> None:
        in_the_profile_of_the_environment(account, account.server.own)
        account.stored("research", **_as_settings(account.server.successor))
        assert account.load(s3=S3Config(profile="research")) == [account.server.successor.access_key]

    def test_half_of_a_key(self, account: Account) -> None:
        account.stored("default", aws_access_key_id=account.server.access_key)
        with pytest.raises(CredentialsError):
            torchwick.load(URI)


class TestProcesses:
    def test_one_that_fails(self, account: Account) -> None:
        account.profile("default", credential_process="false")
        with pytest.raises(CredentialsError) as caught:
            torchwick.load(URI)
        assert caught.value.uri == URI

    def test_one_that_does_not_exist(self, account: Account) -> None:
        account.profile("default", credential_process=str(account.directory / "missing"))
        with pytest.raises(CredentialsError):
            torchwick.load(URI)

    def test_one_that_prints_something_else(self, account: Account) -> None:
        account.profile("default", credential_process="echo hello")
        with pytest.raises(CredentialsError):
            torchwick.load(URI)


class TestRoles:
    def test_a_source_profile(self, account: Account) -> None:
        account.role(role_session_name="someone", external_id="someones")
        (signer,) = account.load()
        (asked,) = account.gate.roles_asked_for
        assert asked.signer == account.server.own.access_key
        assert (asked.form["RoleArn"], asked.form["RoleSessionName"]) == (READER, "someone")
        assert asked.form["ExternalId"] == "someones"
        assert account.gate.issued == {signer: "AssumeRole"}

    def test_a_source_in_the_environment(self, account: Account) -> None:
        in_variables(account, account.server.own)
        account.profile("reader", role_arn=READER, credential_source="Environment")
        (signer,) = account.load(s3=S3Config(profile="reader"))
        assert account.gate.roles_asked_for[0].signer == account.server.own.access_key
        assert account.gate.issued == {signer: "AssumeRole"}

    def test_a_source_that_is_the_instance(self, account: Account) -> None:
        account.instance(lambda: account.server.own)
        account.profile("default", role_arn=READER, credential_source="Ec2InstanceMetadata")
        (signer,) = account.load()
        assert account.gate.issued == {signer: "AssumeRole"}

    def test_a_source_with_a_wrong_secret(self, account: Account) -> None:
        account.role()
        account.stored("base", aws_secret_access_key="wr0ng")
        with pytest.raises(CredentialsError):
            torchwick.load(URI)
        assert account.gate.reads == []

    def test_one_that_sts_refuses(self, account: Account) -> None:
        nobody = READER.replace("reader", "nobody")
        account.role(nobody)
        with pytest.raises(CredentialsError, match=nobody):
            torchwick.load(URI)
        assert account.gate.reads == []

    def test_a_source_profile_that_is_not_there(self, account: Account) -> None:
        account.profile("default", role_arn=READER, source_profile="missing")
        with pytest.raises(CredentialsError, match="missing"):
            torchwick.load(URI)


class TestWebIdentity:
    def test_a_token_that_sts_can_prove(self, account: Account, provider: IdentityProvider) -> None:
        account.web_identity(provider.web_token())
        (signer,) = account.load()
        (asked,) = account.gate.roles_asked_for
        assert asked.form["RoleArn"] == WEB_READER
        assert "authorization" not in asked.headers  # the token alone says who asks
        assert account.gate.issued == {signer: "AssumeRoleWithWebIdentity"}

    def test_in_a_profile(self, account: Account, provider: IdentityProvider) -> None:
        token = account.file("web-token", provider.web_token())
        account.profile("pod", role_arn=WEB_READER, web_identity_token_file=str(token))
        (signer,) = account.load(s3=S3Config(profile="pod"))
        assert account.gate.issued == {signer: "AssumeRoleWithWebIdentity"}

    def test_a_token_that_has_expired(self, account: Account, provider: IdentityProvider) -> None:
        account.web_identity(provider.web_token(lifetime=-600.0))
        with pytest.raises(CredentialsError):
            torchwick.load(URI)

    def test_a_token_by_someone_else(self, account: Account, provider: IdentityProvider) -> None:
        token, other = provider.web_token(), IdentityProvider()
        with other:
            signature = other.web_token().rpartition(".")[2]
        account.web_identity(f"{token.rpartition('.')[0]}.{signature}")
        with pytest.raises(CredentialsError, match="web identity token"):
            torchwick.load(URI)
        assert account.gate.reads == []

    def test_a_token_that_is_not_there(self, account: Account) -> None:
        account.web_identity("")
        (account.directory / "web-token").unlink()
        with pytest.raises(CredentialsError, match="web-token"):
            torchwick.load(URI)


class TestServicesOnTheMachine:
    def test_the_instance_is_asked_in_version_2(self, account: Account) -> None:
        metadata = account.instance(account.server.session)
        account.load()
        assert [(call.method, call.path) for call in metadata.calls] == [
            ("PUT", "/latest/api/token"),
            ("GET", "/latest/meta-data/iam/security-credentials/"),
            ("GET", "/latest/meta-data/iam/security-credentials/instance-role"),
        ]

    def test_an_instance_without_metadata(self, account: Account) -> None:
        account.instance(account.server.session).state = "broken"
        with pytest.raises(CredentialsError, match="no AWS credentials were found"):
            torchwick.load(URI)

    def test_an_agent_elsewhere(self, account: Account) -> None:
        """Credentials are not to be fetched over plain HTTP from another machine."""
        account.set(AWS_CONTAINER_CREDENTIALS_FULL_URI="http://192.0.2.1/credentials")
        with pytest.raises(torchwick.TorchwickError, match=r"192\.0\.2\.1"):
            torchwick.load(URI)


LOGINS = """
import json, sys, torch, torchwick
seen = {}
for profile in sys.argv[2:]:
    try:
        state = torchwick.load(sys.argv[1], s3=torchwick.S3Config(profile=profile))
        same = torch.equal(state["weight"], torch.arange(100_000.0))
        seen[profile] = "loaded" if same else "something else"
    except torchwick.TorchwickError as error:
        seen[profile] = f"{type(error).__name__}: {error}"
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def seen(server: RoleServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What became of a load by each profile of a home with several logins."""
    home = tmp_path_factory.mktemp("home")
    with SingleSignOn(server.session) as portal:
        variables = {
            "AWS_ENDPOINT_URL": server.endpoint_url,
            "AWS_ENDPOINT_URL_SSO": portal.url,
            "AWS_ENDPOINT_URL_SSO_OIDC": portal.url,
            "AWS_REGION": server.region,
            "AWS_CONFIG_FILE": str(home / ".aws" / "config"),
        }
        profiles = _log_in(home, portal)
        with aws_environment(variables):
            printed = run_python(LOGINS, URI, *profiles, HOME=str(home))
    loaded: dict[str, str] = json.loads(printed)
    return loaded


def _log_in(home: Path, portal: SingleSignOn) -> list[str]:
    """Write the files that `aws configure sso` and `aws sso login` leave."""
    (login,) = portal.logins
    past, future = Keys("", "", expires=soon(-60)).end, Keys("", "", expires=soon(LONG)).end
    renewal = {
        "refreshToken": portal.prolongable,
        "clientId": "torchwick",
        "clientSecret": "registered",
        "registrationExpiresAt": future,
    }
    logins: dict[str, dict[str, str] | None] = {
        "login": {"accessToken": login, "expiresAt": future},
        "session": {"accessToken": login, "expiresAt": future},
        "prolonged": {"accessToken": "old", "expiresAt": past, **renewal},
        "expired": {"accessToken": login, "expiresAt": past},
        "expired-session": {"accessToken": login, "expiresAt": past},
        "revoked": {"accessToken": "revoked", "expiresAt": future},
        "never": None,
    }
    cache = home / ".aws" / "sso" / "cache"
    cache.mkdir(parents=True)
    config: dict[str, dict[str, str]] = {}
    for name, token in logins.items():
        by_session = name in {"session", "prolonged", "expired-session"}
        start = {"sso_start_url": f"https://{name}.awsapps.invalid/start", "sso_region": "us-east-1"}
        role = {"sso_account_id": "123456789012", "sso_role_name": "reader"}
        if by_session:
            config[f"sso-session {name}"] = start
            config[f"profile {name}"] = {"sso_session": name, **role}
        else:
            config[f"profile {name}"] = start | role
        if token is not None:
            known_by = name if by_session else start["sso_start_url"]
            path = cache / f"{hashlib.sha1(known_by.encode()).hexdigest()}.json"
            path.write_text(json.dumps({"startUrl": start["sso_start_url"], "region": "us-east-1", **token}))
    (home / ".aws" / "config").write_text(_ini(config))
    return list(logins)


class TestSingleSignOn:
    """In a process of its own, since botocore looks for HOME when it is imported."""

    @pytest.mark.parametrize("profile", ["login", "session"])
    def test_who_is_logged_in(self, seen: dict[str, str], profile: str) -> None:
        assert seen[profile] == "loaded"

    def test_a_login_that_can_be_prolonged(self, seen: dict[str, str]) -> None:
        assert seen["prolonged"] == "loaded"

    @pytest.mark.parametrize("profile", ["expired", "expired-session", "revoked", "never"])
    def test_who_has_to_log_in_again(self, seen: dict[str, str], profile: str) -> None:
        assert seen[profile].startswith("CredentialsError: ")
        assert "aws sso login" in seen[profile]


Purse: TypeAlias = dict[str, Keys]
Setting: TypeAlias = "Callable[[Account, Purse, IdentityProvider], object]"

SETTINGS: dict[str, Setting] = {
    # Sources, the first that is there wins:
    "variables": lambda account, purse, _: in_variables(account, purse["variables"]),
    "AssumeRole": lambda account, *_: account.role(),
    "AssumeRoleWithWebIdentity": lambda account, _, provider: account.web_identity(provider.web_token()),
    "credentials file": lambda account, purse, _: in_the_credentials_file(account, purse["credentials file"]),
    "process": lambda account, purse, _: from_a_process(account, purse["process"]),
    "config file": lambda account, purse, _: in_the_config_file(account, purse["config file"]),
    "container": lambda account, purse, _: from_a_container(account, purse["container"]),
    "instance": lambda account, purse, _: from_an_instance(account, purse["instance"]),
    # What makes another one win:
    "AWS_PROFILE": lambda account, purse, _: in_the_profile_of_the_environment(account, purse["AWS_PROFILE"]),
    "AWS_DEFAULT_PROFILE": lambda account, *_: account.set(AWS_DEFAULT_PROFILE="work"),
    "a profile that is missing": lambda account, *_: account.set(AWS_PROFILE="missing"),
    "an access key alone": lambda account, *_: account.set(AWS_ACCESS_KEY_ID="AKIAALONE"),
    "an empty access key": lambda account, *_: account.set(AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY=""),
    "work": lambda account, purse, _: account.stored("work", **_as_settings(purse["work"])),
}
IN_ORDER = list(SETTINGS)[:8]
MIXED = [
    ("AWS_PROFILE",),
    *[("AWS_PROFILE", source) for source in IN_ORDER],
    ("AWS_PROFILE", *IN_ORDER),
    ("work", "AWS_DEFAULT_PROFILE"),
    ("work", "AWS_DEFAULT_PROFILE", "AWS_PROFILE"),
    ("work", "AWS_DEFAULT_PROFILE", "variables"),
    ("a profile that is missing",),
    ("a profile that is missing", "variables"),
    ("a profile that is missing", "instance"),
    ("an access key alone",),
    ("an access key alone", "credentials file"),
    ("an empty access key", "credentials file"),
    ("an empty access key", "instance"),
    (),
]


@pytest.fixture(scope="module")
def purse(server: RoleServer) -> Purse:
    """Other keys for each setting, all of them good."""
    return {name: server.session() for name in SETTINGS}


class TestPrecedence:
    """Where several sources could answer, the one that botocore's own session takes does."""

    @pytest.mark.parametrize("first", IN_ORDER)
    def test_in_order(self, account: Account, purse: Purse, provider: IdentityProvider, first: str) -> None:
        for name in IN_ORDER[IN_ORDER.index(first) :]:
            SETTINGS[name](account, purse, provider)
        assert self._by_torchwick(account, purse) == first == self._by_botocore(account, purse)

    @pytest.mark.parametrize("names", MIXED, ids=" + ".join)
    def test_several(
        self, account: Account, purse: Purse, provider: IdentityProvider, names: tuple[str, ...]
    ) -> None:
        for name in names:
            SETTINGS[name](account, purse, provider)
        assert self._by_torchwick(account, purse) == self._by_botocore(account, purse)

    @pytest.mark.parametrize("name", ["AWS_PROFILE", *IN_ORDER])
    def test_a_profile_in_code(
        self, account: Account, purse: Purse, provider: IdentityProvider, name: str
    ) -> None:
        for each in ("work", name):
            SETTINGS[each](account, purse, provider)
        assert self._by_torchwick(account, purse, "work") == self._by_botocore(account, purse, "work")

    @staticmethod
    def _by_torchwick(account: Account, purse: Purse, profile: str | None = None) -> str:
        try:
            (signer,) = account.load(s3=S3Config(profile=profile))
        except CredentialsError:
            return "none"
        return _name(account, purse, str(signer))

    @staticmethod
    def _by_botocore(account: Account, purse: Purse, profile: str | None = None) -> str:
        try:
            found = botocore.session.Session(profile=profile).get_credentials()
        except BotoCoreError:
            return "none"
        return "none" if found is None else _name(account, purse, found.get_frozen_credentials().access_key)


def _name(account: Account, purse: Purse, access_key: str) -> str:
    """Return which setting these keys come from."""
    names = {keys.access_key: name for name, keys in purse.items()} | account.gate.issued
    return names[access_key]


class Revocation:
    """Ends the life of the first keys that S3 sees, after they have signed some requests.

    Args:
        code: what S3 calls it.
        after: the requests that are still answered.
        then: what happens at that moment.
    """

    def __init__(
        self, code: str = "ExpiredToken", *, after: int = 3, then: Callable[[], object] = int
    ) -> None:
        self._code = code
        self._left = after
        self._then = then
        self._doomed: str | None = None
        self._lock = threading.Lock()

    def __call__(self, call: Call) -> Reply | None:
        if call.method != "GET":
            return None
        with self._lock:
            self._doomed = self._doomed or call.signer
            if call.signer != self._doomed:
                return None
            self._left -= 1
            if self._left == -1:
                self._then()
            return None if self._left >= 0 else refusal(self._code)


class TestExpiry:
    """Credentials end, and others take their place, while loads go on."""

    @pytest.mark.parametrize("lifetime", [AT_ONCE, LONG])
    @pytest.mark.parametrize("service", [Account.instance, Account.container])
    def test_of_a_machines_role(
        self, account: Account, service: Callable[[Account, Issue], Service], lifetime: float
    ) -> None:
        """Ended when botocore knows that they end, and when it does not: somebody revoked them."""
        lifetimes = itertools.chain([lifetime], itertools.repeat(LONG))
        service(account, lambda: replace(account.server.session(), expires=soon(next(lifetimes))))
        account.gate.refuse = Revocation()
        self._renewed(account.load())

    @pytest.mark.parametrize("lifetime", [AT_ONCE, LONG])
    def test_of_what_a_process_gave(self, account: Account, lifetime: float) -> None:
        old, new = (replace(account.server.session(), expires=soon(lifetime)) for _ in range(2))
        account.process(old)
        account.gate.refuse = Revocation(then=lambda: account.process(new))
        assert account.load() == [old.access_key, new.access_key]

    @pytest.mark.parametrize("lifetime", [AT_ONCE, LONG])
    def test_of_an_assumed_role(self, account: Account, lifetime: float) -> None:
        account.role()
        account.gate.lifetime = lifetime
        account.gate.refuse = Revocation(then=account.gate.tell_true_lifetimes)
        used = account.load()
        self._renewed(used)
        assert set(used) <= set(account.gate.issued)

    @pytest.mark.parametrize("lifetime", [AT_ONCE, LONG])
    def test_of_a_web_identity(self, account: Account, provider: IdentityProvider, lifetime: float) -> None:
        """Kubernetes replaces the token in the file from time to time: the one of now is asked with."""
        account.web_identity(provider.web_token())
        account.gate.lifetime = lifetime
        fresh = provider.web_token(lifetime=500.0)
        account.gate.refuse = Revocation(then=lambda: account.file("web-token", fresh))
        self._renewed(account.load())
        assert account.gate.roles_asked_for[-1].form["WebIdentityToken"] == fresh

    @pytest.mark.parametrize("code", ["ExpiredToken", "InvalidAccessKeyId", "InvalidToken"])
    def test_of_keys_in_a_file(self, account: Account, code: str) -> None:
        old, new = account.server.own, account.server.successor
        in_the_credentials_file(account, old)
        account.gate.refuse = Revocation(code, then=lambda: in_the_credentials_file(account, new))
        assert account.load() == [old.access_key, new.access_key]

    def test_of_keys_in_a_file_between_two_loads(self, account: Account) -> None:
        old, new = account.server.own, account.server.successor
        in_the_credentials_file(account, old)
        account.load()
        account.gate.refuse = Revocation("InvalidAccessKeyId", after=0)
        in_the_credentials_file(account, new)
        assert account.load(OTHER_URI)[-1] == new.access_key
        assert account.load()[-1] == new.access_key

    def test_of_keys_in_a_file_replaced_after_a_load_failed(self, account: Account) -> None:
        in_the_credentials_file(account, account.server.own)
        account.gate.refuse = Revocation("ExpiredToken", after=0)
        with pytest.raises(CredentialsError, match="expired"):
            torchwick.load(URI)
        in_the_credentials_file(account, account.server.successor)
        assert account.load()[-1] == account.server.successor.access_key

    def test_that_is_near_is_not_waited_for(self, account: Account) -> None:
        account.container(lambda: replace(account.server.session(), expires=soon(AT_ONCE)))
        (first,), (second,) = account.load(), account.load(OTHER_URI)
        assert first != second

    def test_that_is_far_leaves_them_in_use(self, account: Account) -> None:
        agent = account.container(account.server.session)
        assert account.load() == account.load(OTHER_URI)
        assert len(agent.calls) == 1

    def test_asks_few_times_for_others(self, account: Account) -> None:
        """Not once for each part that was refused: services that give credentials limit how often."""
        agent = account.container(account.server.session)
        account.gate.refuse = Revocation()
        account.load()
        assert len(agent.calls) <= 1 + CONNECTIONS

    @staticmethod
    def _renewed(signers: list[str | None]) -> None:
        """At best one more signer; at worst each connection found one for itself."""
        assert 1 < len(signers) <= 1 + CONNECTIONS


class TestRenewalFails:
    """Then a load ends with the reason, soon, and without a thread that waits."""

    @pytest.fixture(autouse=True)
    def soon_over(self) -> Iterator[None]:
        started = time.monotonic()
        yield
        assert time.monotonic() - started < SECONDS

    @pytest.mark.parametrize("state", ["broken", "silent"])
    @pytest.mark.parametrize("connections", [1, 8])
    def test_on_an_instance(
        self, account: Account, state: Literal["broken", "silent"], connections: int
    ) -> None:
        """As soon with many connections as with one: they do not wait in turn for a service that is down."""
        metadata = account.instance(lambda: self._short(account))
        account.gate.refuse = Revocation(then=partial(setattr, metadata, "state", state))
        with pytest.raises(CredentialsError) as caught:
            torchwick.load(URI, transfer=replace(PARTS, connections=connections))
        assert caught.value.uri == URI

    def test_of_a_process(self, account: Account) -> None:
        account.process(self._short(account))
        account.gate.refuse = Revocation(then=(account.directory / "printed.json").unlink)
        with pytest.raises(CredentialsError):
            torchwick.load(URI, transfer=PARTS)

    def test_of_a_role(self, account: Account) -> None:
        account.role()
        account.gate.lifetime = AT_ONCE
        revocation = Revocation()

        def refuse(call: Call) -> Reply | None:
            again = call.method == "POST" and len(account.gate.roles_asked_for) > 1
            return role_refusal("AccessDenied", DENIED) if again else revocation(call)

        account.gate.refuse = refuse
        with pytest.raises(CredentialsError, match="role/reader"):
            torchwick.load(URI, transfer=PARTS)

    def test_of_keys_that_nobody_replaces(self, account: Account) -> None:
        in_the_credentials_file(account, account.server.own)
        account.gate.refuse = Revocation("InvalidAccessKeyId")
        with pytest.raises(CredentialsError, match="does not know this access key"):
            torchwick.load(URI, transfer=PARTS)
        assert len(account.gate.reads) < 12

    def test_of_a_file_that_is_gone(self, account: Account) -> None:
        in_the_credentials_file(account, account.server.own)
        account.gate.refuse = Revocation(then=(account.directory / "credentials").unlink)
        with pytest.raises(CredentialsError):
            torchwick.load(URI, transfer=PARTS)

    @staticmethod
    def _short(account: Account) -> Keys:
        return replace(account.server.session(), expires=soon(AT_ONCE))


class TestRolesInCode:
    """`S3Config(role_arn=…)` assumes a role with whatever credentials there are."""

    ROLE = S3Config(role_arn=READER, external_id="torchwick-tests")

    def test_what_sts_is_asked(self, account: Account) -> None:
        in_variables(account, account.server.own)
        account.load(s3=self.ROLE)
        (asked,) = account.gate.roles_asked_for
        assert asked.signer == account.server.own.access_key
        wanted = {"RoleArn": READER, "ExternalId": "torchwick-tests", "RoleSessionName": "torchwick"}
        assert asked.form.items() >= {"Action": "AssumeRole", **wanted}.items()

    def test_no_external_id_where_none_is_given(self, account: Account) -> None:
        in_variables(account, account.server.own)
        account.load(s3=S3Config(role_arn=READER))
        assert "ExternalId" not in account.gate.roles_asked_for[0].form

    def test_the_role_signs_every_request_to_s3(self, account: Account) -> None:
        in_variables(account, account.server.own)
        (signer,) = account.load(s3=self.ROLE)
        assert account.gate.issued == {signer: "AssumeRole"}
        assert all(call.headers["x-amz-security-token"] for call in account.gate.reads)

    @pytest.mark.parametrize("source", PERMANENT)
    def test_assumed_with_what_any_source_gives(self, account: Account, source: Source) -> None:
        source(account, account.server.own)
        account.load(s3=self.ROLE)
        assert account.gate.roles_asked_for[0].signer == account.server.own.access_key

    def test_assumed_by_the_instances_role(self, account: Account) -> None:
        account.instance(lambda: account.server.own)
        (signer,) = account.load(s3=self.ROLE)
        assert account.gate.issued == {signer: "AssumeRole"}

    def test_assumed_by_the_profile_in_code(self, account: Account) -> None:
        account.stored("work", **_as_settings(account.server.successor))
        in_the_credentials_file(account, account.server.own)
        account.load(s3=replace(self.ROLE, profile="work"))
        assert account.gate.roles_asked_for[0].signer == account.server.successor.access_key

    def test_the_same_user_with_and_without_it(self, account: Account) -> None:
        in_variables(account, account.server.own)
        (role,) = account.load(s3=self.ROLE)
        assert account.load() == [account.server.own.access_key]
        assert account.load(s3=self.ROLE) == [role]

    def test_renewed_before_it_ends(self, account: Account) -> None:
        in_variables(account, account.server.own)
        account.gate.lifetime = AT_ONCE
        (first,) = account.load(s3=self.ROLE)
        (second,) = account.load(OTHER_URI, s3=self.ROLE)
        assert first != second
        assert {call.signer for call in account.gate.roles_asked_for} == {account.server.own.access_key}

    def test_left_alone_while_it_lasts(self, account: Account) -> None:
        in_variables(account, account.server.own)
        assert account.load(s3=self.ROLE) == account.load(OTHER_URI, s3=self.ROLE)
        assert len(account.gate.roles_asked_for) == 1

    @pytest.mark.parametrize("lifetime", [AT_ONCE, LONG])
    def test_ended_in_the_middle(self, account: Account, lifetime: float) -> None:
        in_variables(account, account.server.own)
        account.gate.lifetime = lifetime
        account.gate.refuse = Revocation(then=account.gate.tell_true_lifetimes)
        used = account.load(s3=self.ROLE)
        assert 1 < len(used) <= 1 + CONNECTIONS
        assert set(used) <= set(account.gate.issued)

    def test_its_source_replaced_meanwhile(self, account: Account) -> None:
        in_the_credentials_file(account, account.server.own)
        new = account.server.successor
        account.gate.refuse = Revocation(then=lambda: in_the_credentials_file(account, new))
        account.load(s3=self.ROLE)
        assert account.gate.roles_asked_for[-1].signer == new.access_key

    def test_one_that_sts_refuses(self, account: Account) -> None:
        nobody = READER.replace("reader", "nobody")
        in_variables(account, account.server.own)
        with pytest.raises(CredentialsError, match=nobody) as caught:
            torchwick.load(URI, s3=S3Config(role_arn=nobody))
        assert caught.value.code == "AccessDenied"
        assert account.gate.reads == []

    def test_one_that_sts_refuses_without_a_word(self, account: Account) -> None:
        """STS may say no more than the code: the role is named all the same."""
        in_variables(account, account.server.own)
        account.gate.refuse = lambda call: role_refusal("AccessDenied") if call.method == "POST" else None
        with pytest.raises(CredentialsError, match="role/reader"):
            torchwick.load(URI, s3=self.ROLE)

    def test_a_source_with_a_wrong_secret(self, account: Account) -> None:
        in_variables(account, replace(account.server.own, secret_key="wr0ng"))
        with pytest.raises(CredentialsError) as caught:
            torchwick.load(URI, s3=self.ROLE)
        assert "wr0ng" not in str(caught.value)
        assert account.gate.reads == []

    def test_no_source_at_all(self, account: Account) -> None:
        with pytest.raises(CredentialsError, match="no AWS credentials were found"):
            torchwick.load(URI, s3=self.ROLE)
        assert account.gate.calls == []

    def test_sts_out_of_reach(self, account: Account, closed_port: int) -> None:
        in_variables(account, account.server.own)
        account.set(AWS_ENDPOINT_URL_STS=f"http://127.0.0.1:{closed_port}")
        started = time.monotonic()
        with pytest.raises(torchwick.TorchwickError, match=str(closed_port)):
            torchwick.load(URI, s3=self.ROLE, transfer=TransferConfig(max_attempts=1))
        assert time.monotonic() - started < SECONDS
