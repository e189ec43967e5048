# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Values to look for afterwards in the place of a site's secrets, and who looks for them."""

from __future__ import annotations

import base64
import gzip
import os
import random
import re
import string
import threading
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

CALLBACKS = Path(__file__).resolve().parents[1] / "fleet" / "callback"
# Another one for each run: what is found is of this run, also where others run beside it.
MARKER = "MARKER" + "".join(random.SystemRandom().choices(string.ascii_letters, k=12))
LOOKS_APART_S = 0.05
LONGEST_FILE = 50 * 1024 * 1024


def shapes_of(marker: str) -> tuple[str, ...]:
    """Return all that a text holds one of when it holds a value with the marker.

    It has letters alone, which are the same in an address, in JSON and for the shell, whatever is around them. In
    Base64 it has three shapes, as the value may begin at any byte of three.
    """
    found = [marker, marker.encode().hex()]
    for before in range(3):
        encoded = base64.b64encode(b"x" * before + marker.encode()).decode()
        # Only whole groups of four characters are of the marker alone.
        found.append(encoded[4 if before else 0 : (before + len(marker)) // 3 * 4])
    return tuple(found)


SHAPES = shapes_of(MARKER)
SHAPE = re.compile("|".join(SHAPES).encode())
# Each has its own, so that a finding says which it was. Some have characters that are written otherwise in an address,
# in JSON and for the shell: who looks for the value as it was given does not find it there.
SECRETS: dict[str, Any] = {
    "vllm_api_key": f"{MARKER}-api-key",
    "vllm_api_keys_accepted": [f"{MARKER}-api-key-before"],
    "vllm_hf_token": f"hf_{MARKER}hfToken",
    "vllm_secret_environment": {
        "STORE_PASSWORD": f"{MARKER}-environment \"$HOME\" 'x' \\\\",
        "STORE_URL": f"redis://:{MARKER}-environment-url@127.0.0.1:9",
    },
    "vllm_http_proxy": f"http://me:{MARKER}-http-proxy%40%2F@127.0.0.1:9",
    "vllm_https_proxy": f"http://me:{MARKER}-https-proxy@127.0.0.1:9",
    "vllm_pip_index_url": f"https://me:{MARKER}-index%3A@127.0.0.1:9/simple",
    "vllm_registries": [{"host": "registry.invalid", "username": "me", "password": f'{MARKER}-registry "$&@/'}],
    "docker_proxy": f"http://me:{MARKER}-docker-proxy@127.0.0.1:9",
    "nvidia_container_toolkit_proxy": f"http://me:{MARKER}-toolkit-proxy@127.0.0.1:9",
    "router_api_keys": [f"{MARKER}-router-key"],
    "router_clients": [{"name": "shop", "key": f"{MARKER}-client-key"}],
    "router_metrics_token": f"{MARKER}-metrics-token",
    "monitoring_password": f"{MARKER}-monitoring-password",
    "monitoring_node_password": f"{MARKER}-node-password",
    "monitoring_alertmanager_config": {
        "route": {"receiver": "people"},
        "receivers": [{"name": "people", "webhook_configs": [{"url": f"http://me:{MARKER}-alerts@127.0.0.1:9/"}]}],
    },
}


class CommandLines(threading.Thread):
    """Reads the command lines of all processes for the block, again and again, and keeps those with a marker."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.found: set[str] = set()
        self.looks = 0
        self.ended = threading.Event()

    def __enter__(self) -> CommandLines:
        """Begin to look."""
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        """Look no more."""
        self.ended.set()
        self.join()

    def run(self) -> None:
        """Look until the event comes."""
        while not self.ended.wait(LOOKS_APART_S):
            for number in os.listdir("/proc"):
                if number.isdigit():
                    try:
                        with open(f"/proc/{number}/cmdline", "rb", buffering=0) as stream:
                            line = stream.readall()
                    except OSError:
                        continue
                    if line and SHAPE.search(line):
                        self.found.add(line.replace(b"\0", b" ").decode(errors="replace"))
            self.looks += 1


def excerpt(text: str) -> str:
    """Return where a text holds a marker, with what is around it; empty where it does not."""
    data = text.encode(errors="replace")
    place = SHAPE.search(data)
    if not place:
        return ""
    return data[max(0, place.start() - 1000) : place.start() + 100].decode(errors="replace")


def content_of(path: Path) -> bytes:
    """Return what a file holds, unpacked; nothing of one that is gone, of no regular file, and of a huge one."""
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > LONGEST_FILE:
            return b""
        data = path.read_bytes()
        return gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    except (OSError, EOFError, zlib.error):
        return b""


def holders(folder: Path, given: tuple[str, ...], private: Iterable[str] | None = None) -> list[str]:
    """Return the files below a folder that hold a marker where they must not, with the place.

    Args:
        folder: where everything is that plays write.
        given: beginnings of the paths in it of what is a test's own, such as the inventory.
        private: regular expressions of the paths of those that may hold some, if only root reads them; None for all but
            what a controller keeps.
    """
    found = []
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        place = None if name.startswith(given) else SHAPE.search(content := content_of(path))
        if place and not (may_hold(name, private) and is_closed(path)):
            around = content[max(0, place.start() - 300) : place.start() + 60]
            found.append(f"{name} (mode {path.stat().st_mode & 0o777:04o}): …{around.decode(errors='replace')}…")
    return found


def may_hold(name: str, private: Iterable[str] | None) -> bool:
    """Return whether a file may hold secrets, by its path."""
    if private is None:
        return not (name.endswith((".log", ".events")) or name.startswith(("reports/", "facts/", "play")))
    return any(re.fullmatch(pattern, name) for pattern in private)


def is_closed(path: Path) -> bool:
    """Return whether only its owner reads a file, or its folder lets in no others than its owner and group."""
    return not path.stat().st_mode & 0o077 or not path.parent.stat().st_mode & 0o005


def newer_files(folders: Iterable[Path], since: float, without: Iterable[Path]) -> list[Path]:
    """Return the regular files below folders that were written since a time, on the folders' own file systems."""
    left_out = {str(path) for path in without}
    found = []
    for top in folders:
        for folder, inner, names in os.walk(top):
            below = {name: os.path.join(folder, name) for name in inner}
            inner[:] = [name for name in inner if below[name] not in left_out and not os.path.ismount(below[name])]
            for name in names:
                path = Path(folder, name)
                try:
                    if path.lstat().st_ctime >= since:
                        found.append(path)
                except OSError:
                    continue
    return found


def told_everything(folder: Path) -> dict[str, str]:
    """Return the variables with which Ansible tells and keeps all that it can, below a folder."""
    return {
        "ANSIBLE_VERBOSITY": "3",
        "ANSIBLE_DIFF_ALWAYS": "true",
        "ANSIBLE_CACHE_PLUGIN": "jsonfile",
        "ANSIBLE_CACHE_PLUGIN_CONNECTION": str(folder / "facts"),
        "ANSIBLE_LOG_PATH": str(folder / "ansible.log"),
        "ANSIBLE_CALLBACK_PLUGINS": str(CALLBACKS),
        "ANSIBLE_CALLBACKS_ENABLED": "events",
        "GPUFLEET_EVENTS": str(folder / "play.events"),
    }
