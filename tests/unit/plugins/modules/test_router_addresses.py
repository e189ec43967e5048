# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The router and its replica at addresses of IPv6, by the HAProxy of this machine."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import program_path
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.certificate import make_certificate, public_part
from ansible_collections.gpufleet.vllm.plugins.modules import router_backend, router_server, vllm_security
from ansible_collections.gpufleet.vllm.tests.fakes.keyed_replica import serving
from ansible_collections.gpufleet.vllm.tests.unit.conftest import RunModule
from ansible_collections.gpufleet.vllm.tests.unit.plugins.modules.router_fixtures import router_in


def has_ipv6() -> bool:
    """Return whether this machine can listen on ::1."""
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            return False
    return True


pytestmark = pytest.mark.skipif(
    program_path("haproxy") is None or os.geteuid() != 0 or os.path.isdir("/run/systemd/system") or not has_ipv6(),
    reason="no HAProxy or no IPv6 here, or HAProxy not ours to start",
)


@pytest.fixture
def args(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Options of a router in a folder of the test; what was started is ended."""
    with router_in(
        tmp_path,
        api_keys=["the-client-key"],
        replica_keys={"fd00::1": "the-replica-key"},
    ) as found:
        yield found


@pytest.mark.parametrize("host", ["::1", "[::1]", "::"])
def test_all_works_at_addresses_of_ipv6(run_module: RunModule, args: dict[str, Any], host: str) -> None:
    certificate = f"{args['directory']}/site.pem"
    make_certificate(certificate, ["::1"], 30)
    with serving("the-replica-key", host="::1") as replica:
        hosts = {"fd00::1": [{"name": "vllm-0", "address": "::1", "port": replica.port}]}
        given = {**args, "hosts": hosts, "host": host}
        first = run_module(router_server.main, given)
        assert (first.get("msg"), first["action"]) == (None, "started")
        where = {"run_dir": args["run_dir"], "state_dir": args["state_dir"]}
        for state in ("drain", "ready"):
            turned = run_module(router_backend.main, {"host": "fd00::1", "state": state, "timeout": 20, **where})
            assert list(turned["servers"]) == ["fd00::1:vllm-0"] and turned["not_up"] == []
        assert run_module(router_server.main, given)["changed"] is False
        checked = run_module(
            vllm_security.main,
            {
                "address": "::1",
                "port": args["port"],
                "api_key": "the-client-key",
                "authorities": public_part(certificate),
                "replicas": [],
            },
        )
    assert not checked["failed"], checked["msg"]
