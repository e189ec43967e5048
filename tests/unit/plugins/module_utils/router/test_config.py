# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the router's files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import subprocess
from pathlib import Path

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common import addresses
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import program_path
from ansible_collections.gpufleet.vllm.plugins.module_utils.router import config, members, router_settings
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.members import Replica
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.router_settings import RouterSettings

KEY, REPLICA_KEY = "client-key-1", "replica-key-1"
ONE = Replica("gpu-01", "vllm-0", "10.0.0.11", 8000, ("scout",))
TWO = Replica("gpu-02", "vllm-0", "2001:db8::2", 8001, ("scout",))
OTHER = Replica("gpu-03", "vllm-0", "10.0.0.13", 8000, ("other", "org/other"))


def settings(**changes: object) -> RouterSettings:
    """Return settings that are safe, with changes."""
    whole = RouterSettings(
        host="0.0.0.0",
        port=8443,
        tls=True,
        keys=(KEY,),
        clients=(),
        replica_key=REPLICA_KEY,
        endpoints=("/v1/models", "/v1/completions"),
        max_request_bytes=1000,
        balance="leastconn",
        balance_factor=150,
        session_header="x-session-id",
        rate_limit=100,
        max_connections=100,
        max_connections_per_address=None,
        max_requests_per_replica=None,
        max_queue=None,
        max_requests_per_key=None,
        requests_factor=2.0,
        connection_rate=5000,
        operators=(),
        large_requests=4,
        buffer_bytes=65536,
        timeout=600,
        check_interval_ms=1000,
        access_log="",
        access_log_max_bytes=1000,
        access_log_files=5,
        access_log_days=5,
        count_tokens=True,
        run_dir="/run/x",
        state_dir="/var/lib/x",
    )
    return dataclasses.replace(whole, **changes)  # type: ignore[arg-type]


def problems(given: RouterSettings, replicas: list[Replica], allow: bool = False) -> list[str]:
    """Return what check finds wrong."""
    try:
        router_settings.check_settings(given, replicas, allow)
    except GpufleetError as error:
        assert error.name == "invalid-router"
        return list(error.details["problems"])
    return []


def test_secrets_are_in_files_of_their_own_and_clients_keys_are_sums() -> None:
    files = config.files(settings(), [ONE, TWO], "/etc/x")
    assert KEY not in "".join(files.values())
    assert files["keys.sha256"] == hashlib.sha256(b"Bearer client-key-1").hexdigest() + "\n"
    assert [name for name, text in files.items() if REPLICA_KEY in text] == ["replica.key"]
    assert "map(/etc/x/replica.key)" in files["haproxy.cfg"]


def test_every_replica_is_a_server_under_its_host_and_name() -> None:
    text = config.config(settings(), [ONE, TWO], "/etc/x")
    assert "    server gpu-01:vllm-0 10.0.0.11:8000\n" in text
    assert "    server gpu-02:vllm-0 [2001:db8::2]:8001\n" in text
    assert "balance leastconn" in text


def test_the_key_is_asked_for_before_the_path_is_looked_at() -> None:
    text = config.config(settings(), [ONE], "/etc/x")
    statuses = re.findall(r"return status (\d+)", text.partition("\nbackend replicas")[0])
    # Each model by its name; at last the list of all of them, once the body has told which one is asked for.
    wanted = ["503", "400", "429", "401", "200", "404", "404", "405", "413", "429", "200", "404"]
    assert statuses == wanted


def test_the_rules_do_not_wait_for_the_body_and_the_replicas_do() -> None:
    front, _backend, replicas = config.config(settings(), [ONE], "/etc/x").partition("backend replicas\n")
    assert "http-buffer-request" not in front and "option http-buffer-request" in replicas
    # What is refused by its head is refused before its body has come.
    assert 0 < front.index("return status 429") < front.index("wait-for-body") < front.index("json_query")


def test_a_replica_that_does_not_take_the_key_gets_no_requests() -> None:
    text = config.config(settings(), [ONE], "/etc/x")
    assert 'uri /health hdr Authorization "Bearer %[str(replica),map(/etc/x/replica.key)]"\n' in text
    assert "uri /health\n" in config.config(settings(replica_key=""), [ONE], "/etc/x")


def test_without_keys_nobody_is_asked_and_addresses_are_counted() -> None:
    text = config.config(settings(keys=(), replica_key=""), [ONE], "/etc/x")
    assert "return status 401" not in text
    assert "track-sc0 src table requests" in text
    assert "Authorization" not in text


def test_a_clients_key_does_not_reach_replicas_without_one() -> None:
    text = config.config(settings(replica_key=""), [ONE], "/etc/x")
    assert "http-request del-header Authorization" in text


def test_no_rate_limit_and_a_limit_for_each_replica() -> None:
    text = config.config(settings(rate_limit=0, max_requests_per_replica=12), [ONE], "/etc/x")
    assert "sc0_http_req_rate" not in text
    assert " maxconn 12\n" in text


@pytest.mark.parametrize(
    ("given", "allow", "named"),
    [
        (settings(keys=()), False, "vllm_allow_unauthenticated"),
        (settings(keys=(), host="::"), False, "router_host: ::"),
        (settings(tls=False), False, "router_tls"),
        (settings(tls=False), True, "router_tls"),
        (settings(endpoints=("v1/models",)), False, "router_endpoints"),
        (settings(endpoints=()), False, "router_endpoints"),
        (settings(keys=("two words",)), False, "white space"),
        (settings(cors_origins=("https://a.example.com/",)), False, "without a path"),
        (settings(cors_origins=("*", "https://a.example.com")), False, "beside it"),
    ],
)
def test_what_is_unsafe_is_refused_by_its_variable(given: RouterSettings, allow: bool, named: str) -> None:
    found = problems(given, [ONE], allow)
    assert len(found) == 1 and named in found[0]
    assert "two words" not in found[0]


@pytest.mark.parametrize(
    ("given", "allow"),
    [
        (settings(), False),
        (settings(keys=()), True),
        (settings(keys=(), host="127.0.0.1", tls=False), False),
        (settings(keys=(), host="::1", tls=False), False),
        (settings(keys=(), host="[::1]", tls=False), False),
    ],
)
def test_what_is_safe_passes(given: RouterSettings, allow: bool) -> None:
    assert problems(given, [ONE, TWO], allow) == []


def test_names_that_haproxy_cannot_have_are_refused_together() -> None:
    found = problems(settings(), [Replica("gpu 01", "vllm-0", "10.0.0.1", 1), Replica("b", "c", "a b", 1)])
    assert ["gpu 01" in found[0], "vllm_router_address" in found[1]] == [True, True]


def test_hosts_that_could_not_be_asked_keep_what_is_known_of_them() -> None:
    gone = Replica("gpu-09", "vllm-0", "10.0.0.19", 8000)
    known = {"gpu-03": [Replica("gpu-03", "vllm-0", "10.0.0.13", 8000)], "gpu-04": []}
    replicas, said = members.merge(known, ["gpu-01", "gpu-05"], [ONE, gone])
    assert [replica.host for replica in replicas] == ["gpu-01", "gpu-03"]
    assert said == {"gpu-01": "kept", "gpu-05": "left out", "gpu-09": "gone"}


def test_no_models_count_while_those_of_some_hosts_are_not_known_from_an_earlier_version() -> None:
    earlier = [dataclasses.replace(replica, models=()) for replica in (ONE, TWO)]
    one_by_one, _said = members.merge({ONE.host: [ONE]}, [TWO.host], earlier)
    assert one_by_one == earlier
    assert members.merge({ONE.host: [ONE], TWO.host: [TWO]}, [], earlier)[0] == [ONE, TWO]
    assert members.merge({ONE.host: [ONE]}, [TWO.host], [earlier[0], TWO])[0] == [ONE, TWO]


def test_replicas_are_read_back_as_they_were_written() -> None:
    text = config.files(settings(), [ONE, TWO], "/etc/x")["replicas.json"]
    assert members.read_replicas(text) == [ONE, TWO]
    earlier = '[{"host": "gpu-01", "name": "vllm-0", "address": "10.0.0.11", "port": 8000}]'
    assert members.read_replicas(earlier) == [dataclasses.replace(ONE, models=())]
    assert members.read_replicas("") == members.read_replicas("[1]") == members.read_replicas('[{"x": 1}]') == []


def test_a_replicas_key_is_read_back_as_it_was_written() -> None:
    for key in (REPLICA_KEY, ""):
        text = config.files(settings(replica_key=key), [ONE], "/etc/x")["replica.key"]
        assert members.replica_key_of(text) == key


@pytest.mark.parametrize("host", ["gpu-01", "10.0.0.1", "fd00::1", "fd00::1:1"])
def test_a_servers_host_is_told_from_its_name(host: str) -> None:
    assert addresses.host_of(members.server_name(host, "vllm-0")) == host


def test_where_all_serve_the_same_there_is_one_backend_and_the_reader_gets_what_has_no_length() -> None:
    files = config.files(settings(), [ONE, TWO], "/etc/x")
    assert re.findall("use_backend reader .*", files["haproxy.cfg"]) == [
        "use_backend reader if is_cut !{ req.hdr(content-length) -m found }"
    ]
    assert files["models.map"] == "scout replicas\n"


def test_each_set_of_replicas_has_a_backend_that_follows_the_first_one() -> None:
    files = config.files(settings(), [ONE, TWO, OTHER], "/etc/x")
    assert files["models.map"].splitlines() == [
        "org/other model:org_other",
        "other model:org_other",
        "scout model:scout",
    ]
    assert "    server gpu-03:vllm-0 10.0.0.13:8000 track replicas/gpu-03:vllm-0\n" in files["haproxy.cfg"]
    assert "tune.bufsize 132072\n" in files["reader.cfg"]
    assert KEY not in files["reader.cfg"] + files["haproxy.cfg"]
    names = [model["id"] for model in json.loads(files["models.json"])["data"]]
    assert names == ["org/other", "other", "scout"]


def test_names_that_look_alike_to_haproxy_have_backends_of_their_own() -> None:
    replicas = [dataclasses.replace(ONE, models=(name,), host=name) for name in ("a/b", "a_b", "unnamed")]
    lines = config.files(settings(), replicas, "/etc/x")["models.map"].splitlines()
    assert lines == ["a/b model:a_b", "a_b model:a_b_2", "unnamed model:unnamed_2"]


def test_a_replica_of_which_no_name_is_known_may_have_any() -> None:
    nameless = dataclasses.replace(OTHER, models=())
    text = config.config(settings(), [ONE, nameless], "/etc/x")
    assert "backend model:unnamed\n" in text and "set-var(txn.backend) str(model:unnamed)" in text
    assert "There is no model" not in text and "models.json" not in text
    alone = config.config(settings(), [nameless], "/etc/x")
    assert "There is no model" not in alone and "model:" not in alone


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (settings(balance_factor=100), "router_balance_factor"),
        (settings(session_header="a b"), "router_session_header"),
    ],
)
def test_what_haproxy_could_not_balance_by_is_refused(given: RouterSettings, named: str) -> None:
    found = problems(given, [ONE])
    assert len(found) == 1 and named in found[0]


def test_a_server_has_the_same_place_in_the_ring_whatever_others_there_are() -> None:
    lines = [
        {line.split()[1]: line.split()[-1] for line in text.splitlines() if line.startswith("    server gpu-")}
        for text in (config.config(settings(balance="prefix"), of, "/etc/x") for of in ([ONE, TWO], [TWO]))
    ]
    assert lines[0]["gpu-02:vllm-0"] == lines[1]["gpu-02:vllm-0"] != lines[0]["gpu-01:vllm-0"]


def test_shares_follow_what_the_plans_hold_where_all_are_known() -> None:
    def weights(*held: int) -> list[str]:
        of = [dataclasses.replace(ONE, host=f"h{number}", requests=one) for number, one in enumerate(held)]
        return re.findall(r" weight (\d+)$", config.config(settings(), of, "/etc/x"), re.MULTILINE)

    assert weights(30, 60) == ["67", "133"] and weights(40, 40) == weights(0, 40) == []


def test_a_model_that_would_end_a_line_is_refused() -> None:
    found = problems(settings(), [dataclasses.replace(ONE, models=("two words",))])
    assert len(found) == 1 and "vllm_served_model_name" in found[0]


SAME, DIFFERENT = [ONE, TWO], [ONE, TWO, OTHER, dataclasses.replace(ONE, host="gpu-04", models=())]


@pytest.mark.skipif(program_path("haproxy") is None, reason="no HAProxy here; Molecule installs it")
@pytest.mark.parametrize("replicas", [SAME, DIFFERENT], ids=["one model", "several models"])
@pytest.mark.parametrize(
    "given",
    [
        settings(tls=False, host="127.0.0.1"),
        settings(tls=False, keys=(), replica_key="", rate_limit=0),
        settings(tls=False, replica_key="", max_requests_per_replica=5),
        settings(tls=False, keys=(), cors_origins=("https://a.example.com", "http://[::1]:3000")),
        settings(tls=False, cors_origins=("*",)),
        settings(tls=False, keys=(), balance="prefix"),
        settings(tls=False, balance="session"),
    ],
)
def test_haproxy_itself_takes_the_configuration(given: RouterSettings, replicas: list[Replica], tmp_path: Path) -> None:
    given = dataclasses.replace(given, user="root", run_dir=str(tmp_path), state_dir=str(tmp_path))
    (tmp_path / "server-state").write_text("1\n", encoding="utf-8")
    files = config.files(given, replicas, str(tmp_path))
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    for name in sorted({"haproxy.cfg", "reader.cfg"} & set(files)):
        command = [str(program_path("haproxy")), "-W", "-c", "-f", str(tmp_path / name)]
        checked = subprocess.run(command, capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr
        assert "WARNING" not in checked.stderr


@pytest.mark.skipif(program_path("haproxy") is None, reason="no HAProxy here; Molecule installs it")
def test_a_haproxy_without_lua_takes_the_other_lines(tmp_path: Path) -> None:
    given = settings(tls=False, host="127.0.0.1", user="root", run_dir=str(tmp_path), state_dir=str(tmp_path))
    (tmp_path / "server-state").write_text("1\n", encoding="utf-8")
    files = config.files(given, SAME, str(tmp_path))
    # There is no such feature, and no such file.
    without = {name: text.replace("feature(LUA)", "feature(NONE)") for name, text in files.items()}
    del without["too-large.lua"]
    for name, text in without.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    for name in ("haproxy.cfg", "reader.cfg"):
        command = [str(program_path("haproxy")), "-W", "-c", "-f", str(tmp_path / name)]
        checked = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (checked.returncode, "WARNING" in checked.stderr) == (0, False), checked.stderr


def test_hosts_with_other_keys_are_named_and_the_keys_are_not() -> None:
    keys = {"gpu-01": "secret-1", "gpu-02": "secret-2", "gpu-03": "secret-3"}
    assert members.one_key(keys, [ONE]) == "secret-1"
    assert members.one_key(keys, []) == ""
    with pytest.raises(GpufleetError) as caught:
        members.one_key(keys, [ONE, TWO])
    assert caught.value.name == "keys-differ"
    assert "gpu-01 and gpu-02" in str(caught.value) and "secret" not in caught.value.as_text()


def test_the_last_replica_is_not_taken_out_while_a_host_may_well_serve() -> None:
    with pytest.raises(GpufleetError) as caught:
        members.check_not_emptied([ONE, TWO], [], {"gpu-07": "it could not be asked"})
    assert caught.value.name == "router-emptied"
    assert "every replica that it has (2)" in str(caught.value) and "gpu-07: it could not be asked" in str(caught.value)
    members.check_not_emptied([ONE], [TWO], {"gpu-07": "it could not be asked"})
    members.check_not_emptied([ONE], [], {})
    members.check_not_emptied([], [], {"gpu-07": "it could not be asked"})
