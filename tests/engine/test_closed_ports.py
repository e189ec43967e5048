# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who reaches the servers' ports of a host, tried from other network namespaces; the host has a real Docker engine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.host import closed_ports
from ansible_collections.gpufleet.vllm.tests.engine.namespaces import Net, fleet_net, run

pytestmark = pytest.mark.skipif(
    not os.environ.get("GPUFLEET_CLOSED_PORTS")
    or os.geteuid() != 0
    or not shutil.which("dockerd")
    or os.path.isdir("/run/systemd/system"),
    reason="takes minutes (make closed-ports), needs root, and on a machine with systemd would enable the unit there",
)
ROOT = Path(closed_ports.__file__).parents[3]
COLLECTIONS = ROOT.parents[2]
PUBLISHED, OF_THE_HOST, SPECIFIC, OTHERS = 8000, 8100, 8200, 8300
ASK = "import socket,sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=4)"
REPLICAS = [
    {"host": "0.0.0.0", "port": PUBLISHED},
    {"host": "::", "port": OF_THE_HOST},
    {"host": "10.77.0.1", "port": SPECIFIC},
    {"host": "127.0.0.1", "port": 8400},
]
SOURCES = ["10.77.0.2", "fd77::2"]
ALL = [("10.77.0.1", port) for port in (PUBLISHED, OF_THE_HOST, SPECIFIC)] + [
    ("fd77::1", port) for port in (PUBLISHED, OF_THE_HOST)
]


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Net]:
    """A host that serves at published ports and at one of its own, and at one that is no server of ours."""
    with fleet_net(tmp_path_factory.mktemp("engine")) as found:
        found.serve("vllm-0", "--publish", f"0.0.0.0:{PUBLISHED}:80", "--publish", f"[::]:{PUBLISHED}:80", port=80)
        found.serve("vllm-1", "--network", "host", port=OF_THE_HOST)
        found.serve("vllm-2", "--publish", f"10.77.0.1:{SPECIFIC}:80", port=80)
        found.serve("other", "--publish", f"0.0.0.0:{OTHERS}:80", port=80)
        try:
            yield found
        finally:
            ports(found, {"state": "absent"})


def ports(net: Net, arguments: dict[str, Any], *options: str) -> dict[str, Any]:
    """Run the module on the host, and return its result."""
    words = [sys.executable, "-m", "ansible", "adhoc", "localhost", "-m", "gpufleet.vllm.vllm_ports", *options]
    words += ["-a", json.dumps(arguments), "-e", f"ansible_python_interpreter={sys.executable}"]
    environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS), "ANSIBLE_NOCOLOR": "true"}
    environment["ANSIBLE_CALLBACK_RESULT_FORMAT"] = "json"  # whatever the ansible.cfg of this folder says
    said = net.on_host(*words, env=environment, check=False)
    _head, found, text = said.stdout.rpartition("=> {")
    assert found, said.stdout + said.stderr
    result: dict[str, Any] = json.loads("{" + text)
    assert not result.get("failed"), result
    return {**result, "shown": said.stdout}


def assert_unchanged(net: Net, arguments: dict[str, Any]) -> None:
    """Run the module once more; it has nothing to do."""
    again = ports(net, arguments, "--diff")
    assert not again["changed"], again["shown"]


def reached(net: Net, who: str, places: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Return which addresses and ports a namespace connects to."""
    return [
        (address, port)
        for address, port in places
        if net.inside(who, sys.executable, "-c", ASK, address, str(port), check=False).returncode == 0
    ]


def test_only_those_who_may_reach_the_servers_do_and_what_is_connected_goes_on(net: Net) -> None:
    assert reached(net, "router", ALL) == reached(net, "stranger", ALL) == ALL, "Docker has opened them to everyone"
    wanted = {"replicas": REPLICAS, "sources": SOURCES}
    looked = ports(net, wanted, "--check", "--diff")
    assert looked["changed"] and "--ctorigdstport 8000" in looked["shown"]
    assert reached(net, "stranger", ALL) == ALL, "check mode changed something"

    # A connection that is open before stays so.
    held = "import socket,sys,time\ns=socket.create_connection(('10.77.0.1', 8000))\nprint('open', flush=True)\n"
    held += "sys.stdin.readline()\ns.sendall(b'GET /busybox HTTP/1.0\\r\\n\\r\\n')\nprint(s.recv(12).decode())\n"
    command = ["nsenter", f"--net=/run/netns/{net.mark}-stranger", "--", sys.executable, "-c", held]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as open_before:
        assert open_before.stdout and open_before.stdout.readline() == "open\n"
        done = ports(net, wanted)
        assert done["changed"] and done["closed"] == [PUBLISHED, OF_THE_HOST, SPECIFIC]
        assert done["sources"] == ["10.77.0.2/32", "fd77::2/128"]
        said, _errors = open_before.communicate("go on\n", timeout=20)
        assert said.startswith("HTTP/1.")
    assert reached(net, "router", ALL) == ALL
    assert reached(net, "stranger", ALL) == []
    assert reached(net, "host", ALL) == ALL
    assert reached(net, "stranger", [("10.77.0.1", OTHERS)]) == [("10.77.0.1", OTHERS)], "which is none of ours"
    assert_unchanged(net, wanted)


def test_a_restart_of_docker_and_a_boot_change_nothing_of_it(net: Net) -> None:
    wanted = {"replicas": REPLICAS, "sources": SOURCES}
    ports(net, wanted)
    net.stop()
    net.start()
    assert reached(net, "stranger", ALL) == []
    assert reached(net, "router", ALL) == ALL
    assert_unchanged(net, wanted)
    # A boot: the kernel has nothing, what the unit runs comes before Docker.
    net.stop()
    for program in ("iptables", "ip6tables"):
        for table in ("nat", "filter"):
            net.inside("host", program, "-t", table, "-F")
            net.inside("host", program, "-t", table, "-X", check=False)
    net.on_host(closed_ports.SCRIPT, check=True)
    net.start()
    assert reached(net, "stranger", ALL) == []
    assert reached(net, "router", ALL) == ALL
    assert_unchanged(net, wanted)


def test_what_was_lost_is_put_back_and_what_a_router_had_is_kept_while_it_cannot_be_asked(net: Net) -> None:
    wanted = {"replicas": REPLICAS, "sources": SOURCES}
    ports(net, wanted)
    net.inside("host", "iptables", "-F", "GPUFLEET-vllm")
    assert reached(net, "stranger", [("10.77.0.1", PUBLISHED)]) != []
    assert ports(net, wanted)["changed"]
    assert reached(net, "stranger", ALL) == []
    silent = {**wanted, "sources": [], "keep_sources": True}
    assert_unchanged(net, silent)
    fewer = {**wanted, "replicas": REPLICAS[:1]}
    assert_unchanged(net, {**fewer, "keep_replicas": True})
    assert ports(net, fewer)["closed"] == [PUBLISHED]
    assert reached(net, "stranger", ALL) == [place for place in ALL if place[1] != PUBLISHED]
    other = {"deployment": "a deployment with a name that is long", "replicas": REPLICAS[1:2], "sources": SOURCES}
    assert ports(net, other)["changed"]
    assert_unchanged(net, other)
    assert reached(net, "stranger", ALL) == [("10.77.0.1", SPECIFIC)]
    assert ports(net, {**other, "state": "absent"})["changed"]
    assert_unchanged(net, fewer)


def test_teardown_leaves_nothing(net: Net) -> None:
    ports(net, {"replicas": REPLICAS, "sources": SOURCES})
    assert ports(net, {"state": "absent"}, "--check")["changed"]
    assert ports(net, {"state": "absent"})["changed"]
    assert_unchanged(net, {"state": "absent"})
    assert reached(net, "stranger", ALL) == ALL
    for program in ("iptables", "ip6tables"):
        assert "GPUFLEET" not in net.inside("host", program, "-S").stdout
    left = net.on_host("ls", closed_ports.FOLDER, closed_ports.SCRIPT, check=False)
    assert left.returncode != 0 and not left.stdout
    assert run("iptables", "-S").stdout.count("GPUFLEET") == 0, "the machine's own chains are none of the host's"
