"""Secrets by name, by look and by environment; and the innocent that must stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trainer.config.log import WandbMode
from trainer.metrics.redact import REMOVED, redact

HEX_40 = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    "key",
    [
        "key", "api_key", "apiKey", "WANDB_API_KEY", "hf.token", "HF_TOKEN", "token", "secret",
        "client_secret", "password", "db-password", "credential", "aws_credentials",
        "accessToken", "passphrase",
    ],
)  # fmt: skip
def test_a_secret_name_removes_its_value_whatever_it_is(key: str) -> None:
    assert redact({key: "plain"}) == {key: REMOVED}
    assert redact({"a": {key: {"b": ["plain"]}}}) == {"a": {key: REMOVED}}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tokens_per_s", 1.5),
        ("max_tokens", 1_000_000),
        ("global_batch_tokens", 131072),
        ("tokenizer", "meta-llama/Meta-Llama-3-8B"),
        ("flops_per_token", 48.25e9),
        ("pad_token", "<pad>"),
        ("num_key_value_heads", 8),
        ("monkey", "business"),
        ("token", None),
        ("revision", HEX_40),
        ("git_sha", HEX_40),
        ("token_digest", 7),
        ("path", "hf_transformers/checkpoints/step-00000100"),
        ("url", "https://example.org/a@b?page=1"),
        ("ratio", 0.25),
        ("on", True),
    ],
)
def test_daily_words_stay(key: str, value: Any) -> None:
    assert redact({key: value}) == {key: value}


@pytest.mark.parametrize(
    "secret",
    [
        "hf_AbCdEfGhIjKlMnOpQrStUvWxYz12345678",
        HEX_40,
        "wandb_v1_" + "aB3" * 20,
        "sk-proj-abc123abc123abc123abc123",
        "AKIAIOSFODNN7EXAMPLE",
        "ghp_abcdefghij1234567890abcdefghij123456",
    ],
)
def test_a_secret_looking_value_is_removed_under_any_name(secret: str) -> None:
    config = {"note": secret, "list": ["a", f"use {secret}, please"], secret: 1}
    assert secret not in str(redact(config))
    assert redact(config)["list"] == ["a", f"use {REMOVED}, please"]


@pytest.mark.parametrize(
    ("url", "clean"),
    [
        ("https://me:pw@host/x", f"https://{REMOVED}@host/x"),
        ("postgres://tok@host:5432/db", f"postgres://{REMOVED}@host:5432/db"),
        ("http://u:p@ss@proxy:3128", f"http://{REMOVED}@proxy:3128"),
        ("https://h/x?token=abc&page=1", f"https://h/x?{REMOVED}&page=1"),
    ],
)
def test_urls_lose_their_user_and_keep_their_host(url: str, clean: str) -> None:
    assert redact({"url": url}) == {"url": clean}


def test_a_value_of_a_secret_environment_variable_is_removed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", "quite-plain-words")
    monkeypatch.setenv("MY_LONGER_TOKEN", "quite-plain-words-and-more")
    monkeypatch.setenv("MY_PIN_PASSWORD", "48151623")
    monkeypatch.setenv("PLAIN_SETTING", "visible")
    config = {
        "a": "quite-plain-words",
        "b": "x quite-plain-words-and-more y",
        "pin": 48151623,
        "c": "visible",
        "revision": "quite-plain-words",
    }
    assert redact(config) == {
        "a": REMOVED,
        "b": f"x {REMOVED} y",
        "pin": REMOVED,
        "c": "visible",
        "revision": REMOVED,
    }


def test_enums_paths_and_tuples_become_plain_and_the_input_is_untouched() -> None:
    config = {"mode": WandbMode.auto, "dir": Path("runs/a"), "betas": (0.9, 0.95), "none": None}
    copy = dict(config)
    assert redact(config) == {"mode": "auto", "dir": "runs/a", "betas": [0.9, 0.95], "none": None}
    assert config == copy
