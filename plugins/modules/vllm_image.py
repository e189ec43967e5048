# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pull or load the serving image on a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_image
short_description: Pull or load the serving image on a host
version_added: 0.1.0
author: gpufleet contributors (@gpufleet)
description:
  - Pulls the image for the host's platform, loads it from an archive, or accepts one that is already there; then gives
    it the name under which servers are deployed.
  - An image that is there under its reference, for the right platform and with the pinned digest, is left alone and
    no registry is asked, unless O(force_pull=true).
  - A pull is tried again, with growing pauses, where the cause may pass (a broken connection, a time-out, an answer
    5xx or 429). The engine keeps every layer that is complete, so a further attempt, or a further run, fetches only
    the missing ones. Where the cause will not pass (no such image, no access, no image for the platform, a full disk)
    the task fails at once. A registry whose name does not resolve or whose port is closed is tried twice.
  - When the image turns out to be wrong after it was pulled or loaded, its names are put back where they pointed.
options:
  state:
    description:
      - V(absent) takes O(reference) and O(tag) away; the engine removes the image itself once nothing names or uses it.
    type: str
    choices: [present, absent]
    default: present
  reference:
    description:
      - The image, such as V(vllm/vllm-openai:v0.12.0). A digest may stand in it, as in V(repository:tag@sha256:…).
    type: str
    required: true
  tag:
    description:
      - A further name for the image on the host, such as V(vllm/vllm-openai:deploy).
      - When it points at another image it is moved.
    type: str
    default: ""
  platform:
    description:
      - Platform of the image, V(linux/amd64) or V(linux/arm64).
      - V(linux/aarch64) and V(linux/x86_64) are taken for what they mean.
    type: str
    default: linux/amd64
  source:
    description:
      - Where the image comes from when the host has none that fits.
      - V(pull) asks the registry in the reference, V(archive) loads O(archive), V(present) fetches nothing.
    type: str
    choices: [pull, archive, present]
    default: pull
  archive:
    description:
      - Path on the host of an archive that C(docker save) wrote; it may be compressed.
      - An uncompressed archive is compared with the image on the host at every run, and loaded again when it holds
        another one. A compressed one is only read when the image is missing, has the wrong digest, or with
        O(force_pull=true).
      - When the image is on the host the archive need not be.
    type: path
  digest:
    description:
      - C(sha256:…) that the image must have. The image is then pulled by this digest, whatever the tag in the
        registry points at, and an image that is present is compared with it.
      - It is compared with the digests that registries gave to the image and with the image's id. An archive carries
        no registry's digest, so pin the image's id there (C(docker images --no-trunc)), which covers every layer.
    type: str
    default: ""
  registry_username:
    description:
      - User at the registry. Without it, the engine's user's C(~/.docker/config.json) counts.
    type: str
    default: ""
  registry_password:
    description:
      - Password or token at the registry.
    type: str
    default: ""
  registry_ca:
    description:
      - Text of the CA certificates that signed the registry's. With O(source=pull) and an engine of this host they are
        written below O(certificates_dir), where the engine reads them at each pull. Empty leaves what is there.
    type: str
    default: ""
  certificates_dir:
    description:
      - Folder in which the engine looks for the certificates of each registry.
    type: path
    default: /etc/docker/certs.d
  retries:
    description:
      - Further attempts at a pull after the first.
    type: int
    default: 3
  backoff:
    description:
      - Seconds before the first further attempt; doubled before each next one.
    type: float
    default: 5
  stall_timeout:
    description:
      - Seconds without any sign of progress after which a pull is given up.
    type: float
    default: 900
  timeout:
    description:
      - Seconds for the whole of a pull, further attempts included; 0 for no deadline.
    type: float
    default: 7200
  force_pull:
    description:
      - Ask the registry, or load the archive, even though the image is on the host.
    type: bool
    default: false
extends_documentation_fragment:
  - gpufleet.vllm.common.changes
  - gpufleet.vllm.common.docker
  - gpufleet.vllm.common.progress
"""

EXAMPLES = r"""
- name: Pull the recipe's image and name it for deployment
  gpufleet.vllm.vllm_image:
    reference: vllm/vllm-openai:v0.12.0
    tag: vllm/vllm-openai:deploy
    platform: linux/amd64

- name: Load it on a host without a way out
  gpufleet.vllm.vllm_image:
    reference: vllm/vllm-openai:v0.12.0
    tag: vllm/vllm-openai:deploy
    source: archive
    archive: /srv/images/vllm-openai-v0.12.0.tar

- name: Accept only one build of an image that is already there
  gpufleet.vllm.vllm_image:
    reference: registry.example.com/vllm-openai:v0.12.0
    tag: vllm/vllm-openai:deploy
    source: present
    digest: sha256:6e2c1b2f5d0f2f8a6c6f1f0f7f6f0b6b1f1f3a7f1f0c5e9d8b7a6f5e4d3c2b1a
"""

RETURN = r"""
reference:
  description: The image asked for.
  returned: success
  type: str
  sample: vllm/vllm-openai:v0.12.0
tag:
  description: The further name it has on the host.
  returned: success
  type: str
  sample: vllm/vllm-openai:deploy
source:
  description: The option O(source).
  returned: success
  type: str
  sample: pull
image_id:
  description: Id of the image on the host; empty in check mode where it is not known yet.
  returned: success
  type: str
  sample: sha256:1700a9d57cad0938eb418d756e13be5662b36bb4104839eb942b3fbae130e5e4
digest:
  description: The digest under which the registry knows the image; empty when it came from no registry.
  returned: success
  type: str
  sample: sha256:ac6971e9f63d71be65ece659b40613cc7c66402b6664db6d14d8a40863ba62fb
platform:
  description: The image's platform.
  returned: success
  type: str
  sample: linux/amd64
architecture:
  description: The image's architecture, in Docker's words.
  returned: success
  type: str
  sample: amd64
size:
  description: Bytes that the image takes on the host's disk.
  returned: success
  type: int
  sample: 29480000000
created:
  description: When the image was made.
  returned: success
  type: str
  sample: "2025-12-03T05:12:13Z"
labels:
  description: The image's labels.
  returned: success
  type: dict
  sample: {}
entrypoint:
  description: The image's entry point.
  returned: success
  type: list
  elements: str
  sample: [vllm, serve]
vllm_version:
  description: Version of vLLM by the image's labels, its environment or else its tag; empty if none of them tells.
  returned: success
  type: str
  sample: 0.12.0
actions:
  description: What was done, or would be done in check mode, and why.
  returned: success
  type: list
  elements: str
  sample: ["pull vllm/vllm-openai:v0.12.0: not on this host", "tag vllm/vllm-openai:deploy"]
transfer:
  description: What the pull or the load took; zeros when there was none.
  returned: success
  type: dict
  contains:
    layers:
      description: Layers that the registry named.
      type: int
    bytes:
      description: Bytes downloaded (compressed), or bytes of the archive.
      type: int
    seconds:
      description: Seconds from the first request to the last layer unpacked.
      type: float
    attempts:
      description: Attempts made.
      type: int
  sample: {"layers": 23, "bytes": 8912345678, "seconds": 75.2, "attempts": 1}
phases:
  description: The phases that the work went through and how many seconds each took.
  returned: success
  type: list
  elements: dict
  sample: [{"name": "pulling image", "seconds": 75.2}]
error:
  description:
    - The failure in parts, C(name), C(message), C(remedy), C(evidence) (what the engine said) and C(details).
    - Names are V(image-not-found), V(registry-unauthorized), V(registry-unreachable), V(registry-untrusted),
      V(rate-limited), V(platform-missing), V(disk-full), V(digest-mismatch), V(archive-missing), V(archive-invalid),
      V(image-missing), V(pull-stalled), V(pull-failed), V(reference-invalid), V(digest-invalid), V(platform-invalid),
      V(engine-not-running) and V(engine-error).
  returned: failure
  type: dict
"""

from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.module import (
    DOCKER_ARGUMENTS,
    PROGRESS_ARGUMENTS,
    GpufleetModule,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.progress import Progress
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.client import connect
from ansible_collections.gpufleet.vllm.plugins.module_utils.images.ensure import ensure_image
from ansible_collections.gpufleet.vllm.plugins.module_utils.images.local import remove_names
from ansible_collections.gpufleet.vllm.plugins.module_utils.images.reference import (
    ImageWish,
    normalize_platform,
    registry_of,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.images.trust import CERTIFICATES, trust

ARGUMENTS: dict[str, Any] = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "reference": {"type": "str", "required": True},
    "tag": {"type": "str", "default": ""},
    "platform": {"type": "str", "default": "linux/amd64"},
    "source": {"type": "str", "choices": ["pull", "archive", "present"], "default": "pull"},
    "archive": {"type": "path"},
    "digest": {"type": "str", "default": ""},
    "registry_username": {"type": "str", "default": ""},
    "registry_password": {"type": "str", "default": "", "no_log": True},
    "registry_ca": {"type": "str", "default": ""},
    "certificates_dir": {"type": "path", "default": CERTIFICATES},
    "retries": {"type": "int", "default": 3},
    "backoff": {"type": "float", "default": 5},
    "stall_timeout": {"type": "float", "default": 900},
    "timeout": {"type": "float", "default": 7200},
    "force_pull": {"type": "bool", "default": False},
    **DOCKER_ARGUMENTS,
    **PROGRESS_ARGUMENTS,
}


def work(module: GpufleetModule) -> dict[str, Any]:
    """Pull or load the image, and return the module's result."""
    params = module.params
    wish = ImageWish(
        reference=params["reference"],
        tag=params["tag"],
        platform=normalize_platform(params["platform"]),
        source=params["source"],
        archive=params["archive"] or "",
        digest=params["digest"],
        username=params["registry_username"],
        password=params["registry_password"],
        retries=params["retries"],
        backoff=params["backoff"],
        force=params["force_pull"],
        stall_timeout=params["stall_timeout"],
        timeout=params["timeout"],
    )
    progress = Progress(params["progress_file"])
    engine = connect(params["docker_host"], params["docker_timeout"])
    if params["state"] == "absent":
        return remove_names(engine, [params["reference"], params["tag"]], check_mode=module.check_mode)
    trusts = (
        wish.source == "pull"
        and params["docker_host"].startswith("unix:")
        and trust(params["reference"], params["registry_ca"], params["certificates_dir"], check_mode=module.check_mode)
    )
    result = ensure_image(engine, wish, check_mode=module.check_mode, progress=progress)
    if trusts:
        result["changed"] = True
        result["actions"].insert(0, f"trust {registry_of(params['reference'])}: {trusts}")
    result["phases"] = progress.finish()
    if not module._diff:
        del result["diff"]
    return result


def main() -> None:
    """Run the module."""
    module = GpufleetModule(
        argument_spec=ARGUMENTS, supports_check_mode=True, required_if=[("source", "archive", ["archive"])]
    )
    module.require("docker", "requests")
    module.run(lambda: work(module))


if __name__ == "__main__":
    main()
