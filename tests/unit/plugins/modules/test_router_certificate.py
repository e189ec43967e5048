# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of router_certificate with the openssl of this machine."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import program_path
from ansible_collections.gpufleet.vllm.plugins.module_utils.router import certificate
from ansible_collections.gpufleet.vllm.plugins.modules import router_certificate
from ansible_collections.gpufleet.vllm.tests.unit.conftest import RunModule

NAMES = ["llm.example.com", "10.0.0.5", "2001:DB8::0005"]
needs_openssl = pytest.mark.skipif(program_path("openssl") is None, reason="no openssl here; Molecule installs it")


@needs_openssl
def test_a_certificate_is_made_once_for_its_names(run_module: RunModule, tmp_path: Path) -> None:
    path = tmp_path / "new" / "site.pem"
    args = {"path": str(path), "names": NAMES}
    told = run_module(router_certificate.main, args, check=True)
    assert told["changed"] and not path.exists()
    made = run_module(router_certificate.main, args)
    assert made["changed"] and made["names"] == ["10.0.0.5", "2001:db8::5", "llm.example.com"]
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert "PRIVATE KEY" in path.read_text(encoding="utf-8")
    again = run_module(router_certificate.main, args)
    assert not again["changed"] and again["fingerprint"] == made["fingerprint"]
    other = run_module(router_certificate.main, {**args, "names": ["other.example.com"]})
    assert other["changed"] and other["fingerprint"] != made["fingerprint"]
    assert os.listdir(path.parent) == ["site.pem"]


@needs_openssl
def test_what_is_returned_has_no_key_and_can_be_trusted(run_module: RunModule, tmp_path: Path) -> None:
    made = run_module(router_certificate.main, {"path": str(tmp_path / "site.pem"), "names": NAMES})
    assert "PRIVATE" not in str(made)
    assert len(ssl.create_default_context(cadata=made["certificate"]).get_ca_certs()) == 1


@needs_openssl
def test_one_that_ends_soon_is_made_anew(run_module: RunModule, tmp_path: Path) -> None:
    args = {"path": str(tmp_path / "site.pem"), "names": NAMES}
    run_module(router_certificate.main, {**args, "days": 20})
    assert run_module(router_certificate.main, args)["changed"]
    assert not run_module(router_certificate.main, args)["changed"]


def test_what_no_certificate_carries_is_refused(run_module: RunModule, tmp_path: Path) -> None:
    result = run_module(router_certificate.main, {"path": str(tmp_path / "site.pem"), "names": ["a name"]})
    assert result["failed"] and result["error"]["name"] == "invalid-router"
    assert run_module(router_certificate.main, {"path": str(tmp_path / "site.pem"), "names": []})["failed"]


def test_names_as_openssl_shows_them() -> None:
    text = "X509v3 Subject Alternative Name: \n    DNS:b, IP Address:10.0.0.5, IP Address:2001:DB8:0:0:0:0:0:5\n"
    assert certificate.parse_names(text) == ("10.0.0.5", "2001:db8::5", "b")
