"""Stand-ins for the services that hand out AWS credentials, and an S3 server that checks the credentials.

    with IdentityProvider() as provider, RoleServer(provider) as server, Gate(server.endpoint_url) as gate:
        keys = server.session()           # temporary credentials that the server's own STS issued
        with InstanceMetadata(lambda: keys) as metadata:
            ...                           # a client finds them there, and signs requests to gate.url
        gate.calls                       # all that went through, in order

SeaweedFS plays S3 and STS, and checks signatures and session tokens by itself. No stand-in decides whether a
signature is good.
"""

from __future__ import annotations

import base64
import http.client
import http.server
import json
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Self, cast
from urllib.parse import parse_qsl, urlsplit
from xml.etree import ElementTree as ET

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from torchwick.demo.server import SeaweedFS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

ACCOUNT = "123456789012"
READER = f"arn:aws:iam::{ACCOUNT}:role/reader"
WEB_READER = f"arn:aws:iam::{ACCOUNT}:role/web-reader"
AUDIENCE = "sts.amazonaws.com"

_PATIENCE = 20.0  # seconds that the server behind a gate may take
_HOP_BY_HOP = {"connection", "content-length", "date", "keep-alive", "server", "transfer-encoding"}


@dataclass(frozen=True)
class Keys:
    """Credentials, temporary ones if they have a token."""

    access_key: str
    secret_key: str = field(repr=False)
    token: str | None = field(default=None, repr=False)
    expires: datetime = field(default_factory=lambda: soon(3600.0))

    @property
    def end(self) -> str:
        """Return when they end, as AWS writes it."""
        return self.expires.strftime("%Y-%m-%dT%H:%M:%SZ")


Issue = Callable[[], Keys]


def soon(seconds: float) -> datetime:
    """Return the moment so many seconds from now."""
    return datetime.now(UTC) + timedelta(seconds=seconds)


@dataclass(frozen=True)
class Call:
    """One request as it arrived; header names are in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.target).query))

    @property
    def form(self) -> dict[str, str]:
        """Return the fields of a form, which is how STS is asked."""
        return dict(parse_qsl(self.body.decode()))

    @property
    def signer(self) -> str | None:
        """Return the access key that signed it."""
        _, found, rest = self.headers.get("authorization", "").partition("Credential=")
        return rest.partition("/")[0] if found else None


@dataclass(frozen=True)
class Reply:
    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def json_reply(content: object, status: int = 200, **headers: str) -> Reply:
    return Reply(status, json.dumps(content).encode(), {"Content-Type": "application/json", **headers})


def refusal(code: str, status: int = 400) -> Reply:
    """Return an error as S3 words it."""
    return Reply(status, _error(code).encode(), {"Content-Type": "application/xml"})


def role_refusal(code: str, message: str = "", status: int = 403) -> Reply:
    """Return an error as STS words it."""
    body = f"<ErrorResponse>{_error(code, message)}<RequestId>STANDIN</RequestId></ErrorResponse>"
    return Reply(status, body.encode(), {"Content-Type": "text/xml"})


def _error(code: str, message: str = "") -> str:
    return f"<Error><Code>{code}</Code><Message>{message}</Message><RequestId>STANDIN</RequestId></Error>"


class Service:
    """An HTTP server on a free port, which records what it is asked.

    Attributes:
        calls: every request, in the order of arrival.
        state: "broken" answers 500 to all, "silent" answers nothing.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.state: Literal["well", "broken", "silent"] = "well"
        self._stopping = threading.Event()
        self._http = _HTTPServer(self)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), name="standin")
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()
        if self._http.errors:
            raise ExceptionGroup("a stand-in itself failed", self._http.errors)

    def reply(self, call: Call) -> Reply:
        """Record a request and answer it."""
        self.calls.append(call)
        if self.state == "silent":
            self._stopping.wait()
        return Reply(500) if self.state != "well" else self.answer(call)

    def answer(self, call: Call) -> Reply:
        """Answer as the service would."""
        raise NotImplementedError


class InstanceMetadata(Service):
    """The metadata service of an EC2 instance, version 2: nothing without the session token it gave.

    Amazon EC2 user guide, "Use the Instance Metadata Service" and "Retrieve security credentials".
    """

    ROLE = "instance-role"

    def __init__(self, issue: Issue) -> None:
        super().__init__()
        self._issue = issue
        self._token = secrets.token_urlsafe()

    def answer(self, call: Call) -> Reply:
        role = "/latest/meta-data/iam/security-credentials/"
        if (call.method, call.path) == ("PUT", "/latest/api/token"):
            if "x-aws-ec2-metadata-token-ttl-seconds" not in call.headers:
                return Reply(400)
            return Reply(200, self._token.encode())
        if call.headers.get("x-aws-ec2-metadata-token") != self._token:
            return Reply(401)
        if call.path == role:
            return Reply(200, self.ROLE.encode())
        return json_reply(self._credentials()) if call.path == role + self.ROLE else Reply(404)

    def _credentials(self) -> dict[str, str | None]:
        keys = self._issue()
        return {
            "Code": "Success",
            "Type": "AWS-HMAC",
            "LastUpdated": "2026-01-01T00:00:00Z",
            "AccessKeyId": keys.access_key,
            "SecretAccessKey": keys.secret_key,
            "Token": keys.token,
            "Expiration": keys.end,
        }


class ContainerAgent(Service):
    """The agent that gives an ECS task, or an EKS pod, its credentials to whoever has the task's token.

    AWS SDKs and tools reference guide, "Container credential provider".

    Attributes:
        token: what the Authorization header has to say.
        uri: for AWS_CONTAINER_CREDENTIALS_FULL_URI.
    """

    def __init__(self, issue: Issue) -> None:
        super().__init__()
        self._issue = issue
        self.token = secrets.token_urlsafe()
        self.uri = f"{self.url}/v1/credentials"

    def answer(self, call: Call) -> Reply:
        if call.headers.get("authorization") != self.token:
            return Reply(401)
        keys = self._issue()
        return json_reply(
            {
                "AccessKeyId": keys.access_key,
                "SecretAccessKey": keys.secret_key,
                "Token": keys.token,
                "Expiration": keys.end,
            }
        )


class SingleSignOn(Service):
    """The portal that turns a login into a role's credentials, and the service that prolongs a login.

    IAM Identity Center portal API reference, "GetRoleCredentials"; OIDC API reference, "CreateToken".

    Attributes:
        logins: the access tokens that are good.
        prolongable: the refresh token that buys another login.
    """

    def __init__(self, issue: Issue) -> None:
        super().__init__()
        self._issue = issue
        self.logins = {secrets.token_urlsafe()}
        self.prolongable = secrets.token_urlsafe()

    def answer(self, call: Call) -> Reply:
        if (call.method, call.path) == ("POST", "/token"):
            return self._prolong(json.loads(call.body))
        if call.path != "/federation/credentials":
            return Reply(404)
        if call.headers.get("x-amz-sso_bearer_token") not in self.logins:
            error = {"message": "Session token not found or invalid"}
            return json_reply(error, 401, **{"x-amzn-ErrorType": "UnauthorizedException"})
        keys = self._issue()
        credentials = {
            "accessKeyId": keys.access_key,
            "secretAccessKey": keys.secret_key,
            "sessionToken": keys.token,
            "expiration": int(keys.expires.timestamp() * 1000),
        }
        return json_reply({"roleCredentials": credentials})

    def _prolong(self, wanted: Mapping[str, str]) -> Reply:
        if wanted.get("refreshToken") != self.prolongable or wanted.get("grantType") != "refresh_token":
            return json_reply({"error": "invalid_grant"}, 400)
        login = secrets.token_urlsafe()
        self.logins.add(login)
        return json_reply({"accessToken": login, "expiresIn": 3600, "tokenType": "Bearer"})


class IdentityProvider(Service):
    """An issuer of web identity tokens (OpenID Connect): tokens, and the key that proves them."""

    def __init__(self) -> None:
        super().__init__()
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def answer(self, call: Call) -> Reply:
        if call.path == "/jwks":
            return json_reply({"keys": [self._public_key()]})
        return json_reply({"issuer": self.url, "jwks_uri": f"{self.url}/jwks"})

    def web_token(self, lifetime: float = 600.0) -> str:
        """Return a token (RFC 7519) signed with RS256 (RFC 7515)."""
        now = int(time.time())
        claims = {"iss": self.url, "sub": "pod", "aud": AUDIENCE, "iat": now, "exp": now + int(lifetime)}
        header = {"alg": "RS256", "kid": "only", "typ": "JWT"}
        signed = ".".join(_base64url(json.dumps(part).encode()) for part in (header, claims))
        signature = self._key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{_base64url(signature)}"

    def _public_key(self) -> dict[str, str]:
        modulus = self._key.public_key().public_numbers().n.to_bytes(256, "big")
        fixed = {"kty": "RSA", "kid": "only", "use": "sig", "alg": "RS256", "e": "AQAB"}
        return {**fixed, "n": _base64url(modulus)}


def _base64url(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


class Gate(Service):
    """Hands requests on to a real server as they are, unless the test refuses them first.

    The Host header is handed on too, so that the server behind checks the client's own signature.

    Attributes:
        refuse: asked before a request is handed on; a reply of its own stands for the server's.
        issued: the access keys that STS gave through this gate, and the action that it gave them for.
        lifetime: seconds that temporary credentials claim to last; None leaves STS's own claim.
    """

    def __init__(self, upstream: str) -> None:
        super().__init__()
        self.refuse: Callable[[Call], Reply | None] = lambda call: None
        self.issued: dict[str, str] = {}
        self.lifetime: float | None = None
        self._upstream = urlsplit(upstream).netloc

    @property
    def reads(self) -> list[Call]:
        """Return the requests to S3."""
        return [call for call in list(self.calls) if call.method == "GET"]

    @property
    def roles_asked_for(self) -> list[Call]:
        """Return the requests to STS."""
        return [call for call in list(self.calls) if call.method == "POST"]

    def tell_true_lifetimes(self) -> None:
        """Leave STS's own claims alone from now on."""
        self.lifetime = None

    def answer(self, call: Call) -> Reply:
        reply = self.refuse(call) or self._forward(call)
        if call.method == "POST" and reply.status == 200:
            self._note(call.form["Action"], reply.body)
            reply = replace(reply, body=self._claim(reply.body))
        return reply

    def _forward(self, call: Call) -> Reply:
        connection = http.client.HTTPConnection(self._upstream, timeout=_PATIENCE)
        try:
            connection.putrequest(call.method, call.target, skip_host=True, skip_accept_encoding=True)
            for name, value in call.headers.items():
                connection.putheader(name, value)
            connection.endheaders(call.body)
            answer = connection.getresponse()
            headers = {k: v for k, v in answer.getheaders() if k.lower() not in _HOP_BY_HOP}
            return Reply(answer.status, answer.read(), headers)
        finally:
            connection.close()

    def _note(self, action: str, body: bytes) -> None:
        for element in ET.fromstring(body).iter():
            if element.tag.endswith("AccessKeyId") and element.text:
                self.issued[element.text] = action

    def _claim(self, body: bytes) -> bytes:
        if self.lifetime is None:
            return body
        end = Keys("", "", expires=soon(self.lifetime)).end
        return re.sub(rb"<Expiration>[^<]*<", f"<Expiration>{end}<".encode(), body)


class RoleServer(SeaweedFS):
    """SeaweedFS with what it takes to act as STS: two roles, and an identity provider that it trusts.

    Attributes:
        own: the keys of an administrator.
        successor: the keys of another, for those who replace theirs.
    """

    def __init__(self, provider: IdentityProvider) -> None:
        super().__init__()
        self._provider = provider
        self.own = Keys(self.access_key, self.secret_key)
        self.successor = Keys(f"AKIA{secrets.token_hex(8).upper()}", secrets.token_urlsafe(30))

    def session(self) -> Keys:
        """Return temporary credentials of an hour, new ones each time."""
        given = self._sts.assume_role(RoleArn=READER, RoleSessionName="standin")["Credentials"]
        return Keys(
            given["AccessKeyId"], given["SecretAccessKey"], given["SessionToken"], given["Expiration"]
        )

    def close(self) -> None:
        self.__dict__.pop("_sts", None)
        super().close()

    @cached_property
    def _sts(self) -> Any:
        import boto3

        return boto3.session.Session().client(
            "sts",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.region,
        )

    def _command(self, directory: Path) -> list[str]:
        settings = directory / "roles.json"
        settings.write_text(json.dumps(self._roles()), encoding="utf-8")
        return [*super()._command(directory), f"-s3.iam.config={settings}"]

    def _identities(self) -> dict[str, Any]:
        known = cast("dict[str, Any]", super()._identities())
        keys = {"accessKey": self.successor.access_key, "secretKey": self.successor.secret_key}
        known["identities"].append({**known["identities"][0], "name": "successor", "credentials": [keys]})
        return known

    def _roles(self) -> dict[str, object]:
        signing_key = base64.b64encode(secrets.token_bytes(32)).decode()
        trusted = {
            "issuer": self._provider.url,
            "clientId": AUDIENCE,
            "jwksUri": f"{self._provider.url}/jwks",
        }
        return {
            "sts": {
                "tokenDuration": "1h",
                "maxSessionLength": "12h",
                "issuer": "seaweedfs",
                "signingKey": signing_key,
            },
            "providers": [{"name": "provider", "type": "oidc", "enabled": True, "config": trusted}],
            "policy": {"defaultEffect": "Deny", "storeType": "memory"},
            "policies": [{"name": "read", "document": _policy("s3:GetObject", Resource="*")}],
            "roles": [
                _role(READER, "sts:AssumeRole"),
                _role(WEB_READER, "sts:AssumeRoleWithWebIdentity"),
            ],
        }


def _role(arn: str, action: str) -> dict[str, object]:
    return {
        "roleName": arn.rpartition("/")[2],
        "roleArn": arn,
        "trustPolicy": _policy(action, Principal="*"),
        "attachedPolicies": ["read"],
    }


def _policy(action: str, **more: str) -> dict[str, object]:
    return {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": action, **more}]}


class _HTTPServer(http.server.ThreadingHTTPServer):
    """One thread a request; all of them end in `server_close`."""

    daemon_threads = False
    request_queue_size = 128

    def __init__(self, owner: Service) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.owner = owner
        self.errors: list[Exception] = []

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        # A client that gives up waiting is what some tests are about.
        if isinstance(error, Exception) and not isinstance(error, OSError):
            self.errors.append(error)


class _Handler(http.server.BaseHTTPRequestHandler):
    """Speaks HTTP/1.0, whose connections end with their one reply: none is left open at the end."""

    def do_GET(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _serve(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(int(headers.get("content-length", 0)))
        reply = cast("_HTTPServer", self.server).owner.reply(Call(self.command, self.path, headers, body))
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        self.wfile.write(reply.body)
