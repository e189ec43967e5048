# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Values to look for afterwards in the place of a site's secrets, and who looks for them."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

CALLBACKS = Path(__file__).resolve().parents[1] / "fleet" / "callback"
MARKER = "MARKERmarker"
# Each has its own, so that a finding says which it was.
SECRETS: dict[str, Any] = {
    "vllm_api_key": f"{MARKER}-api-key",
    "vllm_api_keys_accepted": [f"{MARKER}-api-key-before"],
    "vllm_hf_token": f"hf_{MARKER}hfToken",
    "vllm_secret_environment": {
        "STORE_PASSWORD": f"{MARKER}-environment",
        "STORE_URL": f"redis://:{MARKER}-environment-url@127.0.0.1:9",
    },
    "vllm_http_proxy": f"http://me:{MARKER}-http-proxy@127.0.0.1:9",
    "vllm_https_proxy": f"http://me:{MARKER}-https-proxy@127.0.0.1:9",
    "vllm_pip_index_url": f"https://me:{MARKER}-index@127.0.0.1:9/simple",
    "vllm_registries": [{"host": "registry.invalid", "username": "me", "password": f"{MARKER}-registry"}],
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
    """Reads the command lines of all processes for the block, again and again, and keeps those with the marker."""

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
        while not self.ended.is_set():
            for entry in os.scandir("/proc"):
                if entry.name.isdigit():
                    try:
                        line = Path(entry.path, "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    except OSError:
                        continue
                    if MARKER in line:
                        self.found.add(line)
            self.looks += 1
            time.sleep(0.3)


def holders(folder: Path, given: tuple[str, ...]) -> list[str]:
    """Return the files below a folder that hold the marker and are read by others than root, with the place.

    Args:
        folder: where everything is that plays write.
        given: beginnings of the paths in it of what is a test's own, such as the inventory.
    """
    found = []
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink() or not path.is_file() or name.startswith(given):
            continue
        text = path.read_bytes().decode(errors="replace")
        closed = not path.stat().st_mode & 0o077 or not path.parent.stat().st_mode & 0o005
        shown = name.endswith((".log", ".events")) or name.startswith(("reports/", "facts/", "play"))
        if MARKER in text and (shown or not closed):
            place = text.index(MARKER)
            found.append(f"{name}: …{text[max(0, place - 300) : place + 60]}…")
    return found


def excerpt(text: str) -> str:
    """Return where a text holds the marker, with what is around it; empty where it does not."""
    place = text.find(MARKER)
    return "" if place < 0 else text[max(0, place - 1000) : place + 100]


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
