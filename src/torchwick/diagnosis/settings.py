"""The settings in force, and where each came from."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from urllib.parse import urlsplit

from torchwick.diagnosis.case import Case
from torchwick.diagnosis.findings import Finding, Status
from torchwick.diagnosis.words import bare_address, count_text
from torchwick.errors import StoreError
from torchwick.store.line import trusting
from torchwick.store.proxy import proxy_for
from torchwick.store.s3_client import region_of, trusted_bundle

__all__ = [
    "addressing",
    "authorities",
    "bundle_of",
    "endpoint",
    "is_amazon",
    "profile",
    "proxy",
    "proxy_variable",
    "region",
    "variables",
]

_PROFILES = ("AWS_DEFAULT_PROFILE", "AWS_PROFILE")  # in botocore's order
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


def variables(_: Case) -> Finding:
    """Tell which variables steer where S3 clients connect, and as whom: their names only."""
    names = sorted(name for name in os.environ if name.startswith("AWS_") or name.upper() in _PROXIES)
    return Finding("ok", ", ".join(names) or "none is set", facts={"variables": names})


def profile(case: Case) -> Finding:
    """Tell the profile of the AWS configuration.

    Raises:
        BotoCoreError: there is none of that name, or the files cannot be read.
    """
    name = case.session.profile or "default"
    case.session.get_scoped_config()
    source = _first_set({"S3Config.profile": case.s3.profile}, _PROFILES) or "by default"
    files = [case.session.get_config_variable(of) for of in ("config_file", "credentials_file")]
    present = [file for file in files if Path(file).expanduser().is_file()]
    found = f"{name}, {_from(source)}; " + (" and ".join(present) or "there is no file of profiles")
    return Finding("ok", found, facts={"profile": name, "source": source, "files": present})


def region(case: Case) -> Finding:
    """Tell the region. botocore reads ``AWS_DEFAULT_REGION``; ``AWS_REGION`` is what other kits read."""
    named, other = region_of(case.session, case.s3), os.environ.get("AWS_REGION")
    source = _first_set({"S3Config.region": case.s3.region}, ("AWS_DEFAULT_REGION",)) or "the profile"
    facts = {"region": named, "source": source if named else None}
    if other not in (None, "", named) and case.s3.region is None:
        what = f"{named}, {_from(source)}" if named else "none is in force"
        advice = f"Set AWS_DEFAULT_REGION to {other}, or pass it as S3Config.region: botocore does not read "
        return Finding("warning", f"{what}; AWS_REGION is set, but not read", f"{advice}AWS_REGION.", facts)
    if named:
        return Finding("ok", f"{named}, {_from(source)}", facts=facts)
    return Finding("note", "none is named: S3 tells a bucket's, at the price of a request", facts=facts)


def endpoint(case: Case) -> Finding:
    """Tell which S3 is asked.

    Raises:
        BotoCoreError: there is no S3 at that endpoint, or it is not known.
    """
    url = str(case.nobody.meta.endpoint_url)
    facts = {"endpoint": bare_address(url), "amazon": is_amazon(case, url)}
    source = _first_set({"S3Config.endpoint_url": case.s3.endpoint_url}, _ENDPOINTS)
    if source is None:
        source = "Amazon's own" if facts["amazon"] else "the profile"
    where = urlsplit(case.url).netloc
    host = f"; the object at {where}" if where != urlsplit(url).netloc and case.uri is not None else ""
    return Finding("ok", f"{bare_address(url)}, {_from(source)}{host}", facts={**facts, "source": source})


def is_amazon(case: Case, url: str) -> bool:
    """Whether a server is Amazon's: whether its name ends as botocore's list of Amazon's domains has it."""
    host = urlsplit(url).hostname or ""
    outputs = [partition["outputs"] for partition in case.session.get_data("partitions")["partitions"]]
    domains = {output[kind] for output in outputs for kind in ("dnsSuffix", "dualStackDnsSuffix")}
    return host.endswith(tuple(f".{domain}" for domain in domains))


def addressing(case: Case) -> Finding:
    """Tell where the bucket's name goes, into the host or into the path."""
    style, where = ("virtual", "host's name") if case.bucket_in_host else ("path", "path")
    chosen = case.s3.addressing_style
    source = "botocore's choice, or the profile's" if chosen == "auto" else "from S3Config.addressing_style"
    return Finding("ok", f"the bucket is in the {where}, {source}", facts={"addressing_style": style})


def proxy(case: Case) -> Finding:
    """Tell through which proxy the server is reached.

    Raises:
        StoreError: the environment names one that cannot be used.
    """
    parts = urlsplit(case.url)
    used, variable = proxy_for(parts.scheme, parts.netloc), proxy_variable(parts.scheme)
    address = os.environ.get(variable, "")
    beyond_host = urlsplit(address if "//" in address else f"//{address}")[2:] if used else ()
    if "@" in "".join(beyond_host):
        advice = f"Write @ as %40 and / as %2F in the password in {variable}."
        return Finding("failed", f"the password in {variable} ends its host's name too early", advice)
    if used is not None:
        return Finding("ok", f"{used}, from {variable}", facts={"proxy": str(used), "bypassed": False})
    bypassed = bool(address)
    found = "none: NO_PROXY names the host" if bypassed else "none"
    return Finding("ok", found, facts={"proxy": None, "bypassed": bypassed})


def proxy_variable(scheme: str) -> str:
    """Return the name of the variable that names the proxy: in small letters it counts for more."""
    small = f"{scheme}_proxy"
    return small if os.environ.get(small) else small.upper()


def authorities(case: Case) -> Finding:
    """Tell which certificate authorities are trusted. Over plain HTTP nobody asks for them."""
    bundle, source = bundle_of(case)
    facts = {"ca_bundle": bundle, "source": source}
    status: Status = "failed" if urlsplit(case.url).scheme == "https" else "warning"
    if bundle is not None and not Path(bundle).exists():
        advice = f"Correct {_setting(source)}: there is no file {bundle}."
        return Finding(status, f"there is no file {bundle}, {_from(source)}", advice, facts)
    try:
        count = trusting(bundle).cert_store_stats()["x509_ca"]
    except StoreError as error:
        if not isinstance(error.__cause__, ssl.SSLError):
            return Finding(status, f"{error.message}, {_from(source)}", error.hint, facts)
        empty = error.__cause__.reason == "NO_CERTIFICATE_OR_CRL_FOUND"
        holds = f"{bundle} holds {'no certificate' if empty else 'a certificate that is broken'}"
        advice = f"Correct {_setting(source)}: {holds}."
        return Finding(status, f"{holds}, {_from(source)}", advice, facts)
    if bundle is None:
        return Finding("ok", "those that Python trusts", facts=facts)
    found = f"{count_text(count, 'certificate')} in {bundle}, {_from(source)}"
    return Finding("ok", found, facts={**facts, "certificates": count})


def bundle_of(case: Case) -> tuple[str | None, str]:
    """Return the file of trusted authorities, None for what Python trusts; and what named it."""
    named = {"S3Config.ca_bundle": case.s3.ca_bundle}
    if case.scheme != "s3":
        source = _first_set(named, ("AWS_CA_BUNDLE",))
        bundle = case.s3.ca_bundle or os.environ.get("AWS_CA_BUNDLE")
        return bundle, source or "Python's own"
    bundle = trusted_bundle(case.session, case.s3)
    source = _first_set(named, ("AWS_CA_BUNDLE",))
    if source is None and case.session.get_config_variable("ca_bundle"):
        source = "the profile"
    return bundle, source or _first_set({}, ("REQUESTS_CA_BUNDLE",)) or "botocore's own"


def _setting(source: str) -> str:
    return "the profile's ca_bundle" if source == "the profile" else source


def _first_set(arguments: dict[str, str | None], names: tuple[str, ...]) -> str | None:
    """Return the name of the first that is set, arguments before environment variables."""
    given = next((name for name, value in arguments.items() if value), None)
    return given or next((name for name in names if os.environ.get(name)), None)


def _from(source: str) -> str:
    return source if source.endswith((" own", "by default")) else f"from {source}"
