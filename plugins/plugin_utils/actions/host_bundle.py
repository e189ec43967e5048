# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a bundle has for a host, and which of the collection's variables follow from it.

This is the one place that derives variables from C(vllm_bundle_dir). A variable that the inventory sets counts instead.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.bundle_files import read_bundle
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError

HUB = "huggingface"
# Of the parts of a bundle, those that lie on a host in its folder of bundled files, and under which name.
ON_THE_HOST = {"image": "image", "packages": "packages", "wheels": "wheels", "accuracy_wheels": "accuracy-wheels"}
# Packages of the container toolkit, which the role copies itself.
TOOLKIT = "toolkit"


@dataclass(frozen=True)
class HostBundle:
    """What of a bundle is for one host.

    Attributes:
        folder: the bundle, on the controller.
        parts: paths in it by what they are; C(hub) has several.
        base: folder of the host for its part.
        sums: the checksum of each file of the bundle.
        links: where each link of the bundle leads.
    """

    folder: str
    parts: dict[str, Any]
    base: str
    sums: dict[str, str] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)

    def path(self, part: str) -> str:
        """Return where a part lies on the host; empty where the bundle has none."""
        found = str(self.parts.get(part) or "")
        if not found:
            return ""
        name = os.path.join(self.base, ON_THE_HOST[part])
        return os.path.join(name, os.path.basename(found)) if part == "image" else name

    def _toolkit(self) -> str:
        """Return the folder of the bundle with the packages of the container toolkit."""
        return os.path.join(str(self.parts.get("packages") or ""), TOOLKIT)

    def derived(self) -> dict[str, str]:
        """Return the value of each variable that follows from it."""
        toolkit = self._toolkit()
        has_toolkit = any(name.startswith(f"{toolkit}/") for name in self.sums)
        return {
            "vllm_image_archive": self.path("image"),
            "vllm_accuracy_wheels": self.path("accuracy_wheels"),
            "nvidia_container_toolkit_packages_dir": os.path.join(self.folder, toolkit) if has_toolkit else "",
        }

    def packages(self) -> dict[str, str]:
        """Return what apt, dnf and pip are told, so that they take packages from the bundle alone."""
        folder, wheels = self.path("packages"), self.path("wheels")
        return {
            "apt": f'Dir::Etc::sourcelist "{folder}/bundle.list";\nDir::Etc::sourceparts "/dev/null";\n'
            'APT::Get::List-Cleanup "false";\n',
            "dnf": f"reposdir={folder}\n",
            "pip": f"[global]\nno-index = true\nfind-links = {wheels}\n" if wheels else "",
            "no_proxy": "",
        }

    def files(self, hf_home: str) -> list[dict[str, str]]:
        """Return the files and links that belong on the host: C(path), and C(source) and C(sha256) or C(link)."""
        places = {str(self.parts[part]): self.path(part) for part in ON_THE_HOST if self.parts.get(part)}
        places.update({name: os.path.join(hf_home, os.path.relpath(name, HUB)) for name in self.parts.get("hub") or []})
        deepest = sorted(places, key=len, reverse=True)
        found, toolkit = [], f"{self._toolkit()}/"
        for name in sorted({**self.sums, **self.links}):
            place = next((one for one in deepest if name == one or name.startswith(f"{one}/")), "")
            if not place or name.startswith(toolkit):
                continue
            path = places[place] if name == place else os.path.join(places[place], os.path.relpath(name, place))
            if name in self.links:
                found.append({"path": path, "link": self.links[name]})
            else:
                found.append({"path": path, "source": name, "sha256": self.sums[name]})
        return found


def host_bundle(folder: str, host: str, state_dir: str) -> HostBundle:
    """Return what a bundle has for a host.

    Args:
        folder: the bundle, on the controller.
        host: its name in the inventory.
        state_dir: vllm_state_dir of the host.

    Raises:
        GpufleetError: C(bundle-without-host), or as read_bundle.
    """
    folder = os.path.abspath(os.path.expanduser(folder))
    contents, sums = read_bundle(folder)
    parts = contents["hosts"].get(host)
    if parts is None:
        known = ", ".join(sorted(contents["hosts"]))
        raise GpufleetError(
            f"vllm_bundle_dir: the bundle in {folder} has nothing for {host}; it was made for {known}.",
            name="bundle-without-host",
            remedy="Run the playbook gpufleet.vllm.bundle again with this inventory, and bring what is new there.",
        )
    return HostBundle(folder, parts, os.path.join(state_dir, "bundle"), sums, contents["links"])
