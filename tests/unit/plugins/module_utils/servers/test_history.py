# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which deployment a host goes back to; tests/engine/test_history.py goes back, on a real engine."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import Spec
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers import names
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.spec import ServerOptions, all_fields, build_spec
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers import history, history_entries

ROOT = Path(__file__).resolve().parents[5]
IMAGE_ID = "sha256:" + "1700a9d57cad" + "0" * 52


def entry(number: int, what: str, **parts: Any) -> dict[str, Any]:
    """Return a deployment that served C(what)."""
    return {
        "schema_version": 1,
        "id": f"2026112{number}-120000",
        "number": number,
        "outcome": "ready",
        "fingerprint": what,
        "rolled_back_to": "",
        "error": {},
        "image": {"id": IMAGE_ID, "kept_as": "gpufleet/kept:vllm-1700a9d57cad", "digests": [], "reference": "i:1"},
        **parts,
    }


def failed(number: int, what: str) -> dict[str, Any]:
    """Return a deployment that failed."""
    return entry(number, what, outcome="failed", error={"name": "config-refused", "message": "No such option."})


A, B, C = entry(1, "a"), entry(2, "b"), entry(3, "c")
BROUGHT_BACK = entry(4, "b", rolled_back_to=B["id"])


@pytest.mark.parametrize(
    ("entries", "running", "chosen"),
    [
        ([A, B, C], "c", B),
        # The same was deployed twice, with another restart policy say: it is not what was before.
        ([A, B, entry(3, "b")], "b", A),
        # A failed change left what served before it.
        ([A, B, failed(3, "c")], "b", A),
        # The change that was to be did not get to its end: back to what the history says that served.
        ([A, B], "something that is not ready yet", B),
        # Asking twice does not go back twice.
        ([A, B, C, BROUGHT_BACK], "b", BROUGHT_BACK),
        # After going back, something new was deployed: back again.
        ([A, B, C, BROUGHT_BACK, entry(5, "d")], "d", BROUGHT_BACK),
    ],
)
def test_the_default_is_the_last_that_served_something_else(
    entries: list[dict[str, Any]], running: str, chosen: dict[str, Any]
) -> None:
    assert history_entries.select(entries, "", (running, "an older one")) is chosen


def test_a_deployment_is_chosen_by_its_id() -> None:
    assert history_entries.select([A, B, C], A["id"], ("c",)) is A


@pytest.mark.parametrize(
    ("entries", "wanted", "name", "told"),
    [
        ([], "", "no-earlier-deployment", "this host's history is empty"),
        ([A], "", "no-earlier-deployment", "20261121-120000 is the only one in this host's history"),
        ([A, B], "yesterday", "deployment-unknown", "'yesterday'"),
        ([A, failed(2, "b")], "20261122-120000", "deployment-failed", "20261122-120000 failed and never served"),
    ],
)
def test_what_cannot_be_gone_back_to_is_refused(
    entries: list[dict[str, Any]], wanted: str, name: str, told: str
) -> None:
    with pytest.raises(GpufleetError) as caught:
        history_entries.select(entries, wanted, ("a",))
    assert caught.value.name == name
    assert told in caught.value.message
    if name == "deployment-unknown":
        assert caught.value.remedy == "Choose one of 20261121-120000, 20261122-120000."


def test_entries_are_read_in_their_order_and_what_is_no_entry_is_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "history"
    folder.mkdir()
    # The clock was set back between them: the number counts.
    for found in (B, {**A, "id": "20270101-000000"}):
        (folder / f"{found['id']}.json").write_text(json.dumps(found))
    (folder / "20261123-000000.json").write_text('{"schema_version": 1, "id":')
    (folder / "20261123-000001.json").write_text('{"schema_version": 2, "id": "x"}')
    (folder / "20261123-000002.json.new").write_text("{}")
    assert [found["id"] for found in history_entries.read_entries(str(tmp_path))] == ["20270101-000000", B["id"]]
    assert history_entries.read_entries(str(tmp_path / "nowhere")) == []


def test_a_person_sees_the_newest_first_and_which_is_current() -> None:
    shown = history_entries.brief([A, B, failed(3, "c")])
    assert [(one["id"], one["current"], one["outcome"]) for one in shown] == [
        ("20261123-120000", False, "failed"),
        (B["id"], True, "ready"),
        (A["id"], False, "ready"),
    ]
    assert "server" not in shown[0]


WISHES = ServerOptions(
    image="vllm/vllm-openai:deploy",
    image_id=IMAGE_ID,
    model_source={"kind": "hub", "location": "org/m", "argument": "org/m"},
    device="cuda",
    gpu_access="gpus",
    network_mode="bridge",
    hf_home="/hf",
    cache_dir="/cache",
    config_dir="/etc/gpufleet",
    volumes=("/a:/b:ro",),
    environment={"A": "b"},
    python_path="/opt/packages",
)
IMAGE = {"id": IMAGE_ID, "python_path": WISHES.python_path}
REPLICA: Any = {"name": "vllm-0", "gpus": [0], "host": "127.0.0.1", "port": 8000, "config": {"max-num-seqs": 8}}


def test_what_is_kept_makes_the_same_servers_again() -> None:
    """Through JSON and back, and in the words of the module's own options."""
    kept = json.loads(json.dumps({"server": history.server_options([REPLICA], WISHES), "image": IMAGE}))
    wishes = history.recorded_wishes(kept)
    specs = [build_spec(REPLICA, some, [], lambda _path: True) for some in (WISHES, wishes)]
    assert specs[0] == specs[1]
    from ansible_collections.gpufleet.vllm.plugins.modules.vllm_server import ARGUMENTS

    assert set(kept["server"]) <= set(ARGUMENTS)


def test_an_entry_that_lacks_what_is_needed_is_refused_by_name() -> None:
    server = history.server_options([REPLICA], WISHES)
    del server["cache_dir"]
    kept = {"id": "x", "collection_version": "0.0.9", "image": {"id": IMAGE_ID}, "server": server}
    with pytest.raises(GpufleetError, match="which did not keep cache_dir") as caught:
        history.recorded_wishes(kept)
    assert caught.value.name == "deployment-unreadable"


def test_the_fingerprint_is_of_what_would_replace_a_server() -> None:
    def spec(replica: Any, **wishes: Any) -> Spec:
        return build_spec(replica, ServerOptions(**{**WISHES.__dict__, **wishes}), [], lambda _path: True)

    first = history_entries.fingerprint([spec(REPLICA)])
    assert first == history_entries.fingerprint([spec(REPLICA, restart_policy="no", image="another/name:1")])
    assert first != history_entries.fingerprint([spec({**REPLICA, "config": {"max-num-seqs": 4}})])
    assert first != history_entries.fingerprint([spec(REPLICA, image_id="sha256:" + "2" * 64)])
    assert first != history_entries.fingerprint([spec(REPLICA), spec({**REPLICA, "name": "vllm-1"})])


def test_an_entry_of_before_time_outs_ceased_to_matter_is_known_again() -> None:
    """Its fingerprint is over time-outs and device files, too; none was replaced since."""
    replica: Any = {**REPLICA, "config": {"max-num-seqs": 8, "shutdown-timeout": 60}}
    spec = build_spec(replica, WISHES, [], lambda _path: True)
    everything = {"vllm-0": all_fields(spec)}
    assert {"config.shutdown-timeout", "devices"} <= everything["vllm-0"].keys()
    digest = hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()
    running = history_entries.fingerprints([spec])
    assert (running[0], running[1]) == (history_entries.fingerprint([spec]), digest)
    earlier, serves = {**A, "fingerprint": "x"}, {**B, "fingerprint": digest}
    assert history_entries.select([earlier, serves], "", running) is earlier


def test_weights_are_looked_for_where_they_were(tmp_path: Path) -> None:
    folder = {"mount": str(tmp_path / "m"), "argument": "/models/m"}
    hub = {"mount": "", "argument": "org/m"}
    for source in (folder, hub):
        with pytest.raises(GpufleetError, match="are not on this host any more") as caught:
            history.check_weights(source, str(tmp_path / "hf" / "hub"), "20261121-120000")
        assert caught.value.name == "rollback-weights-gone"
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    (tmp_path / "hf" / "hub" / "models--org--m" / "snapshots" / "abc").mkdir(parents=True)
    history.check_weights(folder, str(tmp_path / "hf"), "x")
    history.check_weights(hub, str(tmp_path / "hf" / "hub"), "x")
    history.check_weights({"mount": "", "argument": "org/elsewhere"}, "", "x")


def test_the_name_that_keeps_an_image_is_one_that_docker_takes() -> None:
    from ansible_collections.gpufleet.vllm.plugins.module_utils.images.reference import parse_reference

    parsed = parse_reference(history.kept_name("vllm", IMAGE_ID))
    assert (parsed.repository, parsed.tag) == ("gpufleet/kept", "vllm-1700a9d57cad")


def test_the_version_on_the_hosts_is_the_collections() -> None:
    assert yaml.safe_load((ROOT / "galaxy.yml").read_text(encoding="utf-8"))["version"] == names.VERSION
