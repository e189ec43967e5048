# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Servers start with what another host compiled, and without it where it makes them fail.

Every container is real; the program in it stands in for vLLM and keeps one compiled file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.warm_caches import WarmCaches
from ansible_collections.gpufleet.vllm.plugins.modules import vllm_caches
from ansible_collections.gpufleet.vllm.tests.engine.server_fixtures import Fleet
from ansible_collections.gpufleet.vllm.tests.unit.conftest import RunModule

COMPILED = "vllm/torch_compile_cache/1a/graph"
VARIABLES = {"STAND_IN_COMPILES": f"/root/.cache/{COMPILED}", "STAND_IN_COMPILE_S": "3"}


def caches(fleet: Fleet) -> WarmCaches:
    """Return the caches of a host."""
    return WarmCaches(str(fleet.folder / "cache"), fleet.prefix)


def receives(fleet: Fleet, content: str) -> Path:
    """Have a host's caches hold what came from another one; return its file."""
    file = fleet.folder / "cache" / COMPILED
    file.parent.mkdir(parents=True)
    file.write_text(content)
    received = {"host": "gpu-01", "names": ["vllm/torch_compile_cache/1a"]}
    (fleet.folder / "cache" / f"received-{fleet.prefix}.json").write_text(json.dumps(received))
    return file


def run(fleet: Fleet, **config: Any) -> dict[str, Any]:
    """Run a server that compiles."""
    return fleet.run(fleet.replica(environment=VARIABLES, **config), tell_caches=True)


def test_a_new_host_starts_with_what_another_one_compiled(fleet: Fleet, run_module: RunModule, tmp_path: Path) -> None:
    first = run(fleet)
    assert not first["failed"], first
    assert (first["caches"]["warm"], first["caches"]["received"]) == (True, "")
    new = fleet.beside("new", 1)
    replica = new.replica(environment=VARIABLES)
    seen = new.run(replica, check=True, tell_caches=True)
    assert (seen["would_change"], seen["caches"]["warm"]) == (True, False)
    # Of what is told of a host, its address does not matter.
    assert seen["caches"]["key"] == first["caches"]["key"] != ""
    archive = str(tmp_path / "archive")
    arguments = {"key": first["caches"]["key"], "archive": archive}
    packed = run_module(vllm_caches.main, {"state": "packed", "cache_dir": first["caches"]["folder"], **arguments})
    own = {"cache_dir": str(new.folder / "cache"), "config_dir": str(new.config_dir), "container_prefix": new.prefix}
    added = run_module(
        vllm_caches.main, {"state": "present", "sha256": packed["sha256"], "host": "one", **own, **arguments}
    )
    assert added["msg"] == "compile caches: 0.0 MiB from one"
    assert caches(new).received_from() == "one"
    second = new.run(replica, tell_caches=True)
    assert (second["caches"]["warm"], second["caches"]["received"]) == (True, "")
    assert caches(new).received_from() == ""
    cold, warm = first["replicas"][0]["ready_s"], second["replicas"][0]["ready_s"]
    assert cold >= 3 > warm + 1, (cold, warm)
    # What serves by now is known without a change, too.
    again = new.run(replica, check=True, tell_caches=True)
    assert (again["would_change"], again["caches"]["warm"]) == (False, True)


def test_a_start_that_fails_with_received_caches_is_done_without_them(fleet: Fleet) -> None:
    file = receives(fleet, "damaged")
    result = run(fleet)
    assert not result["failed"], result
    assert result["replicas"][0]["action"] == "created"
    (warning,) = result["warnings"]
    told = f"{fleet.prefix}-0 did not start with the caches that came from gpu-01 (compile-cache-damaged: "
    assert warning.startswith(told)
    assert warning.endswith("so these were removed and it was started without them.")
    assert file.read_text() == "compiled"
    assert caches(fleet).received_from() == ""
    assert result["caches"]["warm"]
    assert fleet.names() == [f"{fleet.prefix}-0"]
    second = run(fleet)
    assert (second["changed"], second.get("warnings", [])) == (False, [])


def test_an_old_server_is_replaced_although_received_caches_are_damaged(fleet: Fleet) -> None:
    plain = fleet.replica()
    assert not fleet.run(plain)["failed"]
    receives(fleet, "damaged")
    result = run(fleet, max_num_seqs=7)
    assert not result["failed"], result
    assert result["replicas"][0]["action"] == "replaced"
    assert len(result["warnings"]) == 1
    assert fleet.names() == [f"{fleet.prefix}-0"]


def test_where_both_attempts_fail_the_old_server_is_put_back(fleet: Fleet) -> None:
    assert not fleet.run(fleet.replica())["failed"]
    file = receives(fleet, "compiled")
    result = run(fleet, max_model_len=10485760)
    assert result["failed"]
    assert result["error"]["name"] == "max-model-len-too-long"
    assert result["error"]["details"]["restored"]
    assert "The first attempt failed, too (max-model-len-too-long)" in result["msg"]
    assert "the caches that came from gpu-01" in result["msg"]
    # The second attempt has compiled its own before it failed.
    assert (file.read_text(), caches(fleet).received_from()) == ("compiled", "")
    assert fleet.names() == [f"{fleet.prefix}-0"]


def test_damage_of_a_hosts_own_caches_is_told_as_ever(fleet: Fleet) -> None:
    file = receives(fleet, "damaged")
    caches(fleet).keep_received()
    result = run(fleet)
    assert (result["failed"], result["error"]["name"]) == (True, "compile-cache-damaged")
    assert file.read_text() == "damaged"


def test_a_server_that_is_only_restarted_is_started_without_them_too(fleet: Fleet) -> None:
    assert not run(fleet)["failed"]
    file = fleet.folder / "cache" / COMPILED
    file.unlink()
    file.parent.rmdir()
    receives(fleet, "damaged")
    before = fleet.engine.containers.get(f"{fleet.prefix}-0").id
    result = fleet.run(fleet.replica(environment=VARIABLES), state="restarted")
    assert not result["failed"], result
    assert "without them" in result["warnings"][0]
    assert file.read_text() == "compiled"
    assert fleet.engine.containers.get(f"{fleet.prefix}-0").id == before
