# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Begin and finish a bundle for hosts without internet."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_bundle
short_description: Begin and finish a bundle for hosts without internet
version_added: 0.2.0
author: gpufleet contributors (@gpufleet)
description:
  - V(finished) adds this collection's tarball to what was gathered, removes what no host needs any more, writes
    C(bundle.json) (what is for which host) and last C(SHA256SUMS), and makes parts for media of a limited size.
  - V(begun) takes C(SHA256SUMS) away until then, so that a bundle whose gathering was interrupted is not taken for a
    finished one, and checks O(part_size).
  - Only files that are new or have changed are read for their checksums.
options:
  path:
    description:
      - The bundle.
    type: path
    required: true
  state:
    description:
      - Whether gathering begins, or is over.
    type: str
    choices: [begun, finished]
    default: finished
  hosts:
    description:
      - What is for which host, as M(gpufleet.vllm.vllm_bundle_contents) returns it. Needed with V(finished).
    type: dict
  collection:
    description:
      - Folder of the collection that runs. Needed with V(finished).
    type: path
  keep:
    description:
      - Folders of the bundle that are of no host, such as the controller's packages.
    type: list
    elements: str
    default: []
  part_size:
    description:
      - Size of the parts, such as V(4G), which are made in the folder C(<path>.parts). Empty makes none.
    type: str
    default: ""
extends_documentation_fragment:
  - gpufleet.vllm.common.changes
  - gpufleet.vllm.common.progress
"""

EXAMPLES = r"""
- name: Finish the bundle
  gpufleet.vllm.vllm_bundle:
    path: /srv/bundle
    hosts: "{{ contents.hosts }}"
    collection: "{{ role_path }}/../.."
    part_size: 4G
"""

RETURN = r"""
files:
  description: The files of the bundle.
  returned: success with O(state=finished)
  type: int
  sample: 214
bytes:
  description: Their bytes.
  returned: success with O(state=finished)
  type: int
  sample: 137438953472
by_folder:
  description: The bytes of each folder at the bundle's head.
  returned: success with O(state=finished)
  type: dict
  sample: {"images": 21474836480}
removed:
  description: Files that were removed, or would be.
  returned: success with O(state=finished)
  type: list
  elements: str
  sample: []
parts:
  description: Folder of the parts; empty where none are made.
  returned: success with O(state=finished)
  type: str
  sample: /srv/bundle.parts
phases:
  description: The phases that the work went through and how many seconds each took.
  returned: success with O(state=finished)
  type: list
  elements: dict
  sample: [{"name": "checksums", "seconds": 75.2}]
error:
  description:
    - The failure in parts, C(name), C(message), C(remedy), C(evidence) and C(details).
    - Names are V(part-size-invalid), V(collection-not-built) and V(write-failed).
  returned: failure
  type: dict
"""

import os
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.bundle_files import files_below
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.bundle_seal import (
    COLLECTION,
    have_collection,
    have_parts,
    part_bytes,
    reopen,
    seal,
    stale,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import write_failed
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.module import PROGRESS_ARGUMENTS, GpufleetModule
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.progress import Progress

ARGUMENTS: dict[str, Any] = {
    "path": {"type": "path", "required": True},
    "state": {"type": "str", "choices": ["begun", "finished"], "default": "finished"},
    "hosts": {"type": "dict"},
    "collection": {"type": "path"},
    "keep": {"type": "list", "elements": "str", "default": []},
    "part_size": {"type": "str", "default": ""},
    **PROGRESS_ARGUMENTS,
}


def work(module: GpufleetModule) -> dict[str, Any]:
    """Begin or finish the bundle, and return the module's result."""
    params, check = module.params, module.check_mode
    folder, size = params["path"], part_bytes(params["part_size"])
    if params["state"] == "finished":
        return finish(module, folder, size)
    if not check:
        reopen(folder)
    # The checksums come back unless something else changes.
    return {"changed": False}


def finish(module: GpufleetModule, folder: str, size: int) -> dict[str, Any]:
    """Finish the bundle, and return the module's result.

    Args:
        module: this one.
        folder: the bundle.
        size: bytes of its parts; 0 for none.
    """
    params, check = module.params, module.check_mode
    progress = Progress(params["progress_file"])
    packed = have_collection(os.path.realpath(params["collection"]), folder, check=check)
    kept = [COLLECTION, *params["keep"], *(name for parts in params["hosts"].values() for name in _names(parts))]
    removed = stale(folder, kept)
    if not check:
        _remove(folder, removed)
    changed = seal(folder, params["hosts"], check=check, progress=progress)
    split = bool(size) and (bool(changed) or have_parts(folder, size, check=True, progress=progress))
    if split and not check:
        have_parts(folder, size, check=False, progress=progress)
    sizes = _sizes(folder)
    result = {
        "changed": bool(packed or removed or changed or split),
        "files": len(list(files_below(folder))),
        "bytes": sum(sizes.values()),
        "by_folder": sizes,
        "removed": removed,
        "parts": f"{folder.rstrip('/')}.parts" if size else "",
        "phases": progress.finish(),
    }
    if module._diff and (changed or removed):
        text = "".join([*(f"{name}\n" for name in changed), *(f"{name} (removed)\n" for name in removed)])
        result["diff"] = {"before_header": folder, "after_header": folder, "before": "", "after": text}
    return result


def _names(parts: dict[str, Any]) -> list[str]:
    """Return the paths of a host's parts."""
    found = [value for value in parts.values() if isinstance(value, str) and value]
    return [*found, *(parts.get("hub") or [])]


def _remove(folder: str, names: list[str]) -> None:
    try:
        for name in names:
            os.unlink(os.path.join(folder, name))
        for parent, _folders, _files in os.walk(folder, topdown=False):
            if parent != folder and not os.listdir(parent):
                os.rmdir(parent)
    except OSError as error:
        raise write_failed(folder, error) from error


def _sizes(folder: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for name in files_below(folder):
        path = os.path.join(folder, name)
        if not os.path.islink(path):
            head = name.split("/")[0]
            found[head] = found.get(head, 0) + os.path.getsize(path)
    return found


def main() -> None:
    """Run the module."""
    module = GpufleetModule(
        argument_spec=ARGUMENTS,
        supports_check_mode=True,
        required_if=[("state", "finished", ("hosts", "collection"))],
    )
    module.run(lambda: work(module))


if __name__ == "__main__":
    main()
