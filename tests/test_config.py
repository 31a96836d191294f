"""Settings refuse what makes no sense, compare by value and cross process borders."""

from __future__ import annotations

import base64
import dataclasses
import pickle
from typing import Any

import pytest

from torchwick import S3Config, TransferConfig

CONFIGS = [
    S3Config(),
    S3Config(profile="work", region="eu-west-1", endpoint_url="http://host", anonymous=True),
    S3Config(role_arn="arn:aws:iam::123456789012:role/reader", external_id="ours"),
    S3Config(sse_customer_key=bytes(32)),
    S3Config(requester_pays=True, ca_bundle="ca.pem", addressing_style="path"),
    TransferConfig(),
    TransferConfig(part_size=1 << 20, connections=3, memory_limit="2GB", timeout=0.5, max_attempts=1),
]


@pytest.mark.parametrize("config", CONFIGS, ids=repr)
def test_it_pickles(config: S3Config | TransferConfig) -> None:
    assert pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize("config", CONFIGS, ids=repr)
def test_equal_settings_are_equal_and_hash_alike(config: Any) -> None:
    twin = dataclasses.replace(config)
    assert (twin, hash(twin)) == (config, hash(config))


def test_different_settings_differ() -> None:
    assert len(set(CONFIGS)) == len(CONFIGS)


@pytest.mark.parametrize("config", [S3Config(), TransferConfig()])
def test_it_is_frozen(config: Any) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, dataclasses.fields(config)[0].name, "other")


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (1, 1),
        (12345, 12345),
        ("12345", 12345),
        ("7B", 7),
        ("1K", 1000),
        ("1KB", 1000),
        ("1KiB", 1024),
        ("2GB", 2 * 10**9),
        ("2GiB", 2 * 2**30),
        ("2 gib", 2 * 2**30),
        (" 512MiB ", 512 * 2**20),
        ("1.5MiB", 3 * 2**19),
        ("1T", 10**12),
        ("1TiB", 2**40),
    ],
)
def test_sizes(size: int | str, expected: int) -> None:
    assert TransferConfig(memory_limit=size).memory_bytes() == expected


@pytest.mark.parametrize(
    "size", [0, -1, None, "", "GB", "1I", "-1GB", "2 parsecs", "1e9", "0", "0GB", "0.4B", "1,5GB"]
)
def test_sizes_that_cannot_be(size: Any) -> None:
    with pytest.raises(ValueError, match=r"size|positive"):
        TransferConfig(memory_limit=size)


@pytest.mark.parametrize("name", ["part_size", "connections", "timeout", "max_attempts"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), None, "many"])
def test_numbers_that_cannot_be(name: str, value: Any) -> None:
    settings: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=name):
        TransferConfig(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"timeout": "auto"},
        {"timeout": float("inf")},
        {"max_attempts": "auto"},
        {"max_attempts": 1.5},
        {"connections": 2.5},
        {"part_size": 1e6 + 0.5},
    ],
    ids=repr,
)
def test_what_would_only_fail_in_the_middle_of_a_load(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        TransferConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"external_id": "ours"}, "role_arn"),
        ({"role_arn": "arn:aws:iam::123456789012:role/reader", "external_id": "x"}, "external_id"),
        ({"role_arn": "reader"}, "ARN of a role"),
        ({"role_arn": "arn:aws:iam::123456789012:role/reader", "anonymous": True}, "anonymous"),
        ({"addressing_style": "host"}, "addressing_style"),
        ({"sse_customer_key": b"short"}, "32 bytes, not 5"),
        ({"sse_customer_key": "not base64!"}, "base64"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        S3Config(**settings)


def test_a_customers_key_is_bytes_and_is_not_shown() -> None:
    key = bytes(range(32))
    config = S3Config(sse_customer_key=base64.b64encode(key).decode())
    assert config == S3Config(sse_customer_key=key)
    assert "sse_customer_key" not in repr(config)
    assert pickle.loads(pickle.dumps(config)).sse_customer_key == key


def test_the_chosen_memory_limit_is_positive() -> None:
    assert TransferConfig().memory_bytes() > 0
