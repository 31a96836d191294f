"""The way to the server: its name, a connection, TLS, an answer, and the server's clock."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from torchwick.diagnosis.case import Case
from torchwick.diagnosis.findings import Finding
from torchwick.diagnosis.settings import bundle_of, is_amazon, proxy_variable
from torchwick.diagnosis.words import duration_text
from torchwick.store.line import trusting

__all__ = ["clock", "dns", "http", "tcp", "tls"]

_MOST_SKEW = 300.0  # seconds; S3 refuses signatures that are 900 off
_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST")  # by version of OpenSSL
_SOON = 14 * 86_400  # seconds; whoever renews certificates by hand needs some days


def dns(case: Case) -> Finding:
    """Look up the server's name, or its proxy's."""
    probe = case.probe
    host = probe.peer[0]
    try:
        addresses = list(dict.fromkeys(probe.resolve()))
    except (socket.gaierror, UnicodeError) as error:
        why = error.strerror if isinstance(error, socket.gaierror) else "it is no name of a host"
        advice = f"Check the name {host}, and this machine's DNS."
        if probe.proxy is not None:
            variable = proxy_variable(probe.scheme)
            advice = f"The proxy named in {variable}, {host}, is unknown: correct the variable, or unset it."
        elif case.bucket_in_host and not is_amazon(case, case.url):
            advice = 'Leave the bucket out of the host\'s name: S3Config(addressing_style="path").'
        return Finding("failed", f"{host} is not known: {why}", advice, {"host": host})
    return Finding("ok", f"{host} is {', '.join(addresses)}", facts={"host": host, "addresses": addresses})


def tcp(case: Case) -> Finding:
    """Connect to the server, or to its proxy."""
    host, port = case.probe.peer
    variable = None if case.probe.proxy is None else proxy_variable(case.probe.scheme)
    via = "" if variable is None else " (the proxy)"
    facts = {"host": host, "port": port}
    started = time.perf_counter()
    try:
        address = case.probe.connect()
    except ConnectionRefusedError:
        advice = f"Check the port, and that the server runs: nothing listens at {host}:{port}."
        if variable is not None:
            advice = f"No proxy listens at {host}:{port}: correct {variable}, or unset it."
        return Finding("failed", f"{host}:{port}{via} refuses the connection", advice, facts)
    except TimeoutError:
        advice = f"Open the way to {host}:{port} in firewalls, security groups and routes, or "
        advice += f"correct {variable}." if variable else "set HTTPS_PROXY if a proxy leads there."
        return Finding("failed", f"{host}:{port}{via} does not answer: something drops it", advice, facts)
    seconds = time.perf_counter() - started
    found = f"{host}:{port}{via} answers in {duration_text(seconds)}"
    return Finding("ok", found, facts={**facts, "address": address, "seconds": seconds})


def tls(case: Case) -> Finding:
    """Agree on keys with the server, and check its certificate."""
    if not case.probe.secure:
        facts = {"version": None}
        if case.probe.within_machine:
            return Finding("ok", "none: plain HTTP, within this machine", facts=facts)
        return Finding("note", "none: plain HTTP, which anyone on the way can read", facts=facts)
    try:
        agreed = case.probe.encrypt(trusting(bundle_of(case)[0]))
    except ssl.SSLCertVerificationError as error:
        advice = "Set AWS_CA_BUNDLE to the PEM file of the authority that signed the server's certificate."
        if "expired" in error.verify_message:
            advice = "Have the server's certificate renewed, or set this machine's clock."
        elif "match" in error.verify_message:
            advice = "Name the server by a name that its certificate is made for."
        return Finding("failed", f"the certificate is not trusted: {error.verify_message}", advice)
    except TimeoutError:
        advice = "Check that the server speaks TLS at that port, and what holds its answer back."
        via = "" if case.probe.proxy is None else f", asked through the proxy {case.probe.proxy}"
        found = f"no answer to the TLS handshake within {case.timeout:g} s{via}"
        return Finding("failed", found, advice)
    except ssl.SSLError as error:
        if error.reason in _NO_TLS:
            where = "endpoint" if case.scheme == "s3" else "address"
            advice = f"Write http:// in the {where}, or use its TLS port."
            return Finding("failed", "the server does not speak TLS there", advice)
        advice = "Check that the server speaks TLS at that port, and that no middlebox answers for it."
        return Finding("failed", f"no agreement: {error.reason or error}", advice)
    return _told(agreed)


def _told(agreed: ssl.SSLSocket) -> Finding:
    certificate = agreed.getpeercert() or {}
    cipher = agreed.cipher()
    ends = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
    issuer = _issuer(certificate)
    day = datetime.fromtimestamp(ends, UTC).date().isoformat()
    facts = {
        "version": agreed.version(),
        "cipher": cipher[0] if cipher else None,
        "issuer": issuer,
        "expires": day,
    }
    found = f"{facts['version']}, {facts['cipher']}; certificate by {issuer}, until {day}"
    if ends - time.time() < _SOON:
        return Finding("warning", found, "Have the server's certificate renewed: it ends soon.", facts)
    return Finding("ok", found, facts=facts)


def _issuer(certificate: Mapping[str, Any]) -> str:
    pairs = certificate.get("issuer") or ()
    names = {key: value for group in pairs for key, value in group}
    return str(names.get("organizationName") or names.get("commonName") or "someone without a name")


def http(case: Case) -> Finding:
    """Ask the server for nothing, to see that it answers."""
    try:
        answer = case.probe.ask()
    except TimeoutError:
        advice = "Find out what holds the answer back: the server is overloaded, or something on the way is."
        return Finding("failed", f"no answer within {duration_text(case.timeout)}", advice)
    case.date = answer.date
    name = answer.server or "the server"
    facts = {"status": answer.status, "server": answer.server, "seconds": answer.seconds}
    return Finding("ok", f"{name} answers in {duration_text(answer.seconds)}", facts=facts)


def clock(case: Case) -> Finding:
    """Hold this machine's clock against the server's."""
    if case.date is None:
        return Finding("unknown", "the server does not tell its date")
    try:
        ahead = time.time() - parsedate_to_datetime(case.date).timestamp()
    except (ValueError, OverflowError):
        return Finding("unknown", f"the server's date is none: {case.date[:40]}")
    facts = {"seconds_ahead": ahead}
    if abs(ahead) < 2:  # a date has whole seconds
        return Finding("ok", "it agrees with the server's", facts=facts)
    direction = "ahead of" if ahead > 0 else "behind"
    found = f"{duration_text(abs(ahead))} {direction} the server's"
    if abs(ahead) <= _MOST_SKEW:
        return Finding("ok", found, facts=facts)
    advice = "Set this machine's clock, and have it kept by NTP: S3 refuses requests that are 15 minutes off."
    return Finding("warning", found, advice, facts)
