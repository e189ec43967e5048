# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a dockerd would refuse at its next start, or never reads, told before it is written into daemon.json.

A running dockerd takes such a change without a word: it logs that it cannot reload, and starts no more.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import program_path
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.programs import run_program
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.daemon_config import DaemonWish
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.daemon_options import (
    config_of,
    taken_keys,
    words_of,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.engine import PODMAN, SNAP, process_of

# dockerd merges these with what its command line says.
MERGED = ("runtimes", "features")
VALIDATE_TIMEOUT = 30.0
# dockerd had no --validate before this version; what it refuses is then told by KINDS.
VALIDATES_FROM = 23

_WORD, _WORDS, _NUMBER, _TRUTH, _MAP = "a string", "a list of strings", "a whole number", "true or false", "a mapping"
KINDS: dict[str, str] = {
    **dict.fromkeys(
        (
            *("debug", "experimental", "icc", "init", "ip-forward", "ip-masq", "ip6tables", "iptables", "ipv6"),
            *("live-restore", "no-new-privileges", "raw-logs", "selinux-enabled", "tls", "tlsverify"),
            "userland-proxy",
        ),
        _TRUTH,
    ),
    **dict.fromkeys(
        (
            *("cpu-rt-period", "cpu-rt-runtime", "max-concurrent-downloads", "max-concurrent-uploads"),
            *("max-download-attempts", "mtu", "network-control-plane-mtu", "network-diagnostic-port"),
            *("oom-score-adjust", "shutdown-timeout"),
        ),
        _NUMBER,
    ),
    **dict.fromkeys(
        (
            *("allow-nondistributable-artifacts", "authorization-plugins", "cdi-spec-dirs", "dns", "dns-opts"),
            *("dns-search", "exec-opts", "hosts", "insecure-registries", "labels", "node-generic-resources"),
            *("registry-mirrors", "storage-opts"),
        ),
        _WORDS,
    ),
    **dict.fromkeys(
        ("builder", "cluster-store-opts", "default-ulimits", "features", "log-opts", "proxies", "runtimes"), _MAP
    ),
    **dict.fromkeys(
        (
            *("api-cors-header", "bip", "bridge", "cgroup-parent", "cluster-advertise", "cluster-store", "containerd"),
            *("containerd-namespace", "containerd-plugin-namespace", "data-root", "default-cgroupns-mode"),
            *("default-gateway", "default-gateway-v6", "default-ipc-mode", "default-runtime", "exec-root"),
            *("fixed-cidr", "fixed-cidr-v6", "graph", "group", "host-gateway-ip", "init-path", "ip", "log-driver"),
            *("log-level", "metrics-addr", "pidfile", "seccomp-profile", "storage-driver"),
            *("swarm-default-advertise-addr", "tlscacert", "tlscert", "tlskey", "userland-proxy-path", "userns-remap"),
        ),
        _WORD,
    ),
}
# Keys of any kind, and those that came after the last version without --validate.
OTHER_KEYS = ("default-address-pools", "default-shm-size", "deprecated-key-path")
NEWER_KEYS = ("cdi-spec-dirs", "proxies")


def refuse_unread(wish: DaemonWish, seen: Mapping[str, Any]) -> None:
    """Refuse to change a daemon.json that the running engine does not read.

    Raises:
        GpufleetError: C(engine-is-podman) or C(daemon-config-not-read).
    """
    if seen.get("kind") == PODMAN:
        raise GpufleetError(
            f"Podman answers at {wish.docker_host} in Docker's place; it reads no daemon.json. Nothing was changed.",
            name="engine-is-podman",
            remedy="Remove podman-docker and run the play again, which installs Docker, or set vllm_docker_host to the"
            " address of a Docker engine.",
        )
    read = config_of(process_of(wish.docker_host) or 0)
    if not read or os.path.realpath(read) == os.path.realpath(wish.path):
        return
    snap = seen.get("kind") == SNAP
    raise GpufleetError(
        f"The Docker engine{' is a snap, which' if snap else ''} reads {read}, and not {wish.path}. Nothing was"
        " changed.",
        name="daemon-config-not-read",
        remedy="Remove the snap (snap remove docker) and run the play again, which installs Docker's packages"
        " (docker_source)."
        if snap
        else "Take --config-file out of dockerd's command line (systemctl cat docker shows it), or make the change by"
        f" hand in {read} and set docker_manage: false and nvidia_container_toolkit_manage: false.",
        details={"reads": read},
    )


def refuse_conflicts(wish: DaemonWish, content: Mapping[str, Any], keys: Sequence[str]) -> None:
    """Refuse keys that the running dockerd has on its command line, and values that it does not take.

    Args:
        wish: what the daemon should be.
        content: what daemon.json would hold.
        keys: the keys in it that change.

    Raises:
        GpufleetError: C(daemon-config-refused).
    """
    pid = process_of(wish.docker_host)
    words = words_of(pid) if pid else []
    wanted = sorted({*keys, *wish.config})
    taken = taken_keys(words)
    twice = [key for key in wanted if key in taken and key in content and key not in MERGED]
    if twice:
        told = ", ".join(f"{key} ({taken[key]})" for key in twice)
        raise _refused(
            wish,
            f"has on its command line already: {told}",
            f"Take {', '.join(taken[key] for key in twice)} out of dockerd's command line (systemctl cat docker and"
            f" /etc/default/docker show it), or {', '.join(twice)} out of docker_daemon_config.",
            "specified both as a flag and in the configuration file",
            twice,
        )
    wrong = [
        f"{key}: {content[key]!r} is not {KINDS[key]}" for key in wanted if key in content and _wrong(key, content[key])
    ]
    if wrong:
        raise _refused(
            wish,
            f"does not take: {'; '.join(wrong)}",
            f"Correct {', '.join(line.partition(':')[0] for line in wrong)} in docker_daemon_config.",
            "; ".join(wrong),
            wanted,
        )


def _wrong(key: str, value: Any) -> bool:
    kind = KINDS.get(key)
    if kind == _TRUTH:
        return not isinstance(value, bool)
    if kind == _NUMBER:
        return not isinstance(value, int) or isinstance(value, bool)
    if kind == _WORDS:
        return not isinstance(value, list) or not all(isinstance(word, str) for word in value)
    if kind == _MAP:
        inner = value.values() if isinstance(value, dict) else [None]
        return not isinstance(value, dict) or (key == "log-opts" and not all(isinstance(word, str) for word in inner))
    return kind == _WORD and not isinstance(value, str)


def validate(wish: DaemonWish, text: str, keys: Sequence[str], version: str) -> None:
    """Make dockerd look at a new daemon.json, with the options that it runs with; before 23 its list of keys decides.

    Args:
        wish: what the daemon should be.
        text: the new daemon.json.
        keys: the keys in it that change.
        version: the engine's; empty when none runs.

    Raises:
        GpufleetError: C(daemon-config-refused).
    """
    pid = process_of(wish.docker_host)
    words = words_of(pid) if pid else []
    program = (words[0] if words and os.path.isabs(words[0]) else "") or program_path("dockerd")
    told = _told_by_dockerd(program, words[1:], text) if program else None
    if told:
        raise _refused(wish, "refuses it", "Correct the value in docker_daemon_config.", told, keys)
    major = re.match(r"\d+", version)
    if told is None and major and int(major.group()) < VALIDATES_FROM:
        unknown = [key for key in keys if key not in {*KINDS, *OTHER_KEYS} or key in NEWER_KEYS]
        if unknown:
            raise _refused(
                wish,
                f"knows no {', '.join(unknown)}",
                f"Take {', '.join(unknown)} out of docker_daemon_config, or update the engine (docker_source).",
                f"dockerd {version} has no such keys",
                unknown,
            )


def _told_by_dockerd(program: str, options: Sequence[str], text: str) -> str | None:
    """Return what dockerd says against a daemon.json: an empty text if nothing, None if it cannot be asked."""
    kept: list[str] = []
    skip = False
    for word in options:
        if not skip and not word.startswith("--config-file="):
            skip = word == "--config-file"
            kept += [] if skip else [word]
        else:
            skip = False
    with tempfile.TemporaryDirectory(prefix="gpufleet-") as folder:
        copy = os.path.join(folder, "daemon.json")
        with open(copy, "w", encoding="utf-8") as stream:
            stream.write(text)
        try:
            done = run_program(
                [program, *kept, "--validate", f"--config-file={copy}"],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=VALIDATE_TIMEOUT,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
    output = f"{done.stdout}\n{done.stderr}".strip()
    if done.returncode == 0:
        return ""
    if "unknown flag: --validate" in output or "unable to configure" not in output:
        return None
    return output.replace(copy, "daemon.json").splitlines()[-1]


def _refused(wish: DaemonWish, why: str, remedy: str, evidence: str, keys: Sequence[str]) -> GpufleetError:
    return GpufleetError(
        f"dockerd would not start any more with {', '.join(keys)} in {wish.path}: it {why}. Nothing was changed.",
        name="daemon-config-refused",
        remedy=remedy,
        evidence=evidence,
        details={"keys": list(keys)},
    )
