# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module docker_engine: see DOCUMENTATION."""

from __future__ import annotations

DOCUMENTATION = r"""
module: docker_engine
short_description: Start a host's Docker engine, with some keys in its configuration
version_added: 0.1.0
author: gpufleet contributors (@gpufleet)
description:
  - Merges keys into C(daemon.json), starts the engine where none answers, and has a running one take over what changed.
  - Everything else in C(daemon.json) stays. A file that is not valid JSON is an error and is not touched.
  - What the engine can take over while it runs is reloaded, which touches no container. A restart, which ends every
    container on the host, comes only where it must, and fails while containers run unless O(allow_restart) is set.
  - What the engine would refuse at its next start is told before it is written, by C(dockerd --validate) with the
    options that it runs with (from Docker 23 on) and by the collection's own rules. So is a file that it does not read.
  - When the engine does not start with the new configuration, the old file and the engine with it are put back.
  - With systemd the unit C(docker.service) is started and enabled; without, Debian's init script or C(dockerd) itself
    is started, and restarted with the options and the environment that it had.
  - Needs no library beyond the system's Python.
options:
  docker_host:
    description:
      - Address of the engine.
    type: str
    default: unix:///var/run/docker.sock
  config_path:
    description:
      - The engine's configuration.
    type: path
    default: /etc/docker/daemon.json
  config:
    description:
      - Keys to have in it, with their values. Mappings are merged key by key, anything else replaces what is there.
    type: dict
    default: {}
  nvidia_runtime:
    description:
      - Whether containers can have NVIDIA's GPUs. C(nvidia-ctk runtime configure) adds what that takes, on
        a copy, so that check mode and C(--diff) show it.
      - An engine that started before the toolkit was installed does not know C(--gpus) yet and is restarted for it if
        no container runs; otherwise RV(pending) says so.
    type: bool
    default: false
  cdi:
    description:
      - With O(nvidia_runtime), whether to have the engine's CDI support switched on too.
    type: bool
    default: false
  proxies:
    description:
      - The variables C(HTTP_PROXY), C(HTTPS_PROXY) and C(NO_PROXY) by which the engine pulls, in
        C(/etc/docker/gpufleet-proxies.env), which only root reads and which the engine's unit is given. None of them
        removes the file. Left out, and where C(daemon.json) has C(proxies), what is there stays.
      - A running engine is restarted for them if no container runs; otherwise RV(pending) says so.
    type: dict
  allow_restart:
    description:
      - Whether the engine may be restarted while containers run.
    type: bool
    default: false
  allow_restart_variable:
    description:
      - The variable that a message names for O(allow_restart).
    type: str
    default: docker_allow_restart
extends_documentation_fragment:
  - gpufleet.vllm.common.changes
"""

EXAMPLES = r"""
- name: Have the engine rotate its logs
  gpufleet.vllm.docker_engine:
    config:
      log-driver: json-file
      log-opts: {max-size: 100m, max-file: "5"}

- name: Have GPUs in containers
  gpufleet.vllm.docker_engine:
    nvidia_runtime: true
"""

RETURN = r"""
action:
  description: What was done with the engine, V(none), V(start), V(reload) or V(restart).
  returned: success
  type: str
  sample: reload
reason:
  description: Why.
  returned: success
  type: str
  sample: runtimes in /etc/docker/daemon.json changed
pending:
  description: What only a restart would bring, where containers run and the restart is not needed otherwise.
  returned: success
  type: str
  sample: ""
changed_keys:
  description: The keys of C(daemon.json) that changed, or would change.
  returned: success
  type: list
  elements: str
  sample: [runtimes]
error:
  description:
    - The failure in parts, C(name), C(message), C(remedy), C(evidence) and C(details).
    - Names are V(daemon-config-invalid), V(daemon-config-not-read), V(daemon-config-refused), V(engine-is-podman),
      V(engine-serves), V(engine-start-failed), V(toolkit-missing), V(toolkit-failed) and V(write-failed).
  returned: failure
  type: dict
"""

from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.module import DOCKER_ARGUMENTS, GpufleetModule
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.daemon import ensure
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.daemon_config import DaemonWish as Wish
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.daemon_config import shown
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.daemon_options import CONFIG

ARGUMENTS: dict[str, Any] = {
    "docker_host": DOCKER_ARGUMENTS["docker_host"],
    "config_path": {"type": "path", "default": CONFIG},
    "config": {"type": "dict", "default": {}},
    "nvidia_runtime": {"type": "bool", "default": False},
    "cdi": {"type": "bool", "default": False},
    "proxies": {"type": "dict", "no_log": True},
    "allow_restart": {"type": "bool", "default": False},
    "allow_restart_variable": {"type": "str", "default": "docker_allow_restart"},
}


def have_engine(module: GpufleetModule) -> dict[str, Any]:
    """Set the Docker engine up as the options say, and return the module's result."""
    params = module.params
    wish = Wish(
        docker_host=params["docker_host"],
        config=params["config"],
        nvidia_runtime=params["nvidia_runtime"],
        cdi=params["cdi"],
        allow_restart=params["allow_restart"],
        path=params["config_path"],
        variable=params["allow_restart_variable"],
        proxies=params["proxies"],
    )
    result = ensure(wish, module.check_mode)
    before, after = result.pop("before"), result.pop("after")
    if result["changed_keys"]:
        result["diff"] = {
            "before": shown(before),
            "after": shown(after),
            "before_header": wish.path,
            "after_header": wish.path,
        }
    if result["pending"]:
        module.warn(f"{result['pending']}. With {wish.variable}: true it is restarted nevertheless.")
    return result


def main() -> None:
    """Run the module."""
    module = GpufleetModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    module.run(lambda: have_engine(module))


if __name__ == "__main__":
    main()
