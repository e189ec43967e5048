# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What Docker tells of a container of ours: its state, restart policy, ports, mounts and variables."""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import Spec
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import read_text
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.secret_names import KEY_VARIABLE
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.client import variables_of
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.spec import endpoint, read_spec
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container.paths import CONFIG_PATH

if TYPE_CHECKING:
    from docker.models.containers import Container


def is_running(container: Container) -> bool:
    """Return whether Docker keeps a container up, even if it is between two starts or paused."""
    return container.status in ("running", "restarting", "paused")


def restart_policy(container: Container) -> dict[str, Any]:
    """Return the restart policy that a container has, as the Docker SDK takes it."""
    policy = container.attrs["HostConfig"].get("RestartPolicy") or {}
    return {"Name": policy.get("Name") or "no", "MaximumRetryCount": policy.get("MaximumRetryCount") or 0}


def wanted_policy(spec: Spec) -> Any:
    """Return the restart policy of a spec, as the Docker SDK takes it."""
    name, _colon, count = str(spec["restart_policy"]).partition(":")
    return {"Name": name or "no", "MaximumRetryCount": int(count or 0)}


def kept_policy(container: Container) -> Any:
    """Return the restart policy that a container is to have; one of ours without any is in the middle of something."""
    policy, spec = restart_policy(container), read_spec(container.labels)
    return wanted_policy(spec) if spec and policy["Name"] == "no" else policy


def host_port(container: Container) -> int:
    """Return the port that one of our containers on the host's network takes; 0 for any other."""
    spec = read_spec(container.labels)
    return endpoint(spec)[1] if spec and not spec["publish"] else 0


def publishing_addresses(container: Container, port: int) -> list[str]:
    """Return the host's addresses at which a container publishes a port of the host; C(::) stands for all of them."""
    bindings = container.attrs["HostConfig"].get("PortBindings") or {}
    entries = [entry for each in bindings.values() for entry in each or []]
    return [entry.get("HostIp") or "::" for entry in entries if entry.get("HostPort") == str(port)]


def mounted_config(container: Container) -> str:
    """Return the host file that a container mounts as its configuration; empty if there is none."""
    for bind in container.attrs["HostConfig"].get("Binds") or []:
        source, _colon, rest = bind.partition(":")
        if rest.split(":")[0] == CONFIG_PATH:
            return str(source)
    return ""


def environment_of(container: Container) -> dict[str, str]:
    """Return the container's environment variables."""
    return variables_of(container.attrs["Config"].get("Env"))


def key_to_ask_with(container: Container, config_dir: str) -> str:
    """Return a key that the server in a container takes; empty if it wants none.

    The one that it was started with may have been replaced since; its file of secrets has the one of now.
    """
    spec, first = read_spec(container.labels), environment_of(container).get(KEY_VARIABLE, "")
    if not first or not spec or not spec.get("takes_keys"):
        return first
    return variables_of(read_text(config_dir, f"{spec['name']}.env").splitlines()).get(KEY_VARIABLE, first)


def parse_time(text: str) -> float:
    """Return a time of the engine, as C(2026-11-22T07:24:24.123456789Z), in seconds since the epoch; 0 if never."""
    match = re.match(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d)?", text)
    if not match or text.startswith("0001"):
        return 0.0
    zone = (match.group(3) or "Z").replace("Z", "+00:00")
    return datetime.fromisoformat(match.group(1) + zone).timestamp() + float(match.group(2) or 0)


def started_at(container: Container) -> float:
    """Return when the container was last started, in seconds since the epoch."""
    return parse_time(container.attrs["State"].get("StartedAt") or "")
