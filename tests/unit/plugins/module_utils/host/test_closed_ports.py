# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules that close ports; tests/engine/test_closed_ports.py tries them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.host import closed_ports
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.closed_ports import Listener

EVERYWHERE, PRIVATE = Listener("0.0.0.0", 8000), Listener("10.0.0.11", 8001)


def test_established_connections_and_the_host_itself_come_first_and_refusals_last() -> None:
    lines = closed_ports.rules("vllm", [EVERYWHERE], ["10.0.0.5/32"], 4).splitlines()
    assert lines[:2] == ["*filter", ":GPUFLEET-vllm - [0:0]"] and lines[-1] == "COMMIT"
    ends = [line.split(" -j ")[1].split()[0] for line in lines if " -j " in line]
    assert ends == ["RETURN", "RETURN", "RETURN", "REJECT", "REJECT", "RETURN"]
    assert "ESTABLISHED" in lines[2] and "-i lo" in lines[3] and "-s 10.0.0.5/32" in lines[4]


def test_what_is_forwarded_counts_only_where_its_destination_was_exchanged() -> None:
    text = closed_ports.rules("vllm", [EVERYWHERE], [], 4)
    assert "--ctstate DNAT --ctorigdstport 8000 -j REJECT" in text
    assert "--dst-type LOCAL -p tcp -m conntrack --ctstate NEW -m tcp --dport 8000 -j REJECT" in text


def test_an_address_closes_its_own_family_alone() -> None:
    text = closed_ports.rules("vllm", [PRIVATE], [], 4)
    assert "-d 10.0.0.11/32" in text and "--ctorigdst 10.0.0.11" in text
    assert closed_ports.rules("vllm", [PRIVATE], [], 6) == ""
    assert "8000" in closed_ports.rules("vllm", [EVERYWHERE], [], 6)


def test_what_was_kept_is_read_back() -> None:
    sources = ["10.0.0.5/32", "10.1.0.0/24"]
    text = closed_ports.rules("vllm", [EVERYWHERE, PRIVATE], sources, 4)
    assert closed_ports.kept_sources(text) == sources
    assert closed_ports.kept_listeners(text) == [EVERYWHERE, PRIVATE]
    six = closed_ports.rules("vllm", [Listener("fd00::11", 8002)], ["fd00::5/128"], 6)
    assert closed_ports.kept_listeners(six) == [Listener("fd00::11", 8002)]


def test_sources_are_sorted_by_family_and_what_is_none_is_named() -> None:
    given = ["fd00::5", "10.0.0.5", "10.1.0.9/24", "127.0.0.1", "fe80::1%eth0", "10.0.0.5"]
    assert closed_ports.sources_of(given) == {4: ["10.0.0.5/32", "10.1.0.0/24"], 6: ["fd00::5/128"]}
    with pytest.raises(GpufleetError, match=r"vllm_allowed_sources: 'lb.example.com', '10.0.0.0/33'"):
        closed_ports.sources_of(["lb.example.com", "10.0.0.1", "10.0.0.0/33"])


def test_servers_of_their_own_host_alone_need_no_rules() -> None:
    replicas = [{"host": "127.0.0.1", "port": 8000}, {"host": "[::1]", "port": 1}, {"host": "::", "port": 2}]
    assert closed_ports.reachable_listeners(replicas) == [Listener("::", 2)]


@pytest.mark.parametrize("name", ["vllm", "a b", "x" * 60, "x" * 59 + "y"])
def test_chains_have_names_that_iptables_takes_and_differ(name: str) -> None:
    chain = closed_ports.chain_name(name)
    assert len(chain) <= 28 and " " not in chain
    assert chain != closed_ports.chain_name(f"{name}z")


def test_a_chain_is_in_place_only_with_its_mark_all_its_rules_and_every_hook() -> None:
    text = closed_ports.rules("vllm", [EVERYWHERE], [], 4)
    listed = "-N GPUFLEET-vllm\n" + "\n".join(line for line in text.splitlines() if line.startswith("-A"))
    hooks = dict.fromkeys(closed_ports.HOOKS, True)
    assert closed_ports.is_in_place(text, "GPUFLEET-vllm", listed, hooks)
    assert not closed_ports.is_in_place(text, "GPUFLEET-vllm", listed, {**hooks, "DOCKER-USER": False})
    fewer = "\n".join(line for line in listed.splitlines() if "-i lo" not in line)
    assert not closed_ports.is_in_place(text, "GPUFLEET-vllm", fewer, hooks)
    other = closed_ports.rules("vllm", [PRIVATE], [], 4)
    assert not closed_ports.is_in_place(other, "GPUFLEET-vllm", listed, hooks)
    assert not closed_ports.is_in_place(text, "GPUFLEET-vllm", "", hooks)


def test_the_script_is_one_that_a_shell_reads(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(closed_ports.SCRIPT_TEXT, encoding="utf-8")
    assert subprocess.run(["sh", "-n", str(script)], check=False).returncode == 0
    assert "Before=docker.service" in closed_ports.UNIT_TEXT
