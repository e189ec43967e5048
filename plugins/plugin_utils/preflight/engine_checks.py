# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What preflight finds about the Docker engine of a host, or about what answers in its place."""

from __future__ import annotations

from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.daemon_options import CONFIG
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.engine import PODMAN, SNAP
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.preflight.case import DEFAULT_ENGINE, Case
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.preflight.findings import ERROR, INFO, WARNING, Finding


def engine(case: Case) -> list[Finding]:
    """Return what is wrong with the Docker engine, or what is in its place, and with its daemon.json."""
    about, config = case.part("engine"), case.part("daemon_config")
    found = []
    if config.get("valid") is False:
        found.append(
            Finding(
                "daemon-config-invalid",
                ERROR,
                f"{config['path']}: {config['error']}",
                "a JSON object, or no such file",
                f"Fix it by hand (`python3 -m json.tool {config['path']}` shows where it breaks), or remove it; the"
                " collection does not touch a file that it cannot read.",
            )
        )
    if not about:
        return found
    if about["running"]:
        return found + _other_engine(case)
    if case.manage_engine and case.docker_host in DEFAULT_ENGINE:
        installed = about.get("dockerd")
        act = "It will be started." if installed else "The distribution's package will be installed (docker_packages)."
        return [*found, Finding("engine-to-come", INFO, f"No Docker engine answers at {case.docker_host}. {act}")]
    return [
        *found,
        Finding(
            "engine-not-running",
            ERROR,
            about["reason"],
            f"a Docker engine that answers at {case.docker_host}",
            "Start it, or set vllm_docker_host to the address of the engine to use; the role docker starts one (with"
            f" docker_manage: true) at {DEFAULT_ENGINE[0]} only.",
        ),
    ]


def _other_engine(case: Case) -> list[Finding]:
    """Return what is wrong with an engine that is not Docker's own in the usual place."""
    about = case.part("engine")
    kind = about.get("kind")
    if kind == PODMAN:
        return [
            Finding(
                "engine-is-podman",
                ERROR,
                f"Podman {about.get('version')} answers at {case.docker_host} in Docker's place.",
                "a Docker engine",
                "Install Docker (the role docker does where nothing answers: remove podman-docker), or set"
                " vllm_docker_host to the address of a Docker engine.",
            )
        ]
    if kind == SNAP:
        return [
            Finding(
                "engine-is-snap",
                ERROR,
                f"The engine at {case.docker_host} is Docker's snap ({about.get('root_dir')}).",
                f"Docker from packages: the snap cannot mount folders outside /home, and does not read {CONFIG}",
                "Remove it (snap remove docker) and run the play again, which installs Docker's packages"
                " (docker_source, docker_packages).",
            )
        ]
    return _unusual(case)


def _unusual(case: Case) -> list[Finding]:
    """Return what is to know of a Docker engine that was set up in its own way."""
    about = case.part("engine")
    read = about.get("config_path")
    if about.get("rootless"):
        return [
            Finding(
                "engine-is-rootless",
                WARNING,
                f"The engine at {case.docker_host} runs without root, which this collection was not tried with; GPUs"
                " take no-cgroups = true in the container toolkit's configuration.",
                "an engine that runs as root",
                f"Set vllm_docker_host to {DEFAULT_ENGINE[0]}, with docker_manage: true.",
            )
        ]
    if read and read != CONFIG and case.docker_host in DEFAULT_ENGINE:
        return [
            Finding(
                "daemon-config-not-read",
                WARNING,
                f"dockerd reads {read} (--config-file), and not {CONFIG}.",
                f"a dockerd that reads {CONFIG}, where docker_daemon_config and the container toolkit go",
                "Take --config-file out of dockerd's command line (systemctl cat docker), or make the changes by hand"
                f" in {read} and set docker_manage and nvidia_container_toolkit_manage to false.",
            )
        ]
    return []
