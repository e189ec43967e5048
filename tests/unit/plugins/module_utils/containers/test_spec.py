# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a container should be, as data: what follows from the plan, what counts as a change, what stays hidden."""

from __future__ import annotations

import dataclasses
import json
import shlex
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import Spec
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.secret_names import split_secrets
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.names import LABEL_SPEC, belongs_to
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.run_line import (
    docker_run_line,
    script,
    secrets_text,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.spec import (
    ServerOptions,
    base_url,
    build_spec,
    create_arguments,
    endpoint,
    health_command,
    labels,
    read_spec,
    secret_changes,
    spec_changes,
    what_matters,
)

WISHES = ServerOptions(
    image="vllm/vllm-openai:deploy",
    image_id="sha256:1700a9d57cad",
    model_source={"kind": "path", "location": "/srv/m", "mount": "/srv/m", "argument": "/models/scout"},
    device="cuda",
    gpu_access="auto",
    network_mode="bridge",
    hf_home="/var/lib/gpufleet/huggingface",
    cache_dir="/var/lib/gpufleet/cache",
    config_dir="/etc/gpufleet",
)
REPLICA: Any = {
    "name": "vllm-1",
    "gpus": [2, 3],
    "gpu_uuids": [],
    "host": "127.0.0.1",
    "port": 8001,
    "config": {"host": "0.0.0.0", "port": 8000, "tensor-parallel-size": 2, "max-num-seqs": 256},
    "environment": {"VLLM_LOGGING_LEVEL": "INFO"},
}


def spec_of(replica: dict[str, Any] | None = None, secrets: tuple[str, ...] = (), **wishes: Any) -> Spec:
    """Return the spec of REPLICA with some entries replaced, for WISHES with some replaced."""
    entry: Any = {**REPLICA, **(replica or {})}
    return build_spec(
        entry, dataclasses.replace(WISHES, **wishes), secrets, lambda path: path == "/dev/nvidia-uvm-tools"
    )


def test_mounts_caches_that_survive_and_the_model_read_only() -> None:
    assert spec_of()["volumes"] == [
        "/var/lib/gpufleet/huggingface:/root/.cache/huggingface",
        "/var/lib/gpufleet/cache/vllm:/root/.cache/vllm",
        "/var/lib/gpufleet/cache/flashinfer:/root/.cache/flashinfer",
        "/var/lib/gpufleet/cache/triton:/root/.triton",
        "/etc/gpufleet/control/vllm-1:/etc/vllm/control:ro",
        "/srv/m:/models/scout:ro",
    ]


def test_a_users_mount_replaces_ours_with_the_same_target() -> None:
    volumes = spec_of(volumes=("/nfs/hub:/root/.cache/huggingface:ro",))["volumes"]
    assert [volume for volume in volumes if "huggingface" in volume] == ["/nfs/hub:/root/.cache/huggingface:ro"]


def test_a_secret_of_several_lines_is_refused() -> None:
    with pytest.raises(GpufleetError) as caught:
        split_secrets({}, {"HF_TOKEN": "hf_x\n"})
    assert caught.value.name == "secret-invalid"
    assert "hf_x" not in caught.value.as_text()


def test_an_ipv6_address_is_bracketed() -> None:
    spec = spec_of({"host": "::1"})
    assert (spec["publish"], endpoint(spec), base_url(spec)) == ("[::1]:8001:8000", ("::1", 8001), "http://[::1]:8001")


def test_a_ca_bundle_is_mounted_and_named_for_every_library() -> None:
    spec = spec_of(ca_bundle="/etc/ssl/certs/ca.crt")
    assert "/etc/ssl/certs/ca.crt:/etc/gpufleet/ca-bundle.crt:ro" in spec["volumes"]
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT"):
        assert spec["environment"][name] == "/etc/gpufleet/ca-bundle.crt"


def test_the_users_environment_wins_over_the_plans() -> None:
    assert spec_of(environment={"VLLM_LOGGING_LEVEL": "DEBUG"})["environment"]["VLLM_LOGGING_LEVEL"] == "DEBUG"


@pytest.mark.parametrize(
    ("wishes", "replica", "sdk", "options"),
    [
        (
            {},
            {"gpu_uuids": ["GPU-a", "GPU-b"]},
            {
                "device_requests": [{"Driver": "nvidia", "DeviceIDs": ["GPU-a", "GPU-b"], "Capabilities": [["gpu"]]}],
                "devices": ["/dev/nvidia-uvm-tools:/dev/nvidia-uvm-tools:rwm"],
            },
            ["--gpus", '"device=GPU-a,GPU-b"'],
        ),
        (
            {"gpu_access": "gpus"},
            {},
            {
                "device_requests": [{"Driver": "nvidia", "DeviceIDs": ["2", "3"], "Capabilities": [["gpu"]]}],
                "devices": ["/dev/nvidia-uvm-tools:/dev/nvidia-uvm-tools:rwm"],
            },
            ["--gpus", '"device=2,3"'],
        ),
        (
            {"gpu_access": "cdi"},
            {},
            {"device_requests": [{"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=2", "nvidia.com/gpu=3"]}]},
            ["--device", "nvidia.com/gpu=2", "--device", "nvidia.com/gpu=3"],
        ),
        (
            {"gpu_access": "runtime"},
            {},
            {"runtime": "nvidia", "devices": ["/dev/nvidia-uvm-tools:/dev/nvidia-uvm-tools:rwm"]},
            ["--runtime", "nvidia", "--device", "/dev/nvidia-uvm-tools"],
        ),
        (
            {"gpu_access": "devices"},
            {"gpus": [2]},
            {
                "devices": [
                    "/dev/nvidia2:/dev/nvidia2:rwm",
                    "/dev/nvidiactl:/dev/nvidiactl:rwm",
                    "/dev/nvidia-uvm:/dev/nvidia-uvm:rwm",
                    "/dev/nvidia-uvm-tools:/dev/nvidia-uvm-tools:rwm",
                ]
            },
            ["--device", "/dev/nvidia2", "--device", "/dev/nvidiactl"],
        ),
        ({"gpu_access": "none"}, {}, {}, []),
        ({"device": "cpu"}, {}, {}, []),
    ],
)
def test_gpus_reach_the_container_in_every_way(
    wishes: dict[str, Any], replica: dict[str, Any], sdk: dict[str, Any], options: list[str]
) -> None:
    spec = spec_of(replica, **wishes)
    arguments = create_arguments(spec, {}, "/etc/gpufleet/active/x.yaml")
    given: dict[str, Any] = {
        key: arguments[key] for key in ("device_requests", "runtime", "devices") if key in arguments
    }
    assert given.keys() == sdk.keys()
    for key, value in sdk.items():
        if key == "device_requests":
            assert {field: given[key][0][field] for field in value[0]} == value[0]
        else:
            assert given[key] == value
    words = shlex.split(docker_run_line(spec, config_file="/x.yaml").replace("\\\n", " "))
    name = words.index("--name")
    assert words[name + 2 : name + 2 + len(options)] == options
    asked = {"runtime": "2,3", "cdi": "void", "devices": "void"}
    assert spec["environment"].get("NVIDIA_VISIBLE_DEVICES") == asked.get(spec["gpu_access"])


def test_docker_itself_knows_the_device_files_of_the_gpus_by_their_own_numbers() -> None:
    replica: Any = {**REPLICA, "gpu_uuids": ["GPU-a", "GPU-b"]}
    given = {}
    for access in ("gpus", "runtime", "devices", "cdi", "none"):
        wishes = dataclasses.replace(WISHES, gpu_access=access)
        given[access] = build_spec(replica, wishes, (), lambda _path: True, {"GPU-a": 7})["devices"]
    files = ["/dev/nvidia7", "/dev/nvidia3", "/dev/nvidiactl", "/dev/nvidia-uvm"]
    every = [*files, "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset"]
    assert given == {"gpus": every, "runtime": every, "devices": every, "cdi": [], "none": []}


def test_bridge_publishes_and_host_does_not() -> None:
    bridged = spec_of()
    assert create_arguments(bridged, {}, "/x")["ports"] == {"8000/tcp": ("127.0.0.1", 8001)}
    assert (endpoint(bridged), base_url(bridged)) == (("127.0.0.1", 8001), "http://127.0.0.1:8001")
    host = spec_of({"config": {"host": "10.0.0.5", "port": 8001}}, network_mode="host")
    assert "ports" not in create_arguments(host, {}, "/x")
    assert (endpoint(host), base_url(host)) == (("10.0.0.5", 8001), "http://10.0.0.5:8001")
    assert "gpufleet_health.py 10.0.0.5:8001 " in health_command(host)
    everywhere = spec_of({"host": "0.0.0.0"})
    assert base_url(everywhere) == "http://127.0.0.1:8001"


def test_the_container_runs_as_the_recipe_runs_it() -> None:
    arguments = create_arguments(spec_of(), {"VLLM_API_KEY": "k"}, "/etc/gpufleet/active/x.yaml")
    assert arguments["entrypoint"] + arguments["command"] == [
        *["vllm", "serve", "/models/scout", "--config", "/etc/vllm/config.yaml"],
        *["--middleware", "gpufleet_door.Door"],
    ]
    assert (arguments["ipc_mode"], arguments["init"]) == ("host", True)
    assert arguments["volumes"][0] == "/etc/gpufleet/active/x.yaml:/etc/vllm/config.yaml:ro"
    assert arguments["environment"]["VLLM_API_KEY"] == "k"
    assert arguments["log_config"]["Config"] == {"max-size": "100m", "max-file": "5"}
    assert arguments["healthcheck"]["start_period"] == 3600 * 10**9
    assert "restart_policy" not in arguments  # it gets it once it is ready


@pytest.mark.parametrize(
    ("replica", "wishes", "texts"),
    [
        ({}, {}, []),
        ({"config": {**REPLICA["config"], "max-num-seqs": 128}}, {}, ["config.max-num-seqs: 256 -> 128"]),
        (
            {"config": {"host": "0.0.0.0", "port": 8000, "tensor-parallel-size": 2}},
            {},
            ["config.max-num-seqs: 256 -> (not set)"],
        ),
        ({}, {"image_id": "sha256:ffff00001111"}, ["image_id: sha256:1700a9d57cad -> sha256:ffff00001111"]),
        ({}, {"image": "another/name:for-the-same"}, []),
        ({}, {"restart_policy": "always"}, []),  # changed in place
        ({"environment": {}}, {}, ["environment.VLLM_LOGGING_LEVEL: INFO -> (not set)"]),
        (
            {},
            {"cache_dir": "/f"},
            [
                "volume /root/.cache/flashinfer: /var/lib/gpufleet/cache/flashinfer:/root/.cache/flashinfer"
                " -> /f/flashinfer:/root/.cache/flashinfer",
                "volume /root/.cache/vllm: /var/lib/gpufleet/cache/vllm:/root/.cache/vllm -> /f/vllm:/root/.cache/vllm",
                "volume /root/.triton: /var/lib/gpufleet/cache/triton:/root/.triton -> /f/triton:/root/.triton",
            ],
        ),
        ({}, {"volumes": ("data:/data",)}, ["volume /data: (not set) -> data:/data"]),
        ({"gpus": [4, 5]}, {}, ['gpus: ["2", "3"] -> ["4", "5"]']),
        ({"port": 9000}, {}, ["publish: 127.0.0.1:8001:8000 -> 127.0.0.1:9000:8000"]),
        ({}, {"log_max_files": 9}, ["log_max_files: 5 -> 9"]),
        ({}, {"labels": {"team": "a"}}, ["labels.team: (not set) -> a"]),
        ({}, {"ipc_mode": "private", "shm_size": "16g"}, ["ipc_mode: host -> private", "shm_size: (not set) -> 16g"]),
    ],
)
def test_what_changed_is_told_field_by_field(replica: dict[str, Any], wishes: dict[str, Any], texts: list[str]) -> None:
    assert [change.as_text() for change in spec_changes(spec_of(), spec_of(replica, **wishes))] == texts


CONTROLS = ["/dev/nvidiactl", "/dev/nvidia-uvm"]
LAZY = ["/dev/nvidia-uvm-tools", "/dev/nvidia-modeset"]


@pytest.mark.parametrize("access", ["gpus", "runtime", "devices"])
@pytest.mark.parametrize(
    ("before", "after", "replaced"),
    [
        ([], LAZY, False),
        (LAZY, [], False),
        (LAZY, LAZY[:1], False),
        (CONTROLS, [*CONTROLS, *LAZY], False),
        # After a reboot the driver has made none yet.
        ([], ["/dev/nvidia2", "/dev/nvidia3", *CONTROLS], False),
        (["/dev/nvidia2", *CONTROLS], ["/dev/nvidia2", "/dev/nvidia3", *CONTROLS, *LAZY], False),
        (["/dev/nvidia2", "/dev/nvidia3", *CONTROLS], CONTROLS, False),
    ],
)
def test_a_device_file_that_came_or_went_is_no_change(
    access: str, before: list[str], after: list[str], replaced: bool
) -> None:
    specs = [
        build_spec(REPLICA, dataclasses.replace(WISHES, gpu_access=access), (), found.__contains__)
        for found in (before, after)
    ]
    assert bool(spec_changes(specs[0], specs[1])) is replaced
    assert what_matters(specs[0]) == what_matters(specs[1])


@pytest.mark.parametrize("access", ["gpus", "runtime", "devices"])
def test_the_device_file_of_another_gpu_is_a_change(access: str) -> None:
    """The same GPU may get another number when the host starts."""
    replica: Any = {**REPLICA, "gpu_uuids": ["GPU-a", "GPU-b"]}
    wishes = dataclasses.replace(WISHES, gpu_access=access)
    old, new = (build_spec(replica, wishes, (), lambda _path: True, {"GPU-a": n, "GPU-b": 3}) for n in (2, 7))
    assert [(change.field, change.before[0], change.after[0]) for change in spec_changes(old, new)] == [
        ("devices", "/dev/nvidia2", "/dev/nvidia7")
    ]


@pytest.mark.parametrize(("before", "after"), [(60, 600), (60, None), (None, 60)])
def test_how_long_vllm_drains_itself_is_no_reason_to_replace_it(before: int | None, after: int | None) -> None:
    config = REPLICA["config"]
    old, new = (spec_of({"config": {**config, **({"shutdown-timeout": s} if s else {})}}) for s in (before, after))
    assert (spec_changes(old, new), what_matters(old) == what_matters(new)) == ([], True)
    # One that is replaced for another reason gets it.
    assert new["config"].get("shutdown-timeout") == after


def test_the_spec_survives_its_label_and_holds_no_secret() -> None:
    public, secrets = split_secrets(
        {"A": "1", "MY_TOKEN": "t-1", "HTTPS_PROXY": "http://user:pass-1@proxy:3128", "NO_PROXY": "localhost"},
        {"VLLM_API_KEY": "k-1", "HF_TOKEN": ""},
    )
    assert public == {"A": "1", "NO_PROXY": "localhost"}
    assert sorted(secrets) == ["HTTPS_PROXY", "MY_TOKEN", "VLLM_API_KEY"]
    spec = spec_of(secrets=tuple(secrets), environment=public)
    on_container = labels(spec)
    assert read_spec(on_container) == spec
    assert spec["secrets"] == ["HTTPS_PROXY", "MY_TOKEN", "VLLM_API_KEY"]
    for value in ("t-1", "pass-1", "k-1"):
        assert value not in json.dumps(on_container)
        assert value not in docker_run_line(spec, config_file="/x", secrets_file="/e")


@pytest.mark.parametrize("label", ["", "no json", "[]", '{"schema": 2}'])
def test_a_label_that_cannot_be_read_replaces_the_container(label: str) -> None:
    assert read_spec({LABEL_SPEC: label}) is None
    assert [change.field for change in spec_changes(None, spec_of())] == ["spec"]


def test_changed_secrets_are_told_without_their_values() -> None:
    old = spec_of(secrets=("HF_TOKEN",))
    changes = secret_changes({"HF_TOKEN": "old", "GPG_KEY": "of the image"}, {"HF_TOKEN": "new"}, old)
    assert [change.as_text() for change in changes] == ["secret HF_TOKEN: (hidden) -> (hidden, changed)"]
    assert secret_changes({"HF_TOKEN": "same"}, {"HF_TOKEN": "same"}, old) == []
    # One more or less is told by the spec.
    more = spec_of(secrets=("HF_TOKEN", "VLLM_API_KEY"))
    assert [change.as_text() for change in spec_changes(old, more)] == [
        'secrets: ["HF_TOKEN"] -> ["HF_TOKEN", "VLLM_API_KEY"]'
    ]


def test_another_api_key_replaces_only_a_server_that_cannot_take_it() -> None:
    spec = spec_of(secrets=("VLLM_API_KEY",))
    before: Any = {name: value for name, value in spec.items() if name != "takes_keys"}
    actual, wanted = {"VLLM_API_KEY": "old"}, {"VLLM_API_KEY": "new"}
    assert secret_changes(actual, wanted, spec) == []
    assert [change.field for change in secret_changes(actual, wanted, before)] == ["secret VLLM_API_KEY"]
    assert spec_changes(before, spec) == [], "nor is one replaced to become one that can"


def test_the_run_line_is_complete_and_quoted() -> None:
    spec = spec_of(environment={"GREETING": "it's $HOME"}, labels={"team": "a b"})
    line = docker_run_line(
        spec, config_file="/etc/gpufleet/active/vllm-1-abc.yaml", secrets_file="/etc/gpufleet/vllm-1.env"
    )
    words = shlex.split(line.replace("\\\n", " "))
    assert words[:5] == ["docker", "run", "--detach", "--name", "vllm-1"]
    own = ["serve", "/models/scout", "--config", "/etc/vllm/config.yaml", "--middleware", "gpufleet_door.Door"]
    assert words[-7:] == ["vllm/vllm-openai:deploy", *own]
    pairs = list(zip(words, words[1:]))
    for pair in [
        ("--publish", "127.0.0.1:8001:8000"),
        ("--volume", "/etc/gpufleet/active/vllm-1-abc.yaml:/etc/vllm/config.yaml:ro"),
        ("--env", "GREETING=it's $HOME"),
        ("--env-file", "/etc/gpufleet/vllm-1.env"),
        ("--restart", "unless-stopped"),
        ("--log-opt", "max-size=100m"),
        ("--label", "team=a b"),
        ("--label", "io.gpufleet.replica=vllm-1"),
        ("--entrypoint", "vllm"),
    ]:
        assert pair in pairs
    assert "--ipc=host" in words
    assert "--init" in words
    assert "--network" not in words


def test_another_engine_and_the_hosts_network_are_named_in_the_run_line() -> None:
    line = docker_run_line(spec_of(network_mode="host"), config_file="/x", docker_host="unix:///run/other.sock")
    assert line.startswith("docker --host unix:///run/other.sock run --detach")
    assert "--network host" in line
    assert "--publish" not in line


def test_the_script_and_the_secrets_are_files_that_docker_and_the_shell_read() -> None:
    assert script("docker run x", "vllm-0").splitlines()[-1] == "exec docker run x"
    assert secrets_text({"B": "2", "A": "1 and a half"}) == "A=1 and a half\nB=2\n"


@pytest.mark.parametrize(
    ("container", "ours"),
    [
        ("vllm-0", True),
        ("vllm-11-next", True),
        ("vllm-0-previous", True),
        ("vllm-small-0", False),
        ("vllm-small-0-previous", False),
        ("vllm-config-check-17", False),
        ("vllm", False),
        ("other-vllm-0", False),
    ],
)
def test_which_containers_are_a_deployments_own(container: str, ours: bool) -> None:
    assert belongs_to("vllm", container) is ours
    assert belongs_to("a.b", "axb-0") is False
