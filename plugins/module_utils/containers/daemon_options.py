# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a running dockerd was told on its command line: which configuration file it reads, and which keys are taken.

A dockerd with an option on its command line does not start again once daemon.json has the same key.
"""

from __future__ import annotations

import os
import posixpath
import pwd
import socket
import struct
from collections.abc import Sequence
from urllib.parse import urlsplit

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import program_name, read_text

CONFIG = "/etc/docker/daemon.json"
# Options of dockerd that are called otherwise in daemon.json; the others are called the same.
KEYS = {
    "add-runtime": "runtimes",
    "authorization-plugin": "authorization-plugins",
    "cdi-spec-dir": "cdi-spec-dirs",
    "default-address-pool": "default-address-pools",
    "default-network-opt": "default-network-opts",
    "default-ulimit": "default-ulimits",
    "dns-opt": "dns-opts",
    "exec-opt": "exec-opts",
    "feature": "features",
    "host": "hosts",
    "insecure-registry": "insecure-registries",
    "label": "labels",
    "log-opt": "log-opts",
    "node-generic-resource": "node-generic-resources",
    "registry-mirror": "registry-mirrors",
    "storage-opt": "storage-opts",
}
SHORT = {
    "D": "debug",
    "G": "group",
    "H": "host",
    "b": "bridge",
    "l": "log-level",
    "p": "pidfile",
    "s": "storage-driver",
}
# These are no keys of daemon.json.
NO_KEYS = ("config-file", "validate", "version", "help", "rootless")


def peer_of(docker_host: str) -> int | None:
    """Return the process that listens on an engine's socket; None for another kind of address, or if none answers."""
    address = urlsplit(docker_host)
    if address.scheme != "unix":
        return None
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(2)
            connection.connect(address.path)
            told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    except OSError:
        return None
    pid: int = struct.unpack("3i", told)[0]
    return pid or None


def words_of(pid: int, root: str = "/") -> list[str]:
    """Return the command line of a process if it is a dockerd; else an empty list."""
    line = read_text(root, "proc", str(pid), "cmdline")
    return [word for word in line.split("\0") if word] if program_name(line) == "dockerd" else []


def options(words: Sequence[str]) -> dict[str, str]:
    """Return the options of a dockerd's command line by their long names, each as it was given."""
    found: dict[str, str] = {}
    for word in words[1:]:
        if word.startswith("--"):
            found[word[2:].partition("=")[0]] = word
        elif word.startswith("-") and len(word) > 1 and word[1] in SHORT:
            found[SHORT[word[1]]] = word
    return found


def taken_keys(words: Sequence[str]) -> dict[str, str]:
    """Return the keys of daemon.json that a dockerd's command line sets already, each with the option that does."""
    return {KEYS.get(name, name): f"--{name}" for name in options(words) if name not in NO_KEYS}


def config_file(words: Sequence[str], user_id: int = 0) -> str:
    """Return which file a dockerd with this command line reads its configuration from.

    Args:
        words: its command line.
        user_id: whom it runs as.
    """
    for at, word in enumerate(words):
        if word == "--config-file" and at + 1 < len(words):
            return posixpath.join("/", words[at + 1])
        if word.startswith("--config-file="):
            return posixpath.join("/", word.partition("=")[2])
    if user_id == 0 and "--rootless" not in words:
        return CONFIG
    try:
        home = pwd.getpwuid(user_id).pw_dir
    except KeyError:
        home = "/"
    return posixpath.join(home, ".config", "docker", "daemon.json")


def config_of(pid: int, root: str = "/") -> str:
    """Return the configuration file that the dockerd with this process id reads; empty if it is none."""
    words = words_of(pid, root)
    if not words:
        return ""
    try:
        user_id = os.stat(os.path.join(root, "proc", str(pid))).st_uid
    except OSError:
        user_id = 0
    return config_file(words, user_id)
