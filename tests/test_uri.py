"""An address is understood as it was meant, or refused with a hint; what it keeps secret is never shown."""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path, PureWindowsPath
from urllib.parse import unquote

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from torchwick.errors import URIError
from torchwick.uri import URI, parse

SIGNED = "host/models/new.pt?X-Amz-Credential=AKIA&X-Amz-Signature=5ec3e7"
ACCOUNT = "123456789012"

keys = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\\\0:"), min_size=1)
pieces = st.sampled_from(
    ["..", ".", "/", "//", "\\", "\0", "a", "%2e", "%2f", "?", "#", "s3:", "C:", "\ud800"]
)
versions = st.text("abcXYZ0189._-/+=", min_size=1)


class TestS3:
    def test_a_bucket_and_a_key(self) -> None:
        assert parse("s3://models/llama/new.pt") == URI("s3", "models", "llama/new.pt")

    def test_the_scheme_in_capitals(self) -> None:
        assert parse("S3://models/new.pt") == URI("s3", "models", "new.pt")

    def test_a_version(self) -> None:
        uri = parse("s3://models/new.pt?versionId=3/L4kqtJ+rmSpXd3.x_-")
        assert (uri.key, uri.version) == ("new.pt", "3/L4kqtJ+rmSpXd3.x_-")

    @pytest.mark.parametrize(
        "key", ["what?.pt", "a#b.pt", "a?versionId=", "?x=1", "a%20b", "a+b", " a ", "/a", "a//b", "ключ.pt"]
    )
    def test_a_key_as_s3_spells_it(self, key: str) -> None:
        uri = parse(f"s3://models/{key}")
        assert (uri.key, uri.version) == (key, None)

    @pytest.mark.parametrize(
        "arn",
        [
            f"arn:aws:s3:eu-west-1:{ACCOUNT}:accesspoint/models",
            f"arn:aws-cn:s3:cn-north-1:{ACCOUNT}:accesspoint/models",
            f"arn:aws:s3::{ACCOUNT}:accesspoint/mfzwi23gnjvgw.mrap",
            f"arn:aws:s3-object-lambda:eu-west-1:{ACCOUNT}:accesspoint/models",
            f"arn:aws:s3-outposts:eu-west-1:{ACCOUNT}:outpost/op-01ac5d28a6a232904/accesspoint/models",
        ],
    )
    def test_an_access_point(self, arn: str) -> None:
        assert parse(f"s3://{arn}/a/new.pt?versionId=7") == URI("s3", arn, "a/new.pt", "7")

    @given(keys)
    def test_every_key_survives(self, key: str) -> None:
        assume("?versionId=" not in key)
        uri = parse(f"s3://models/{key}")
        assert (uri.bucket, uri.key, uri.version) == ("models", key, None)

    @given(keys, versions)
    def test_every_key_survives_beside_a_version(self, key: str, version: str) -> None:
        assume(not key.endswith("/"))
        uri = parse(f"s3://models/{key}?versionId={version}")
        assert (uri.key, uri.version) == (key, version)

    @given(keys, st.none() | versions)
    def test_its_text_means_the_same(self, key: str, version: str | None) -> None:
        assume("?versionId=" not in key and not (version and key.endswith("/")))
        uri = URI("s3", "models", key, version)
        assert parse(str(uri)) == uri


class TestWeb:
    @pytest.mark.parametrize("scheme", ["http", "https"])
    def test_the_parts_of_a_url(self, scheme: str) -> None:
        uri = parse(f"{scheme}://host:8000/a%20b/new.pt?download=true")
        assert (uri.scheme, uri.bucket, uri.key) == (scheme, "host:8000", "/a%20b/new.pt")
        assert uri.query == "download=true"

    def test_the_scheme_in_capitals(self) -> None:
        assert parse("HTTPS://host/new.pt").scheme == "https"

    def test_a_host_alone(self) -> None:
        assert parse("https://host").key == "/"

    def test_what_signs_it_is_never_shown(self) -> None:
        uri = parse(f"https://{SIGNED}")
        assert "5ec3e7" in uri.query
        for shown in (str(uri), repr(uri), f"{uri}", repr([uri])):
            assert "AKIA" not in shown
            assert "5ec3e7" not in shown
        assert str(uri) == "https://host/models/new.pt?…"


class TestFiles:
    def test_a_path(self) -> None:
        assert parse("checkpoints/new.pt") == URI("file", "", "checkpoints/new.pt")

    def test_a_path_object(self, tmp_path: Path) -> None:
        assert parse(tmp_path / "new.pt").key == str(tmp_path / "new.pt")

    def test_anything_with_a_path(self) -> None:
        class Named(os.PathLike[str]):
            def __fspath__(self) -> str:
                return "s3://models/new.pt"

        assert parse(Named()) == URI("s3", "models", "new.pt")

    @given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1))
    def test_every_name_survives_as_a_file_uri(self, name: str) -> None:
        path = Path("/checkpoints", name)
        assert parse(path.as_uri()).key == str(path)

    def test_the_host_of_a_file_uri_is_not_dropped(self) -> None:
        with pytest.raises(URIError):  # else file://models/new.pt would quietly read /new.pt
            parse("file://models/new.pt")

    def test_this_machine_may_be_named(self) -> None:
        assert parse("file://localhost/tmp/new.pt").key == "/tmp/new.pt"

    def test_a_file_uri_without_a_path(self) -> None:
        with pytest.raises(URIError):
            parse("file://")


DIRECTORIES = ["s3://models/llama/", "s3://models/", "https://host/llama/", "checkpoints/llama/", "/", "./"]


class TestDirectories:
    @pytest.mark.parametrize("text", [*DIRECTORIES, "file:///checkpoints/", "https://host"])
    def test_what_ends_in_a_slash(self, text: str) -> None:
        uri = parse(text)
        assert uri.is_directory
        assert uri.as_directory() is uri

    @pytest.mark.parametrize("text", ["s3://models/new.pt", "https://host/new.pt", "checkpoints/new.pt"])
    def test_one_object_is_none(self, text: str) -> None:
        uri = parse(text)
        assert not uri.is_directory
        assert uri.as_directory() == parse(f"{text}/")

    def test_all_of_a_bucket(self) -> None:
        assert parse("s3://models/") == URI("s3", "models", "")
        assert str(parse("s3://models/")) == "s3://models/"

    def test_all_of_an_access_point(self) -> None:
        arn = f"arn:aws:s3:eu-west-1:{ACCOUNT}:accesspoint/models"
        assert parse(f"s3://{arn}/") == URI("s3", arn, "")

    @pytest.mark.parametrize(
        ("directory", "child"),
        [
            ("s3://models/llama/", "s3://models/llama/a b%20+.pt"),
            ("s3://models/", "s3://models/a b%20+.pt"),
            ("https://host/llama/", "https://host/llama/a%20b%2520+.pt"),
            ("checkpoints/llama/", "checkpoints/llama/a b%20+.pt"),
            ("checkpoints/llama", "checkpoints/llama/a b%20+.pt"),
        ],
    )
    def test_an_object_in_it(self, directory: str, child: str) -> None:
        assert parse(directory).child("a b%20+.pt") == parse(child)

    def test_an_object_below_it(self) -> None:
        assert parse("s3://models/llama/").child("shards/1.pt") == parse("s3://models/llama/shards/1.pt")

    def test_an_objects_name_is_no_query(self) -> None:
        child = parse("https://host/llama/").child("what?x=1#2")
        assert (child.key, child.query) == ("/llama/what%3Fx=1%232", "")
        assert parse("s3://models/llama/").child("a?versionId=7").version is None

    def test_a_signature_is_of_one_object(self) -> None:
        for ask in (URI.as_directory, lambda uri: uri.child("new.pt")):
            with pytest.raises(URIError, match="query") as caught:
                ask(parse("https://host/llama/?X-Amz-Signature=5ec3e7"))
            assert "5ec3e7" not in str(caught.value)
            assert caught.value.hint

    def test_a_version_is_of_one_object(self) -> None:
        for ask in (URI.as_directory, lambda uri: uri.child("new.pt")):
            with pytest.raises(URIError, match="a version is of one object"):
                ask(parse("s3://models/llama?versionId=7"))

    @pytest.mark.parametrize(
        "name",
        [
            "",
            ".",
            "..",
            "../new.pt",
            "a/../../new.pt",
            "a/..",
            "./new.pt",
            "/etc/passwd",
            "//host/new.pt",
            "a//new.pt",
            "a/",
            "..\\new.pt",
            "C:\\new.pt",
            "C:new.pt",
            "new.pt\0.safetensors",
            "https://host/new.pt",
            "s3:new.pt",
            "file:///etc/passwd",
            "\ud800.pt",
        ],
    )
    @pytest.mark.parametrize("text", DIRECTORIES)
    def test_a_name_that_leads_elsewhere(self, text: str, name: str) -> None:
        with pytest.raises(URIError, match="no name of an object in this directory") as caught:
            parse(text).child(name)
        assert repr(name) in str(caught.value)
        assert caught.value.uri == text
        str(caught.value).encode()  # it can be printed

    def test_a_long_name_is_shown_in_part(self) -> None:
        with pytest.raises(URIError) as caught:
            parse("s3://models/").child("../" * 10_000)
        assert len(str(caught.value)) < 500

    @given(st.lists(names.filter(lambda name: name not in (".", "..")), min_size=1, max_size=3))
    def test_every_other_name_is_an_objects(self, segments: list[str]) -> None:
        name = "/".join(segments)
        assert parse("s3://models/llama/").child(name).key == f"llama/{name}"
        assert parse("/checkpoints/").child(name).key == f"/checkpoints/{name}"
        assert unquote(parse("https://host/llama/").child(name).key) == f"/llama/{name}"

    @given(st.lists(pieces | names, max_size=6).map("".join))
    def test_no_name_leads_out(self, name: str) -> None:
        for text in ("s3://models/llama/", "https://host/llama/", "/checkpoints/"):
            directory = parse(text)
            try:
                child = directory.child(name)
            except URIError:
                continue
            assert (child.scheme, child.bucket, child.query) == (directory.scheme, directory.bucket, "")
            path = unquote(child.key) if child.scheme == "https" else child.key
            assert posixpath.normpath(path).startswith(directory.key)
            assert PureWindowsPath("C:/here", name).is_relative_to("C:/here")


class TestRefusals:
    @pytest.mark.parametrize(
        ("text", "hint"),
        [
            ("", "Use s3://bucket/key"),
            ("gs://models/new.pt", "Use s3://bucket/key"),
            ("s3://", "Write s3://bucket/key"),
            ("s3:///new.pt", "Write s3://bucket/key"),
            ("s3://models", "Name one object, s3://bucket/key, or s3://bucket/ for all"),
            ("s3://models/?versionId=7", "Leave out [?]versionId="),
            ("s3://models/llama/?versionId=7", "Leave out [?]versionId="),
            ("https:///new.pt", "Write https://host/path"),
            ("https://me:word@host/new.pt", "Use a presigned URL"),
        ],
    )
    def test_it_says_what_to_write(self, text: str, hint: str) -> None:
        with pytest.raises(URIError, match=hint) as caught:
            parse(text)
        assert caught.value.hint is not None
        assert re.search(hint, caught.value.hint)

    @pytest.mark.parametrize("text", ["s3://models/new.pt", "https://host/new.pt"])
    def test_a_path_object_that_lost_a_slash(self, text: str) -> None:
        with pytest.raises(URIError, match=r"pathlib.Path folds the two slashes"):
            parse(Path(text))

    @pytest.mark.parametrize(
        "text", ["https://[::1/new.pt", "https://host:port/new.pt", "http://host:99999/a"]
    )
    def test_a_url_that_names_no_host(self, text: str) -> None:
        with pytest.raises(URIError):
            parse(text)

    @pytest.mark.parametrize(
        "text",
        [
            f"htps://{SIGNED}",
            f"https:/{SIGNED}",
            f"https://me:5ec3e7@{SIGNED}",
            "s3://AKIA:5ec3e7@models/new.pt",
        ],
    )
    def test_a_refusal_shows_no_secret(self, text: str) -> None:
        with pytest.raises(URIError) as caught:
            parse(text)
        assert "5ec3e7" not in f"{caught.value} {caught.value!r} {caught.value.uri}"
