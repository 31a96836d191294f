"""Everything that can go wrong with a load or a save, one function each: it arranges the cause.

`test_causes.py` brings each about, and holds what comes of it against what is written here; the page "When it
fails" shows the messages.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import pickle
import struct
import time
import warnings
import zipfile
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from awscrt.checksums import crc64nvme

import torchwick
from checkpoints.base import save_bytes
from faults import Answer, Cut, Gzip, Redirect, S3Error, SetHeaders, ShiftRange, Stall
from torchwick import S3Config, TransferConfig

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest

    from faults import Request
    from faulty import FaultyServer
    from relay import Relay
    from torchwick.demo.server import SeaweedFS

ACCESS_KEY = "AKIAIOSFODNN7EXAMPLE"
SECRET_KEY = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
TOKEN = "FwoGZXIvYXdzEXAMPLEtoken"
CUSTOMER_KEY = bytes(range(32))
PASSWORD = "hush-hush"
SIGNATURE = "X-Amz-Signature=5eC4e7"
SECRETS = (
    SECRET_KEY,
    TOKEN,
    PASSWORD,
    SIGNATURE,
    base64.b64encode(CUSTOMER_KEY).decode(),
    repr(CUSTOMER_KEY),
)

STATE = {"weight": torch.arange(150_000, dtype=torch.float32)}
MODEL = save_bytes(STATE)
URI = "s3://models/resnet.pt"
QUICK = TransferConfig(part_size=100_000, connections=2, max_attempts=2, timeout=0.4)


@dataclass
class World:
    """What a cause can work with. S3 is the server that misbehaves on cue, until `real_s3` is called.

    Attributes:
        server: that server; it holds a good model at `URI`.
        secure: another one, over TLS, with a certificate that only the tests trust.
        misnamed: a third, whose certificate is for another host.
        seaweed: a real S3 server with a good model at `URI`.
        relay: a proxy that wants a password.
        closed_port: a port where nothing listens.
        folder: an empty folder.
        patch: for environment variables.
    """

    server: FaultyServer
    secure: FaultyServer
    misnamed: FaultyServer
    seaweed: SeaweedFS
    relay: Relay
    closed_port: int
    folder: Path
    patch: pytest.MonkeyPatch

    def real_s3(self) -> None:
        for name, value in self.seaweed.environment().items():
            self.patch.setenv(name, value)
        self.patch.delenv("AWS_SESSION_TOKEN")

    def answers(self, status: int, code: str, message: str = "", **headers: str) -> None:
        """Have S3 answer every request with an error."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.server.on(S3Error(status, code, message or code, named), method=None)

    def stores(self, body: bytes) -> None:
        """Store something else in the model's place."""
        self.server.put("models/resnet.pt", body)

    def forgets_keys(self) -> None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            self.patch.delenv(name)

    def configures(self, text: str) -> None:
        """Write the AWS configuration file."""
        path = self.folder / "config"
        path.write_text(text)
        self.patch.setenv("AWS_CONFIG_FILE", str(path))


@dataclass(frozen=True)
class Cause:
    """One thing that can go wrong.

    Attributes:
        title: what it is, as the page says it.
        kind: the error that comes of it.
        arrange: brings it about.
        uri: what is loaded, or saved, then.
        says: words of the message.
        asked_as: whether the message has to name who asks.
        options: further arguments of the call.
        call: what is called with the URI.
    """

    title: str
    kind: type[torchwick.TorchwickError]
    arrange: Callable[[World], str | None]
    uri: str
    says: str
    asked_as: bool
    options: dict[str, Any] = field(default_factory=dict)
    call: Callable[..., object] = torchwick.load


CAUSES: list[Cause] = []


def cause(
    title: str,
    kind: type[torchwick.TorchwickError],
    says: str,
    *,
    uri: str = URI,
    asked_as: bool = False,
    call: Callable[..., object] = torchwick.load,
    **options: Any,
) -> Callable[[Callable[[World], str | None]], Callable[[World], str | None]]:
    """Register the decorated function; where it returns a URI, that one is loaded."""

    def register(arrange: Callable[[World], str | None]) -> Callable[[World], str | None]:
        CAUSES.append(Cause(title, kind, arrange, uri, says, asked_as, options, call))
        return arrange

    return register


# -- the address -------------------------------------------------------------------------------------------


@cause("Unknown scheme", torchwick.URIError, "the scheme 'gs'", uri="gs://models/resnet.pt")
@cause("A bucket without a key", torchwick.URIError, "the key is missing", uri="s3://models")
@cause("A URI that went through pathlib", torchwick.URIError, "one slash", uri="s3:/models/resnet.pt")
@cause(
    "A password in a URL", torchwick.URIError, "password", uri=f"https://me:{PASSWORD}@example.com/resnet.pt"
)
@cause("An impossible bucket name", torchwick.URIError, "bucket", uri="s3://my models/resnet.pt")
def nothing(_: World) -> None:
    """The address is enough."""


# -- who asks ----------------------------------------------------------------------------------------------


@cause("No credentials", torchwick.CredentialsError, "looked for in: environment variables")
def no_credentials(world: World) -> None:
    world.forgets_keys()


@cause("Half a pair of keys", torchwick.CredentialsError, "AWS_SECRET_ACCESS_KEY")
def half_a_key(world: World) -> None:
    world.patch.delenv("AWS_SECRET_ACCESS_KEY")


@cause("A profile that is not there", torchwick.CredentialsError, "research", s3=S3Config(profile="research"))
def no_profile(_: World) -> None:
    """The configuration files are empty."""


@cause("A configuration file that cannot be read", torchwick.CredentialsError, "config")
def broken_configuration(world: World) -> None:
    world.configures("[default\nregion")


@cause("Single sign-on has expired", torchwick.CredentialsError, "aws sso login")
def no_login(world: World) -> None:
    world.forgets_keys()
    world.configures(
        "[default]\nsso_start_url = https://example.com/start\nsso_region = eu-west-1\n"
        "sso_account_id = 123456789012\nsso_role_name = reader\n"
    )


@cause("A credential process that fails", torchwick.CredentialsError, "The vault is locked")
def failing_process(world: World) -> None:
    world.forgets_keys()
    world.configures("[default]\ncredential_process = sh -c 'echo The vault is locked >&2; exit 1'\n")


@cause(
    "A role that may not be assumed",
    torchwick.CredentialsError,
    "not authorized to perform: sts:AssumeRole",
    s3=S3Config(role_arn="arn:aws:iam::123456789012:role/reader"),
)
def refused_role(world: World) -> None:
    world.patch.setenv("AWS_ENDPOINT_URL_STS", world.server.endpoint_url)
    said = (
        "User: arn:aws:iam::123456789012:user/me is not authorized to perform: sts:AssumeRole on resource: "
        "arn:aws:iam::123456789012:role/reader"
    )
    body = f"<ErrorResponse><Error><Code>AccessDenied</Code><Message>{said}</Message></Error></ErrorResponse>"
    world.server.on(Answer(403, body.encode()), method="POST")


@cause("An access key that the store does not know", torchwick.CredentialsError, "know", asked_as=True)
def unknown_key(world: World) -> None:
    world.real_s3()
    world.patch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)


@cause("A wrong secret key", torchwick.CredentialsError, "secret key does not belong", asked_as=True)
def wrong_secret(world: World) -> None:
    world.real_s3()
    world.patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)


@cause("An expired token", torchwick.CredentialsError, "have expired", asked_as=True)
def expired_token(world: World) -> None:
    world.answers(400, "ExpiredToken", "The provided token has expired.")


@cause("A token that is not valid", torchwick.CredentialsError, "session token is not valid", asked_as=True)
def invalid_token(world: World) -> None:
    world.answers(400, "InvalidToken", f"The token {TOKEN} is malformed.")


@cause("A line break in a token", torchwick.CredentialsError, "cannot be sent")
def broken_token(world: World) -> None:
    world.patch.setenv("AWS_SESSION_TOKEN", f"{TOKEN}\n{TOKEN}")


@cause("A clock that is wrong", torchwick.CredentialsError, "behind the store's", asked_as=True)
def wrong_clock(world: World) -> None:
    world.answers(403, "RequestTimeTooSkewed")
    world.server.on(SetHeaders({"Date": formatdate(time.time() + 20 * 60, usegmt=True)}), method=None)


@cause("A proxy that wants a password", torchwick.CredentialsError, "the proxy")
def proxy_password(world: World) -> None:
    world.patch.setenv("HTTP_PROXY", f"http://me:{PASSWORD}@127.0.0.1:{world.relay.port}")


# -- what may be read --------------------------------------------------------------------------------------

_MAY_NOT = "User: arn:aws:iam::123456789012:user/me is not authorized to perform:"


@cause("The object may not be read", torchwick.AccessDeniedError, "s3:GetObject", asked_as=True)
def denied(world: World) -> None:
    world.answers(
        403,
        "AccessDenied",
        f'{_MAY_NOT} s3:GetObject on resource: "arn:aws:s3:::models/resnet.pt" because no policy allows it',
    )


@cause(
    "Denied without a reason, and listing too", torchwick.AccessDeniedError, "s3:ListBucket", asked_as=True
)
def denied_silently(world: World) -> None:
    world.answers(403, "AccessDenied", "Access Denied")


@cause(
    "The key may be missing: listing is not allowed", torchwick.AccessDeniedError, "key first", asked_as=True
)
def denied_listing(world: World) -> None:
    world.answers(
        403,
        "AccessDenied",
        f'{_MAY_NOT} s3:ListBucket on resource: "arn:aws:s3:::models" because no policy allows it',
    )


@cause("Denied, though it may be listed", torchwick.AccessDeniedError, "It exists", asked_as=True)
def denied_but_listed(world: World) -> None:
    listing = b"<ListBucketResult><Contents><Key>resnet.pt</Key></Contents></ListBucketResult>"
    world.server.on(Answer(200, listing), where=lambda request: "list-type" in request.query)
    world.server.on(S3Error(403, "AccessDenied", "Access Denied"), path="models/resnet.pt")


@cause("A policy that denies", torchwick.AccessDeniedError, "forbids it outright", asked_as=True)
def denied_outright(world: World) -> None:
    world.answers(
        403,
        "AccessDenied",
        f'{_MAY_NOT} s3:GetObject on resource: "arn:aws:s3:::models/resnet.pt" with an explicit deny in a '
        "resource-based policy",
    )


@cause("The KMS key may not be used", torchwick.AccessDeniedError, "kms:Decrypt", asked_as=True)
def denied_key(world: World) -> None:
    key = "arn:aws:kms:eu-west-1:123456789012:key/1234abcd"
    world.answers(
        403, "AccessDenied", f"{_MAY_NOT} kms:Decrypt on resource: {key} because the policy does not allow it"
    )


@cause(
    "Unsigned, and not public",
    torchwick.AccessDeniedError,
    "anonymous",
    asked_as=True,
    s3=S3Config(anonymous=True),
)
def not_public(world: World) -> None:
    world.real_s3()


@cause("A presigned URL that has expired", torchwick.AccessDeniedError, "expired")
def expired_url(world: World) -> str:
    world.answers(403, "AccessDenied", "Request has expired")
    return f"{world.server.endpoint_url}/models/resnet.pt?{SIGNATURE}"


@cause("A proxy that forbids the host", torchwick.AccessDeniedError, "NO_PROXY")
def proxy_forbids(world: World) -> str:
    world.patch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{world.relay.port}")
    world.patch.setattr(world.relay, "refuses", 403)
    return "https://s3.example.com/resnet.pt"


# -- what is not there -------------------------------------------------------------------------------------


@cause("A misspelt key", torchwick.ObjectNotFoundError, "s3://models/resnet.pt", uri="s3://models/resent.pt")
@cause("A misspelt folder", torchwick.ObjectNotFoundError, "vision/", uri="s3://models/vison/v1/resnet.pt")
@cause("A folder", torchwick.ObjectNotFoundError, "It is a folder", uri="s3://models/vision")
@cause(
    "A key like no other", torchwick.ObjectNotFoundError, "similar name", uri="s3://models/xyz.safetensors"
)
@cause("A misspelt bucket", torchwick.ObjectNotFoundError, "no such bucket", uri="s3://modles/resnet.pt")
def missing(world: World) -> None:
    world.real_s3()


@cause(
    "A key that is not there, in a bucket that may not be listed",
    torchwick.ObjectNotFoundError,
    "Check the key",
)
def missing_unlisted(world: World) -> None:
    world.server.on(S3Error(403, "AccessDenied"), where=lambda request: "list-type" in request.query)
    world.server.delete("models/resnet.pt")


@cause("A version that is not there", torchwick.ObjectNotFoundError, "version", uri=f"{URI}?versionId=abc")
def missing_version(world: World) -> None:
    world.answers(404, "NoSuchVersion")


@cause("An object that was deleted", torchwick.ObjectNotFoundError, "was deleted")
def deleted(world: World) -> None:
    world.answers(404, "NoSuchKey", x_amz_delete_marker="true")


@cause("A web address with nothing there", torchwick.ObjectNotFoundError, "nothing at this address")
def missing_page(world: World) -> str:
    return f"{world.server.endpoint_url}/models/none.pt"


@cause(
    "A local file that is not there", torchwick.ObjectNotFoundError, "no such file", uri="checkpoints/none.pt"
)
def missing_file(_: World) -> None:
    """No file is there."""


# -- the store ---------------------------------------------------------------------------------------------


@cause("An archived object", torchwick.StoreError, "Glacier")
def archived(world: World) -> None:
    world.answers(
        403, "InvalidObjectState", "The operation is not valid for the object's storage class", x_amz_id_2="x"
    )


@cause("A bucket in another region, behind an endpoint", torchwick.StoreError, "eu-west-1")
def elsewhere(world: World) -> None:
    moved = S3Error(301, "PermanentRedirect", headers={"x-amz-bucket-region": "eu-west-1"})
    world.server.on(moved, method=None)


@cause("An object encrypted with its owner's key", torchwick.StoreError, "sse_customer_key")
def customer_key_needed(world: World) -> None:
    world.answers(
        400,
        "InvalidRequest",
        "The object was stored using a form of Server Side Encryption. The correct parameters must be given.",
    )


@cause(
    "A customer's key over plain HTTP",
    torchwick.StoreError,
    "plain HTTP",
    s3=S3Config(sse_customer_key=CUSTOMER_KEY, endpoint_url="http://s3.example.com"),
)
def exposed_key(_: World) -> None:
    """It is refused before anything is sent."""


@cause(
    "An endpoint that is no URL",
    torchwick.StoreError,
    "localhost:9000",
    s3=S3Config(endpoint_url="localhost:9000"),
)
def no_endpoint(_: World) -> None:
    """The setting is enough."""


@cause("Something that is not S3", torchwick.StoreError, "AWS_ENDPOINT_URL")
def not_s3(world: World) -> None:
    world.server.on(Answer(400, b"<html><body>Bad Request</body></html>"), method=None)


@cause("Authorities that cannot be read", torchwick.StoreError, "AWS_CA_BUNDLE")
def no_authorities(world: World) -> str:
    world.patch.setenv("AWS_CA_BUNDLE", "/etc/ssl/none.pem")
    return f"{world.secure.endpoint_url}/models/resnet.pt"


@cause("A proxy of another kind", torchwick.StoreError, "socks5")
def odd_proxy(world: World) -> None:
    world.patch.setenv("HTTP_PROXY", f"socks5://me:{PASSWORD}@127.0.0.1:1080")


@cause("A proxy that rewrites ranges", torchwick.StoreError, "asked for bytes")
def wrong_range(world: World) -> None:
    world.server.on(ShiftRange(1), nth=2)


@cause("A proxy that compresses", torchwick.StoreError, "gzip")
def compressed(world: World) -> None:
    world.server.on(Gzip())


@cause("A redirect away from TLS", torchwick.StoreError, "from https to")
def insecure_redirect(world: World) -> str:
    world.patch.setenv("AWS_CA_BUNDLE", str(world.secure.ca_file))
    world.secure.on(Redirect(f"{world.server.endpoint_url}/models/resnet.pt"))
    return f"{world.secure.endpoint_url}/models/resnet.pt"


@cause("Overwritten in the middle of a load", torchwick.ObjectChangedError, "overwritten")
def overwritten(world: World) -> None:
    world.server.on(lambda: world.server.put("models/resnet.pt", save_bytes({"w": torch.ones(9)})), nth=3)


# -- the network -------------------------------------------------------------------------------------------


@cause("Nothing listens there", torchwick.TransferError, "Connection refused")
def unreachable(world: World) -> None:
    world.patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{world.closed_port}")


@cause("A host that no one knows", torchwick.TransferError, "name")
def unknown_host(world: World) -> None:
    world.patch.setenv("AWS_ENDPOINT_URL", "http://s3.invalid")


@cause("A certificate for another host", torchwick.TransferError, "another host's")
def other_host(world: World) -> None:
    world.patch.setenv("AWS_ENDPOINT_URL", world.misnamed.endpoint_url)
    world.patch.setenv("AWS_CA_BUNDLE", str(world.secure.ca_file))


@cause("A proxy that is not there", torchwick.TransferError, "HTTP_PROXY")
def no_proxy(world: World) -> None:
    world.patch.setenv("HTTP_PROXY", f"http://127.0.0.1:{world.closed_port}")


@cause("A certificate that is not trusted", torchwick.TransferError, "AWS_CA_BUNDLE")
def untrusted(world: World) -> None:
    world.patch.setenv("AWS_ENDPOINT_URL", world.secure.endpoint_url)


@cause("A server that falls silent", torchwick.TransferError, "timeout")
def silent(world: World) -> None:
    world.server.on(Stall(after=-1))


@cause("Connections that break", torchwick.TransferError, "network")
def breaking(world: World) -> None:
    world.server.on(Cut(after=0))


@cause("A store that is overloaded", torchwick.TransferError, "SlowDown")
def overloaded(world: World) -> None:
    world.answers(503, "SlowDown", "Please reduce your request rate.")


# -- the bytes ---------------------------------------------------------------------------------------------


@cause("Zero bytes", torchwick.FormatError, "zero bytes")
def empty(world: World) -> None:
    world.stores(b"")


@cause("An HTML page", torchwick.FormatError, "HTML")
def page(world: World) -> None:
    world.stores(b"<!DOCTYPE html>\n<html></html>\n")


@cause("An XML document", torchwick.FormatError, "XML")
def xml(world: World) -> None:
    world.stores(b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>')


@cause("A git-lfs pointer", torchwick.FormatError, "git lfs pull")
def pointer(world: World) -> None:
    world.stores(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 102445327\n")


@cause("A compressed file", torchwick.FormatError, "gzip")
def gzipped(world: World) -> None:
    world.stores(gzip.compress(MODEL))


@cause("A plain pickle", torchwick.FormatError, "torch.save")
def plain_pickle(world: World) -> None:
    world.stores(b"\x80\x04}q\x00.")


@cause("A zip archive of something else", torchwick.FormatError, "data.pkl")
def another_zip(world: World) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("weight.npy", b"\x93NUMPY")
    world.stores(file.getvalue())


@cause("A .pt that was cut short", torchwick.FormatError, "cut short")
def short_zip(world: World) -> None:
    world.stores(MODEL[:1000])


@cause("A safetensors file that was cut short", torchwick.FormatError, "cut short")
def short_safetensors(world: World) -> None:
    world.stores(safetensors.torch.save({"weight": torch.ones(200)})[:-100])


@cause("A safetensors header of an absurd size", torchwick.FormatError, "header")
def absurd_header(world: World) -> None:
    world.stores(struct.pack("<Q", 1 << 60) + b'{"weight":' + b" " * 100)


@cause("A tensor outside its file", torchwick.FormatError, "accounts for")
def absurd_tensor(world: World) -> None:
    header = json.dumps(
        {"weight": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}
    ).encode()
    world.stores(struct.pack("<Q", len(header)) + header + bytes(100))


@cause("Another file than the pinned one", torchwick.IntegrityError, "sha256= asks for", sha256="ab" * 32)
def another_file(_: World) -> None:
    """The file is good, but another."""


@cause("Nothing to verify by", torchwick.IntegrityError, "no checksum", verify=True)
def no_checksum(_: World) -> None:
    """The server keeps none."""


@cause("A byte that changed in the store", torchwick.IntegrityError, "crc64nvme")
def changed_byte(world: World) -> None:
    told = base64.b64encode(crc64nvme(MODEL).to_bytes(8, "big")).decode()
    world.stores(MODEL[:400_000] + bytes([MODEL[400_000] ^ 1]) + MODEL[400_001:])
    world.server.on(SetHeaders({"x-amz-checksum-crc64nvme": told}), method="HEAD")


# -- names and directories ---------------------------------------------------------------------------------


@cause("A tensor that is not there", torchwick.TensorNotFoundError, "Did you mean 'weight'", keys="wieght")
@cause("A pattern that fits no tensor", torchwick.TensorNotFoundError, "'layers.*'", keys=["layers.*"])
def unknown_name(_: World) -> None:
    """The model has but one tensor."""


@cause("A directory without a model", torchwick.FormatError, "only notes.txt, train.py", uri="s3://lab/run/")
def no_model(world: World) -> None:
    for name in ("notes.txt", "train.py"):
        world.server.put(f"lab/run/{name}", b"text")


@cause("A directory of several models", torchwick.FormatError, "several models", uri="s3://lab/run/")
def several_models(world: World) -> None:
    for name in ("resnet.pt", "vit.pt"):
        world.server.put(f"lab/run/{name}", MODEL)


@cause("A shard that is missing", torchwick.FormatError, "model-00002-of-00002", uri="s3://lab/run/")
def missing_shard(world: World) -> None:
    world.server.put("lab/run/model-00001-of-00002.safetensors", safetensors.torch.save(STATE))


@cause("An index and shards of different models", torchwick.FormatError, "'bias'", uri="s3://lab/run/")
def stale_index(world: World) -> None:
    world.server.put("lab/run/model-00001-of-00001.safetensors", safetensors.torch.save(STATE))
    index = {"weight_map": {"bias": "model-00001-of-00001.safetensors"}}
    world.server.put("lab/run/model.safetensors.index.json", json.dumps(index).encode())


@cause(
    "An index that points elsewhere",
    torchwick.FormatError,
    "../",
    uri="s3://lab/run/model.safetensors.index.json",
)
def escaping_index(world: World) -> None:
    index = {"weight_map": {"bias": "../../secrets/model.safetensors"}}
    world.server.put("lab/run/model.safetensors.index.json", json.dumps(index).encode())


@cause("A distributed checkpoint that was cut short", torchwick.FormatError, ".metadata", uri="s3://lab/run/")
def damaged_metadata(world: World) -> None:
    world.server.put("lab/run/.metadata", pickle.dumps({"no": "Metadata"})[:-5])


@cause(
    "A directory that may not be listed", torchwick.AccessDeniedError, "s3:ListBucket", uri="s3://lab/run/"
)
def denied_directory(world: World) -> None:
    world.server.on(S3Error(403, "AccessDenied", "Access Denied"), method="GET", path="lab")


# -- a module that does not fit ----------------------------------------------------------------------------


def fill_in_memory(uri: str, **options: Any) -> None:
    model = torch.nn.ParameterDict({name: torch.zeros_like(tensor) for name, tensor in STATE.items()})
    torchwick.load_model(model, uri, **options)


@cause("A module that was being filled", torchwick.TransferError, "is partly filled", call=fill_in_memory)
def partly_filled(world: World) -> None:
    def is_late(request: Request) -> bool:
        return request.range is not None and 250_000 < request.range[0] < 330_000

    world.server.on(Cut(after=1000), where=is_late)


def _classifier(classes: int = 10) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, classes))


def fill_classifier(uri: str, **options: Any) -> None:
    torchwick.load_model(_classifier(), uri, **options)


def fill_on_meta(uri: str, **options: Any) -> None:
    with torch.device("meta"):
        model = _classifier()
        model.register_buffer("frequencies", torch.ones(8), persistent=False)
    torchwick.load_model(model, uri, **options)


@cause(
    "Names with a beginning more", torchwick.StateDictError, "rename=('module.', '')", call=fill_classifier
)
def other_names(world: World) -> None:
    state = _classifier().state_dict()
    world.stores(save_bytes({f"module.{name}": tensor for name, tensor in state.items()}))


@cause(
    "The checkpoint of a trainer", torchwick.StateDictError, "keys='state_dict.model.*'", call=fill_classifier
)
def trainer(world: World) -> None:
    model = _classifier()
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
    model(torch.ones(16)).sum().backward()
    optimizer.step()
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    world.stores(save_bytes({"epoch": 3, "state_dict": state, "optimizer_states": [optimizer.state_dict()]}))


@cause(
    "A module of other sizes", torchwick.StateDictError, "[100, 32] in the checkpoint", call=fill_classifier
)
def other_sizes(world: World) -> None:
    world.stores(save_bytes(_classifier(100).state_dict()))


@cause("A module with more in it", torchwick.StateDictError, "2.weight", call=fill_classifier)
def smaller(world: World) -> None:
    world.stores(save_bytes(_classifier()[:1].state_dict()))  # type: ignore[index]


@cause("A buffer that was never made", torchwick.StateDictError, "init_empty_weights", call=fill_on_meta)
def stranded(world: World) -> None:
    world.stores(save_bytes(_classifier().state_dict()))


# -- safety ------------------------------------------------------------------------------------------------


@cause("A pickled module", torchwick.UnsafePickleError, "Linear")
def module(world: World) -> None:
    world.stores(save_bytes(torch.nn.Linear(2, 2)))


@cause("A program", torchwick.UnsafePickleError, "TorchScript")
@cause(
    "A copy that would be too large",
    torchwick.MemoryLimitError,
    "memory limit of 1000",
    transfer=TransferConfig(memory_limit=1000),
    weights_only=False,
)
def program(world: World) -> None:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), file)
    world.stores(file.getvalue())


# -- saving ------------------------------------------------------------------------------------------------


def save_state(uri: str, **options: Any) -> object:
    """Save the model."""
    return torchwick.save(STATE, uri, **options)


def save_tied(uri: str, **options: Any) -> object:
    """Save two names of one weight."""
    return torchwick.save({"head.weight": STATE["weight"], "embed.weight": STATE["weight"]}, uri, **options)


def save_meta(uri: str, **options: Any) -> object:
    """Save a tensor without values."""
    return torchwick.save({"weight": torch.empty(3, device="meta")}, uri, **options)


def save_complex(uri: str, **options: Any) -> object:
    """Save a dtype that safetensors has not."""
    return torchwick.save({"wave": torch.ones(3, dtype=torch.complex128)}, uri, **options)


def save_sparse(uri: str, **options: Any) -> object:
    """Save a sparse tensor."""
    return torchwick.save({"adjacency": torch.eye(3).to_sparse()}, uri, **options)


_NEW = "s3://models/new.safetensors"


@cause("Tied weights into safetensors", torchwick.FormatError, "save_model", call=save_tied, uri=_NEW)
@cause("A tensor without values", torchwick.FormatError, "meta device", call=save_meta, uri=_NEW)
@cause("A dtype that safetensors has not", torchwick.FormatError, "complex128", call=save_complex, uri=_NEW)
@cause("A sparse tensor into safetensors", torchwick.FormatError, "sparse", call=save_sparse, uri=_NEW)
@cause("Saving to the web", torchwick.URIError, "not written to", call=save_state, uri="https://host/new.pt")
@cause("Saving a version", torchwick.URIError, "Leave out", call=save_state, uri=f"{URI}?versionId=3")
def nothing_to_arrange(_: World) -> None:
    """The object, or the address, is enough."""


@cause(
    "Saving where something is", torchwick.ObjectExistsError, "it exists", call=save_state, overwrite=False
)
def there_is_one(_: World) -> None:
    """The model is there already."""


@cause(
    "A model of one file beside an index",
    torchwick.ObjectExistsError,
    "delete_replaced=True",
    call=save_state,
    uri="s3://lab/run/",
    max_shard_size=1000,
)
def stale(world: World) -> None:
    index = {"weight_map": {"weight": "model-00001-of-00002.safetensors"}}
    world.server.put("lab/run/model.safetensors.index.json", json.dumps(index).encode())


@cause("Writing is not allowed", torchwick.AccessDeniedError, "not allowed", call=save_state, asked_as=True)
def may_not_write(world: World) -> None:
    world.answers(403, "AccessDenied", "Access Denied")
