# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which environment variables are taken for secrets."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.secret_names import (
    FoundSecret,
    hideable,
    is_secret,
    secrets_within,
)


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "AWS_SESSION_TOKEN",
        "GITHUBTOKEN",
        "splunk-token",
        "SLACK_TOKEN_OF_BOT",
        "VLLM_API_KEY",
        "OPENAI_APIKEY",
        "OPENAI_API_KEYS",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AZURE_STORAGE_KEY",
        "AZURE_STORAGE_ACCOUNT_KEY",
        "AZURE_STORAGE_CONNECTION_STRING",
        "COSMOS_KEY",
        "SSH_PRIVATE_KEY_PEM",
        "PGPASSWORD",
        "SMTP_PASS",
        "MYSQL_PWD",
        "DB_PASSWD",
        "VAULT_SECRET_ID",
        "REGISTRY_CREDENTIALS",
        "my_password",
    ],
)
def test_secrets(name: str) -> None:
    assert is_secret(name, "abcdef0815")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1"),
        ("TOKENIZERS_PARALLELISM", "false"),
        ("VLLM_MAX_TOKENS_PER_EXPERT_FP4_MOE", "163840"),
        ("VLLM_SHARED_EXPERTS_STREAM_TOKEN_THRESHOLD", "256"),
        ("VLLM_ENABLE_PREGRAD_PASSES", "1"),
        ("HF_TOKEN_PATH", "/run/hf/token"),
        ("GOOGLE_APPLICATION_CREDENTIALS", "/run/gcp.json"),
        ("AWS_SHARED_CREDENTIALS_FILE", "/run/aws"),
        ("KEYCLOAK_URL", "https://login.example.com"),
        ("MONKEY", "abcdef0815"),
        ("PWD", "/srv/models"),
        ("OLDPWD", "/srv/models"),
        ("COMPASS", "abcdef0815"),
        ("HTTPS_PROXY", "http://proxy:3128"),
    ],
)
def test_names_that_only_look_like_it(name: str, value: str) -> None:
    assert not is_secret(name, value)


def test_a_password_in_an_address_is_a_secret_whatever_its_name() -> None:
    assert is_secret("HTTPS_PROXY", "http://me:sesame@proxy:3128")
    assert is_secret("INDEX_FILE", "https://me:sesame@index.example.com/simple")


def test_what_can_be_hidden_is_neither_short_nor_a_word_of_every_result() -> None:
    assert all(map(hideable, ("abcd", "4711", "sk-secret")))
    assert not any(map(hideable, ("1", "", "abc", "true", "False", "null")))


@pytest.mark.parametrize(
    "value",
    [
        "hf_AbCdEfGhIjKlMnOpQrStUv",
        "nvapi-AbC-dEf_GhIjKlMnOpQr",
        "sk-proj-AbCdEfGhIjKlMnOpQr",
        "ghp_AbCdEfGhIjKlMnOpQrStUv",
        "Bearer eyJhbGciOiJI.eyJzdWIiOiIx.c2ln",
        "redis://:pa55word@cache:6379",
        "https://me:pa55word@proxy:3128",
        "-----BEGIN RSA PRIVATE KEY-----",
    ],
)
def test_values_that_look_like_secrets_whatever_their_name(value: str) -> None:
    assert is_secret("ANYTHING", value)
    assert list(secrets_within({"a": [{"b": value}]})) != []


@pytest.mark.parametrize(
    "value", ["hf_transfer", "disk-0123456789abcdefghij", "/models/sk-llama", "https://proxy:3128", "eyJ", "nvapi-x"]
)
def test_values_that_do_not(value: str) -> None:
    assert not is_secret("ANYTHING", value)


@pytest.mark.parametrize(
    "name",
    [
        "password",
        "redis_password",
        "apiKey",
        "x-api-key",
        "token",
        "hf_token",
        "auth_token",
        "secretAccessKey",
        "client_secret",
        "aws_secret_access_key",
        "connection_string",
        "Authorization",
        "credentials",
    ],
)
def test_names_of_secrets_within_a_configuration(name: str) -> None:
    document = {"kv_connector_extra_config": {"store": [{name: "a-value"}]}}
    (found,) = secrets_within({"kv-transfer-config": json.dumps(document)})
    assert found.path == f"kv-transfer-config.kv_connector_extra_config.store[0].{name}"
    assert found.why == "by its name"


@pytest.mark.parametrize(
    "entry",
    [
        {"eos_token": "<|eot|>"},
        {"image_token": "<img>"},
        {"max_tokens": "8"},
        {"token": "12"},
        {"use_password": True},
        {"password": ""},
        {"password": "${STORE_PASSWORD}"},
        {"password_file": "/run/secrets/x"},
        {"tokenizer": "a/b"},
        {"cache_key": "x"},
        {"secret_name": "x"},
    ],
)
def test_what_is_no_secret_within_a_configuration(entry: dict[str, Any]) -> None:
    assert list(secrets_within(entry)) == []


@pytest.mark.parametrize(
    ("document", "home"),
    [
        ({"header": "hf_AbCdEfGhIjKlMnOpQrStUv"}, "vllm_hf_token"),
        ({"HUGGING_FACE_HUB_TOKEN": "x"}, "vllm_hf_token"),
        ({"environment": {"VLLM_API_KEY": "x"}}, "vllm_api_key"),
        ({"api_key": "x"}, "vllm_secret_environment"),
    ],
)
def test_where_a_secret_belongs(document: Any, home: str) -> None:
    found: list[FoundSecret] = list(secrets_within(document))
    assert [secret.home for secret in found] == [home]
