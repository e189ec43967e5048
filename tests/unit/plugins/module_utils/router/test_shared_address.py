# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of what a host has of the address that several routers share."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jinja2
import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.router import shared_address

TEMPLATE = Path(__file__).resolve().parents[5] / "roles" / "router" / "templates" / "keepalived.conf.j2"


def rendered(address: str, prefix_length: int, run_dir: str = "/run/x") -> str:
    """Return keepalived's configuration as the role writes it."""
    virtual: dict[str, Any] = {"interface": "lo", "source": "127.0.0.1", "peers": ["10.0.0.3", "10.0.0.4"]}
    environment = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        ansible_managed="Ansible",
        inventory_hostname="lb-01",
        router_run_dir=run_dir,
        router_virtual_id=51,
        __router_probe="/usr/bin/curl https://127.0.0.1:8443/health",
        __router_virtual={**virtual, "address": address, "prefix_length": prefix_length},
    )


@pytest.mark.parametrize("address", ["10.0.0.10", "fd00::10"])
def test_the_address_is_read_as_the_role_writes_it(tmp_path: Path, address: str) -> None:
    assert shared_address.shared_address(str(tmp_path)) == ""
    (tmp_path / "keepalived.conf").write_text(rendered(address, 24))
    assert shared_address.shared_address(str(tmp_path)) == address
    state = shared_address.shared_state(str(tmp_path), str(tmp_path))
    assert state == {"address": address, "held": False, "in_step": False}
    (tmp_path / "in-step").touch()
    assert shared_address.shared_state(str(tmp_path), str(tmp_path))["in_step"]


def test_every_peer_is_named_and_the_checks_have_their_weights() -> None:
    text = rendered("10.0.0.10", 24)
    assert "10.0.0.3 min_ttl 255" in text and "10.0.0.4 min_ttl 255" in text
    assert [line.split()[1] for line in text.splitlines() if line.strip().startswith("weight")] == ["-50", "-20"]
    assert "auth_pass" not in text  # VRRP 3 has none


@pytest.mark.skipif(shutil.which("ip") is None, reason="no ip here")
def test_the_addresses_of_this_machine_have_interface_and_prefix() -> None:
    for entry in shared_address.interface_addresses():
        assert entry["interface"] and entry["prefix_length"] > 0


def test_a_host_without_ip_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_address, "program_path", lambda _name: None)
    assert shared_address.interface_addresses() == []
