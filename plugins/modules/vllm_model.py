# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Download the weights of a hub model to a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_model
short_description: Download the weights of a hub model to a host
version_added: 0.1.0
author: gpufleet contributors (@gpufleet)
description:
  - Fetches what vLLM will take of a model from the hub into the Hugging Face cache that the server mounts, beside
    whatever serves, so that a server which is started or replaced finds it there. What the hub refuses (a gated model,
    a wrong name), a disk that is too small and a broken connection are known before any server is touched.
  - The serving image's own huggingface_hub does so, in a container without GPUs that is removed afterwards, with the
    server's cache, mounts, network, certificates, proxies and token.
  - Only the files that the image's vLLM takes are fetched, those that the index of the safetensors names or else those
    of the first format that the repository has, and configuration, tokenizer, templates and code. With C(load-format)
    V(dummy) no weights are fetched.
  - The draft model of a C(speculative-config) and the repositories of a C(tokenizer) and an C(hf-config-path) are
    fetched, too.
  - Needed and free room are compared before anything is fetched. A broken connection, a time-out, an answer 5xx or
    429 is tried again with growing pauses. Files that are complete are kept, so a further attempt, or a further run,
    goes on there.
  - A model that the cache holds completely is left alone, and neither the hub is asked nor a container started. A
    branch that has moved on at the hub is not noticed then; C(revision) in O(config) names a commit.
options:
  model:
    description:
      - Name of the model at the hub.
    type: str
    required: true
  config:
    description:
      - Options of C(vllm serve) by which the files are chosen, as a replica of the plan has them, C(revision),
        C(load-format), C(ignore-patterns), C(tokenizer), C(tokenizer-revision), C(hf-config-path),
        C(skip-tokenizer-init) and C(speculative-config). Others are ignored.
      - With C(download-dir) the weights are left to the server, and a warning says so.
    type: dict
    default: {}
  image:
    description:
      - The image in which huggingface_hub runs, the one that will serve.
    type: str
    required: true
  hf_home:
    description:
      - Folder on the host with the Hugging Face cache. What was fetched is noted below C(gpufleet) in it.
      - Where an entry of O(volumes), or C(HF_HOME) or C(HF_HUB_CACHE) in O(environment), has the server's cache
        elsewhere on the host, the weights are looked for and fetched there. Where that is no folder of the host they
        are left to the server, and a warning says why.
    type: path
    default: /var/lib/gpufleet/huggingface
  environment:
    description:
      - Variables of the server, such as C(HF_ENDPOINT) and C(HTTPS_PROXY).
    type: dict
    default: {}
  secrets:
    description:
      - Variables that must not be seen, such as C(HF_TOKEN). They reach the container's environment only.
    type: dict
    default: {}
  volumes:
    description:
      - Further mounts of the server, as C(docker run --volume) takes them.
    type: list
    elements: str
    default: []
  ca_bundle:
    description:
      - File on the host with certificate authorities.
    type: str
    default: ""
  network_mode:
    description:
      - Network of the container, as the server's.
    type: str
    choices: [bridge, host]
    default: bridge
  container_prefix:
    description:
      - What the container's name begins with.
    type: str
    default: vllm
  offline:
    description:
      - Do not ask the hub; what the cache lacks is an error then. C(HF_HUB_OFFLINE) in O(environment) means the same.
      - A repository that somebody has copied into the cache is taken for whole unless its own files show that it is
        not.
    type: bool
    default: false
  retries:
    description:
      - Further attempts after a failure that may pass, counted anew whenever bytes came.
    type: int
    default: 5
  backoff:
    description:
      - Seconds before the first further attempt; doubled before each next one, up to 300.
    type: float
    default: 5
  stall_timeout:
    description:
      - Seconds without a further byte after which the download is given up; 0 for never.
    type: float
    default: 900
  timeout:
    description:
      - Seconds for the whole download; 0 for no deadline.
    type: float
    default: 14400
  lock_timeout:
    description:
      - Seconds to wait for another run that fetches into O(hf_home), such as one whose play was interrupted, or one of
        another host with which the folder is shared. Progress tells who is waited for. What the other run has fetched
        is not fetched again.
      - V(0) does not wait. V(-1) waits as long as O(timeout) lets the download take.
    type: int
    default: 0
  probed:
    description:
      - What M(gpufleet.vllm.host_info) found in the folders of models, its RV(gpufleet.vllm.host_info#module:weights).
        Where that shows that nothing is to be fetched, the task is skipped and the host is not asked. Read by the
        action plugin alone.
    type: list
    elements: dict
    default: []
extends_documentation_fragment:
  - gpufleet.vllm.common.changes
  - gpufleet.vllm.common.docker
  - gpufleet.vllm.common.progress
"""

EXAMPLES = r"""
- name: Have Scout's weights on the host while another model serves
  gpufleet.vllm.vllm_model:
    model: nvidia/Llama-4-Scout-17B-16E-Instruct-FP8
    image: vllm/vllm-openai:v0.12.0
    secrets:
      HF_TOKEN: "{{ vllm_hf_token }}"

- name: Say how much a certain revision of a model would take
  gpufleet.vllm.vllm_model:
    model: nvidia/Llama-4-Scout-17B-16E-Instruct-FP8
    config:
      revision: v1.1
    image: vllm/vllm-openai:v0.12.0
    environment:
      HF_ENDPOINT: https://hub.example.com
  check_mode: true
"""

RETURN = r"""
models:
  description: The repositories and what the cache lacked of them before.
  returned: success
  type: list
  elements: dict
  contains:
    repository:
      description: Its name.
      type: str
    revision:
      description: The branch, tag or commit asked for.
      type: str
    commit:
      description: The commit that it is; empty where the hub was not asked and the cache does not know it.
      type: str
    files:
      description: Number of files that are wanted; 0 where the hub was not asked.
      type: int
    bytes:
      description: Bytes of all wanted files; 0 where the hub was not asked.
      type: int
    missing_files:
      description: The files that were missing; where the hub was not asked, what was.
      type: list
      elements: str
    missing_bytes:
      description: The bytes that were missing.
      type: int
  sample:
    - repository: nvidia/Llama-4-Scout-17B-16E-Instruct-FP8
      revision: main
      commit: 4b9e5ec28ddb3a2d4ba0cb7e4a3ff3a1e4b5c5e6
      files: 33
      bytes: 109860012345
      missing_files: []
      missing_bytes: 0
phases:
  description: The phases that the work went through and how many seconds each took.
  returned: success
  type: list
  elements: dict
  sample: [{"name": "weights of nvidia/Llama-4-Scout-17B-16E-Instruct-FP8", "seconds": 512.4}]
error:
  description:
    - The failure in parts, C(name), C(message), C(remedy), C(evidence) and C(details).
    - Names are V(model-gated), V(model-not-found), V(revision-not-found), V(hub-refused), V(hub-rate-limit),
      V(hub-unreachable), V(name-not-resolved), V(certificate-not-trusted), V(disk-full), V(permission-denied),
      V(storage-failed), V(folder-not-writable), V(too-many-open-files), V(host-out-of-memory), V(weights-missing),
      V(python-package-missing), V(download-stalled), V(download-too-slow), V(download-failed), V(secret-invalid),
      V(image-missing), V(busy), V(name-taken), V(interrupted), V(write-failed), V(engine-not-running) and
      V(engine-error).
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
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.secret_names import split_secrets
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.client import connect
from ansible_collections.gpufleet.vllm.plugins.module_utils.images.local import resolve_image
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.cached import left_to_the_server
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.download import ensure_weights
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.surroundings import Surroundings, lock_timeout
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.wants import wants_of

ARGUMENTS: dict[str, Any] = {
    "model": {"type": "str", "required": True},
    "config": {"type": "dict", "default": {}},
    "image": {"type": "str", "required": True},
    "hf_home": {"type": "path", "default": "/var/lib/gpufleet/huggingface"},
    "environment": {"type": "dict", "default": {}},
    "secrets": {"type": "dict", "default": {}, "no_log": True},
    "volumes": {"type": "list", "elements": "str", "default": []},
    "ca_bundle": {"type": "str", "default": ""},
    "network_mode": {"type": "str", "choices": ["bridge", "host"], "default": "bridge"},
    "container_prefix": {"type": "str", "default": "vllm"},
    "offline": {"type": "bool", "default": False},
    "retries": {"type": "int", "default": 5},
    "backoff": {"type": "float", "default": 5},
    "stall_timeout": {"type": "float", "default": 900},
    "timeout": {"type": "float", "default": 14400},
    "lock_timeout": {"type": "int", "default": 0},
    "probed": {"type": "list", "elements": "dict", "default": []},
    **DOCKER_ARGUMENTS,
    **PROGRESS_ARGUMENTS,
}
SHARED = (
    "hf_home",
    "volumes",
    "ca_bundle",
    "network_mode",
    "offline",
    "retries",
    "backoff",
    "stall_timeout",
    "timeout",
)


def work(module: GpufleetModule) -> dict[str, Any]:
    """Fetch the weights, and return the module's result."""
    params = module.params
    texts = [{str(name): str(value) for name, value in params[key].items()} for key in ("environment", "secrets")]
    environment, secrets = split_secrets(*texts)
    around = Surroundings(
        image=params["image"],
        environment=environment,
        secrets=secrets,
        prefix=params["container_prefix"],
        lock_timeout=lock_timeout(params["lock_timeout"], params["timeout"]),
        **{name: params[name] for name in SHARED},
    )
    skipped = left_to_the_server(params["config"], {**environment, **secrets}, around.cache)
    if skipped:
        module.warn(f"The weights of {params['model']} are left to the server's own start: {skipped}.")
        return {"changed": False, "models": [], "phases": []}
    progress = Progress(params["progress_file"])

    def client() -> Any:
        engine = connect(params["docker_host"], params["docker_timeout"])
        image = resolve_image(engine, params["image"], missing_ok=module.check_mode)
        return engine if image.id.startswith("sha256:") else None

    result = ensure_weights(
        client, wants_of(params["model"], params["config"]), around, check=module.check_mode, progress=progress
    )
    result["phases"] = progress.finish()
    if not module._diff:
        del result["diff"]
    return result


def main() -> None:
    """Run the module."""
    module = GpufleetModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    module.require("docker", "requests")
    module.run(lambda: work(module))


if __name__ == "__main__":
    main()
