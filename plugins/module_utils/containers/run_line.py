# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The C(docker run) command that repeats by hand what vllm_server does through the Docker SDK."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import Spec
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.client import DEFAULT_DOCKER_HOST
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.names import (
    COLLECTION,
    LABEL_COLLECTION,
    LABEL_REPLICA,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.spec import HEALTH, health_command
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container.paths import CONFIG_PATH


def docker_run_line(
    spec: Spec, *, config_file: str, secrets_file: str = "", docker_host: str = DEFAULT_DOCKER_HOST
) -> str:
    """Return the command, one option a line, quoted for the shell.

    Args:
        spec: what spec.build_spec returned.
        config_file: the host file mounted as the configuration.
        secrets_file: the host file with the secrets as an environment file; empty when there are none.
        docker_host: address of the engine; named in the command when it is not the usual one.
    """
    docker = ["docker"] if docker_host == DEFAULT_DOCKER_HOST else ["docker", "--host", docker_host]
    options: list[list[str]] = [["--name", spec["name"]], *_gpu_options(spec)]
    options += [[f"--ipc={spec['ipc_mode']}"], ["--init"]]
    if spec["shm_size"]:
        options.append(["--shm-size", spec["shm_size"]])
    options.append(["--publish", spec["publish"]] if spec["publish"] else ["--network", spec["network_mode"]])
    options += [["--volume", volume] for volume in (f"{config_file}:{CONFIG_PATH}:ro", *spec["volumes"])]
    options += [["--env", f"{name}={value}"] for name, value in sorted(spec["environment"].items())]
    if secrets_file:
        options.append(["--env-file", secrets_file])
    options += [
        ["--restart", spec["restart_policy"]],
        ["--log-driver", "json-file"],
        ["--log-opt", f"max-size={spec['log_max_size']}"],
        ["--log-opt", f"max-file={spec['log_max_files']}"],
        ["--health-cmd", health_command(spec)],
        ["--health-interval", f"{HEALTH['interval_s']}s"],
        ["--health-timeout", f"{HEALTH['timeout_s']}s"],
        ["--health-retries", str(HEALTH["retries"])],
        ["--health-start-period", f"{HEALTH['start_period_s']}s"],
    ]
    own_labels = {**spec["labels"], LABEL_COLLECTION: COLLECTION, LABEL_REPLICA: spec["name"]}
    options += [["--label", f"{name}={value}"] for name, value in sorted(own_labels.items())]
    options.append(["--entrypoint", "vllm"])
    lines = [shlex.join([*docker, "run", "--detach"]), *(shlex.join(option) for option in options)]
    return " \\\n  ".join([*lines, shlex.join([spec["image"], *spec["command"]])])


def _gpu_options(spec: Spec) -> list[list[str]]:
    gpus, options = spec["gpus"], []
    if spec["gpu_access"] == "gpus":
        # Docker reads the value as CSV: the inner quotes keep the devices' commas together.
        options = [["--gpus", f'"device={",".join(gpus)}"']]
    elif spec["gpu_access"] == "cdi":
        options = [["--device", f"nvidia.com/gpu={gpu}"] for gpu in gpus]
    elif spec["gpu_access"] == "runtime":
        options = [["--runtime", "nvidia"]]
    return options + [["--device", path] for path in spec["devices"]]


def script(line: str, name: str) -> str:
    """Return the text of the shell script that holds the command."""
    return (
        "#!/bin/sh\n"
        f"# Starts the server {name} by hand as the collection gpufleet.vllm starts it.\n"
        f"# Before: docker stop {shlex.quote(name)} && docker rm {shlex.quote(name)}\n"
        f"exec {line}\n"
    )


def secrets_text(secrets: Mapping[str, str]) -> str:
    """Return the text of an environment file for C(docker run --env-file)."""
    return "".join(f"{name}={value}\n" for name, value in sorted(secrets.items()))
