"""One nginx that serves the checkpoint three ways: plain HTTP, TLS, and a capped rate per connection.

nginx stands in for S3 because it costs the machine least: what is left to measure is the client. It answers
GET, HEAD and ranges from the page cache and never looks at a signature.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

HOST = "127.0.0.1"
BUCKET = "bench"
KINDS = {
    "plain": "plain HTTP, no limit",
    "tls": "TLS with AES-128-GCM",
    "slow": "plain HTTP, 85 MB/s per connection",
}

_CONFIG = """\
{user}
worker_processes 2;
pid {run}/nginx.pid;
error_log {run}/error.log warn;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    default_type application/octet-stream;
    client_body_temp_path {run}/client_body;
    proxy_temp_path {run}/proxy;
    fastcgi_temp_path {run}/fastcgi;
    uwsgi_temp_path {run}/uwsgi;
    scgi_temp_path {run}/scgi;

    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000;

    # TLS cannot use sendfile: one large buffer per response spares it thousands of small reads.
    output_buffers 2 1m;

    server {{
        listen {host}:{plain};
        location /{bucket}/ {{ alias {files}/; }}
    }}
    server {{
        listen {host}:{tls} ssl;
        ssl_certificate {run}/server.pem;
        ssl_certificate_key {run}/server.pem;
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_ciphers ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256;
        ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;
        location /{bucket}/ {{ alias {files}/; }}
    }}
    server {{
        listen {host}:{slow};
        # nginx counts a rate over whole seconds, so a response shorter than a second's worth of bytes would
        # pass unchecked. What paces it is the pause after each chunk, in whole milliseconds: 416 KiB, which
        # is 104 pages, take 5 ms at this rate. No bytes are let through before the limit sets in.
        limit_rate 85000000;
        limit_rate_after 0;
        sendfile_max_chunk 416k;
        location /{bucket}/ {{ alias {files}/; }}
    }}
}}
"""


class NginxMissingError(RuntimeError):
    """There is no nginx on this machine."""


@dataclass(frozen=True)
class Server:
    """A running nginx: one endpoint per kind, and the certificate authority to trust."""

    endpoints: dict[str, str]
    authority: Path

    def environment(self, kind: str) -> dict[str, str]:
        """Environment of a client of this kind of server, rid of whatever AWS settings the user has."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        trust = {"AWS_CA_BUNDLE": str(self.authority)} if kind == "tls" else {}
        return {
            **inherited,
            "AWS_ENDPOINT_URL": self.endpoints[kind],
            "AWS_ACCESS_KEY_ID": "benchmark",
            "AWS_SECRET_ACCESS_KEY": "benchmark",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "NO_PROXY": HOST,
            **trust,
        }


def find_nginx() -> str:
    """Path of nginx, which distributions keep where an ordinary user's PATH may not reach."""
    search = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    if nginx := shutil.which("nginx", path=search):
        return nginx
    raise NginxMissingError("nginx is missing: on Debian and Ubuntu, `apt-get install nginx-light` brings it")


@contextlib.contextmanager
def serve(files: Path) -> Iterator[Server]:
    """Serve the folder as the bucket `bench` until the block ends."""
    nginx = find_nginx()
    with tempfile.TemporaryDirectory(prefix="benchmark-nginx-") as folder:
        run = Path(folder)
        ports = _free_ports()
        _write_certificate(run)
        config = run / "nginx.conf"
        config.write_text(
            _CONFIG.format(user=_user(), run=run, host=HOST, bucket=BUCKET, files=files.resolve(), **ports)
        )
        process = subprocess.Popen(
            [nginx, "-p", run, "-e", run / "error.log", "-c", config, "-g", "daemon off;"]
        )
        try:
            for port in ports.values():
                _wait_until_open(port, process)
            yield Server(
                endpoints={
                    kind: f"{'https' if kind == 'tls' else 'http'}://{HOST}:{port}"
                    for kind, port in ports.items()
                },
                authority=run / "authority.pem",
            )
        finally:
            process.terminate()
            process.wait()


def _user() -> str:
    # A root nginx gives its workers to an account that may not reach the checkpoint; any other nginx keeps
    # its user and would only warn about this line.
    if os.geteuid() != 0:
        return ""
    return f"user {pwd.getpwuid(0).pw_name} {grp.getgrgid(os.getegid()).gr_name};"


def _free_ports() -> dict[str, int]:
    # All are held at once, so that none is given out twice.
    with contextlib.ExitStack() as held:
        sockets = {kind: held.enter_context(socket.create_server((HOST, 0))) for kind in KINDS}
        return {kind: int(listener.getsockname()[1]) for kind, listener in sockets.items()}


def _write_certificate(run: Path) -> None:
    import trustme

    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(run / "authority.pem"))
    certificate = authority.issue_cert(HOST, "localhost")
    certificate.private_key_and_cert_chain_pem.write_to_path(str(run / "server.pem"))


def _wait_until_open(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 10
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection((HOST, port)):
            return
        time.sleep(0.02)
    raise RuntimeError(f"nginx did not open port {port}; what it wrote to stderr says why")
