# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module host_info: see DOCUMENTATION."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_info
version_added: 0.1.0
short_description: Tell in one trip what a host is and has
description:
  - Returns what the roles of this collection need to know before they change anything, so that a host that already
    has everything costs one module run.
  - Needs no library beyond the system's Python and starts no container. Over the network it asks the Docker engine, and
    the registry and the hub only where O(registry) and O(hub) say so and what they have is not on the host yet.
  - The parts are independent. One that cannot be told is V(null), and RV(errors) says why; the module does not fail.
  - GPUs are the part of M(gpufleet.vllm.gpu_info).
author:
  - gpufleet contributors (@gpufleet)
extends_documentation_fragment:
  - gpufleet.vllm.common.reads
options:
  docker_host:
    description:
      - Address of the Docker engine, C(unix:///...) or C(tcp://host:port) without TLS.
    type: str
    default: unix:///var/run/docker.sock
  venv:
    description:
      - Folder of the virtual environment to look at. Without it RV(venv) is V(null).
    type: path
  requirements:
    description:
      - What O(venv) must hold, as pip takes it, such as V(docker==7.1.0).
      - Understood are names, extras (ignored) and the comparisons C(==), C(!=), C(>=), C(<=), C(>) and C(<).
        Anything else counts as missing, so that pip judges it.
    type: list
    elements: str
    default: []
  paths:
    description:
      - Folders, existing or not, whose free room is asked for.
    type: list
    elements: path
    default: []
  ports:
    description:
      - TCP ports to look at on O(host).
    type: list
    elements: int
    default: []
  host:
    description:
      - Address on which O(ports) are wanted.
    type: str
    default: 127.0.0.1
  programs:
    description:
      - Programs to look for.
    type: list
    elements: str
    default: []
  model_path:
    description:
      - Folder of a model to look at, or of its repository in the Hugging Face cache. Without it RV(model) is V(null).
    type: path
  hub_model:
    description:
      - Name of a model whose configuration and sizes of files are read at the hub when O(model_path) has none. Empty
        asks nothing; the roles ask from the controller, and leave it to the hosts where the controller gets no answer.
      - Uses O(hub_proxy), O(hub_no_proxy) and O(hub_ca_bundle).
    type: str
    default: ""
  hub_revision:
    description:
      - Branch, tag or commit of O(hub_model).
    type: str
    default: main
  hub_endpoint:
    description:
      - Address of the hub for O(hub_model), or of a mirror of it.
    type: str
    default: https://huggingface.co
  hf_token:
    description:
      - Token of somebody who may read O(hub_model).
    type: str
    default: ""
  image_reference:
    description:
      - Name of an image that the engine is asked for. Empty asks for none, and RV(image) is V(null).
    type: str
    default: ""
  image_alternatives:
    description:
      - Names of further images that the engine is asked for, of which one may be wanted in place of
        O(image_reference), which is known once somebody has asked the GPUs.
    type: list
    elements: str
    default: []
  weights_paths:
    description:
      - Folders of models, or of their repositories in the Hugging Face cache, whose weights may be there already.
    type: list
    elements: path
    default: []
  registry:
    description:
      - Name of an image that its registry, or a mirror of it, must give to the engine. The registry is asked for the
        image's manifest with the engine's own proxies and certificates, and only when neither O(image_reference) nor
        one of O(image_alternatives) is on the host. Empty asks none.
    type: str
    default: ""
  registry_username:
    description:
      - User at the registry of O(registry). Without one, what C(docker login) left in the C(~/.docker/config.json) of
        the user that the module works as counts, as it does for the pull.
    type: str
    default: ""
  registry_password:
    description:
      - Password or token of O(registry_username).
    type: str
    default: ""
  registry_ca:
    description:
      - Text of the CA certificates that signed the registry's, as the engine is about to get them.
    type: str
    default: ""
  registry_proxy:
    description:
      - Proxy that the engine is about to get, if any, to reach O(registry) by.
    type: str
    default: ""
  registry_no_proxy:
    description:
      - Hosts that it will reach without O(registry_proxy).
    type: str
    default: ""
  registry_mirrors:
    description:
      - Mirrors of Docker Hub that the engine is about to get.
    type: list
    elements: str
    default: []
  insecure_registries:
    description:
      - Registries and networks without a trusted certificate that the engine is about to accept.
    type: list
    elements: str
    default: []
  hub:
    description:
      - Address at the model hub that a server must be able to reach. It is asked only when no entry of RV(weights) is
        complete. Empty asks none.
    type: str
    default: ""
  package_index:
    description:
      - Address of the package index that the libraries come from, which is asked where O(requirements) lack something
        in O(venv). Empty asks none.
    type: str
    default: ""
  package_index_user:
    description:
      - User and password that it is told, as V(name:password).
    type: str
    default: ""
  package_index_proxy:
    description:
      - Proxy by which it is reached.
    type: str
    default: ""
  hub_proxy:
    description:
      - Proxy by which O(hub) is reached; a server knows only the one that its environment names.
    type: str
    default: ""
  hub_no_proxy:
    description:
      - Hosts that are reached without O(hub_proxy), as in the variable C(no_proxy).
    type: str
    default: ""
  hub_ca_bundle:
    description:
      - File with further CA certificates to trust at O(hub). By default the one that pip is configured to use.
    type: str
    default: ""
  asked_at:
    description:
      - The asker's time in seconds of the epoch, to compare the host's clock with.
    type: float
"""

EXAMPLES = r"""
- name: See whether this host is ready
  gpufleet.vllm.host_info:
    venv: /var/lib/gpufleet/venv
    requirements:
      - docker==7.1.0
      - nvidia-ml-py>=12.560
    paths:
      - /var/lib/docker
      - /var/lib/gpufleet
    ports:
      - 8000
  register: host

- name: Say who holds the port
  ansible.builtin.debug:
    msg: "{{ host.ports | rejectattr('free') | rejectattr('ours') }}"
"""

RETURN = r"""
system:
  description:
    - Architecture, Docker's name of the platform, kernel, distribution, init system (V(systemd) or the name of
      process 1), effective user id and the Python that ran this module.
  type: dict
  returned: always
  sample:
    architecture: x86_64
    platform: linux/amd64
    kernel: 6.1.0-31-amd64
    operating_system: Linux
    distribution: {id: debian, version_id: "12", codename: bookworm, like: [], name: Debian GNU/Linux 12 (bookworm)}
    init: systemd
    euid: 0
    python: {executable: /usr/bin/python3, version: 3.11.2, makes_environments: true}
cpu:
  description: Number of usable processors, their model, and those instruction sets that matter to vLLM's CPU build.
  type: dict
  returned: always
  sample: {count: 16, model: Intel(R) Xeon(R) Platinum 8480C, flags: [avx, avx2, avx512f, amx_bf16]}
memory:
  description: Total and available memory in MiB.
  type: dict
  returned: always
  sample: {total_mib: 2063937, available_mib: 2011223}
shm:
  description: Size and free room of /dev/shm in MiB.
  type: dict
  returned: always
  sample: {total_mib: 1031968, free_mib: 1031968}
clock:
  description:
    - Whether the clock is synchronised (V(null) when the kernel does not tell) and the host's time as epoch.
    - C(ahead_seconds) is how much it is ahead of O(asked_at), the question's way to the host included.
  type: dict
  returned: always
  sample: {synchronised: true, epoch: 1795354125.127, ahead_seconds: 0.412}
proxies:
  description: Names of the proxy variables that are set, without their values.
  type: list
  elements: str
  returned: always
  sample: [https_proxy, no_proxy]
ca_bundle:
  description: The CA bundle that pip is configured to use, and where that is configured; V(null) when none is.
  type: dict
  returned: always
  sample: {path: /etc/ssl/certs/ca-certificates.crt, source: /etc/pip.conf}
venv:
  description: Whether O(venv) can be used, what is installed in it and whether O(requirements) are met.
  type: dict
  returned: always
  sample:
    path: /var/lib/gpufleet/venv
    exists: true
    reason: ""
    python: /var/lib/gpufleet/venv/bin/python
    python_version: 3.11.2
    distributions: {docker: 7.1.0}
    missing: []
    satisfied: true
engine:
  description:
    - Whether a Docker engine answers at O(docker_host) (C(running), else C(reason)), its facts and all its containers.
    - A container is C(ours) when it carries the label of this collection.
    - C(image_dir) is the folder that images are kept in, or would be; V(null) for an engine on another host.
    - C(kind) is V(docker), V(snap) (Docker's snap) or V(podman), C(rootless) whether it runs without root, and
      C(config_path) the file that its daemon reads, empty where that is not known.
    - C(own_proxies) says whether this collection gave it proxies.
  type: dict
  returned: always
  sample:
    running: true
    reason: ""
    docker_host: unix:///var/run/docker.sock
    dockerd: /usr/bin/dockerd
    version: 28.1.1
    api_version: "1.49"
    os: linux
    architecture: amd64
    root_dir: /var/lib/docker
    storage_driver: overlay2
    cgroup_driver: systemd
    runtimes: [nvidia, runc]
    default_runtime: runc
    cdi_spec_dirs: [/etc/cdi, /var/run/cdi]
    image_dir: /var/lib/docker
    kind: docker
    rootless: false
    config_path: /etc/docker/daemon.json
    own_proxies: false
    containers:
      - id: 0a1b2c
        name: vllm-0
        state: running
        image: vllm/vllm-openai:deploy
        ours: true
        replica: vllm-0
        ports: [{host: 127.0.0.1, port: 8000}]
daemon_config:
  description:
    - State of /etc/docker/daemon.json. An absent file is valid.
    - C(content) has the values of those keys that hold no secret, C(key_names) names them all.
  type: dict
  returned: always
  sample:
    path: /etc/docker/daemon.json
    exists: true
    valid: true
    error: ""
    key_names: [runtimes]
    content: {runtimes: {nvidia: {path: nvidia-container-runtime, args: []}}}
nvidia:
  description:
    - What there is of NVIDIA's devices, driver and tools, without asking the driver.
    - A tool's C(path) is V(null) when it is not installed.
    - C(device_files_unlinked) have no link in /dev/char, by which systemd finds them. With C(docker_predates_toolkit)
      the engine started before the toolkit was installed, and does not know C(--gpus).
  type: dict
  returned: always
  sample:
    pci_devices: ["0000:1b:00.0"]
    nvswitches: 4
    kernel_module: {version: "580.159.04", open: true}
    cards:
      - {pci_bus_id: "0000:1b:00.0", name: NVIDIA H200, uuid: GPU-6a2f1c1e-0d0c-4f9a-9b37-0f6b2f1f0c11}
    device_files: [nvidia-uvm, nvidia0, nvidiactl]
    device_files_unlinked: []
    cdi_specs: []
    container_toolkit: {path: /usr/bin/nvidia-ctk, version: 1.18.0}
    docker_predates_toolkit: false
    fabric_manager: {path: /usr/bin/nv-fabricmanager, version: "580.159.04", running: true}
    persistence_daemon: {running: true}
boot:
  description:
    - What systemd starts at boot, V(null) where there is no systemd.
    - C(units) has the state of units in systemd's words, empty for one that is not there. C(files) has the SHA-256 of
      the files that the role P(gpufleet.vllm.vllm#role) writes for it, empty for one that is not there.
  type: dict
  returned: always
  sample:
    units:
      docker.service: enabled
      nvidia-fabricmanager.service: ""
      nvidia-persistenced.service: enabled
      gpufleet-device-files.service: enabled
      gpufleet-start-servers.timer: enabled
    files:
      /usr/local/sbin/gpufleet-start-servers: 5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03
programs:
  description: For each of O(programs), where it is; V(null) when it is not installed.
  type: dict
  returned: always
  sample: {debootstrap: /usr/sbin/debootstrap}
disks:
  description:
    - For each of O(paths), and for the folder of the engine's images, the file system that holds it, or would.
    - Paths with the same C(device_number) share their room.
  type: dict
  returned: always
  sample:
    /var/lib/docker:
      existing: /var/lib
      mount: /
      device: /dev/nvme0n1p2
      device_number: 66306
      filesystem: ext4
      total_bytes: 1967317549056
      free_bytes: 1726339723264
      writable: true
address_available:
  description: Whether this host can listen on O(host).
  type: bool
  returned: always
  sample: true
ports:
  description:
    - For each of O(ports), whether it is free on O(host), and who holds it as far as that can be seen.
    - C(ours) is true when a container of this collection holds it. Other users' processes are seen by root only.
  type: list
  elements: dict
  returned: always
  sample: [{port: 8000, free: false, ours: true, container: vllm-0, pid: 4242, process: docker-proxy}]
model:
  description:
    - What O(model_path) holds, or what the hub tells of O(hub_model); C(at_hub) is there then, its commit. C(config) is
      config.json, or params.json of Mistral's own format, and C(quantization) hf_quant_config.json.
    - C(sentence_length) is the length of requests that sentence-transformers' file of a model for embeddings allows.
    - C(missing_files) are named by the index of the weights but not there; C(cut_files) are shorter than they say;
      C(pointers) are what git leaves where git-lfs has not fetched the file.
    - C(complete) is true when there is a configuration and weights, and none of them is missing, cut or a pointer.
  type: dict
  returned: always
  sample:
    path: /srv/models/scout-fp8
    exists: true
    config: {architectures: [Llama4ForConditionalGeneration]}
    config_error: ""
    quantization: null
    sentence_length: null
    tokenizer: true
    safetensors: [{name: model-00001-of-00002.safetensors, size: 4987202208}]
    total_bytes: 4987202208
    index_total_bytes: 9974404416
    missing_files: [model-00002-of-00002.safetensors]
    cut_files: []
    pointers: []
    complete: false
    at_hub: ""
weights:
  description:
    - What is there in each folder of O(weights_paths), in the words of RV(model).
    - C(other_formats) is true when there are weights of which it is not known here whether they are complete.
  type: list
  elements: dict
  returned: always
  sample:
    - folder: /var/lib/gpufleet/huggingface/hub/models--org--name
      path: /var/lib/gpufleet/huggingface/hub/models--org--name/snapshots/0a1b
      exists: true
      complete: true
      total_bytes: 114413871104
      other_formats: false
image:
  description:
    - The image O(image_reference), V(null) when the engine has none of that name or does not run.
    - C(environment) has those of its variables that say which driver it needs.
  type: dict
  returned: always
  sample:
    id: sha256:25fc155b597f
    size_bytes: 29812416512
    platform: linux/amd64
    environment: {CUDA_VERSION: 12.9.1, NVIDIA_REQUIRE_CUDA: cuda>=12.9}
image_alternatives:
  description:
    - Those of O(image_alternatives) that the engine has, by their names, each like RV(image).
  type: dict
  returned: always
  sample: {}
reach:
  description:
    - How C(registry), C(hub) and C(package_index) answered, as far as they were asked. C(cause) of one that is not
      C(reachable) is V(dns), V(refused), V(timeout), V(certificate), V(proxy), V(unavailable) or V(failed).
  type: dict
  returned: always
  sample:
    registry:
      url: https://registry-1.docker.io/v2/vllm/vllm-openai/manifests/v0.26.0
      reachable: true
      status: 200
      cause: ""
      reason: ""
      proxied: false
errors:
  description: Why a part is V(null), by the name of the part.
  type: dict
  returned: always
  sample: {}
"""

from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.module import GpufleetModule
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.probe import Questions, probe

ARGUMENTS: dict[str, Any] = {
    "docker_host": {"type": "str", "default": "unix:///var/run/docker.sock"},
    "venv": {"type": "path"},
    "requirements": {"type": "list", "elements": "str", "default": []},
    "paths": {"type": "list", "elements": "path", "default": []},
    "ports": {"type": "list", "elements": "int", "default": []},
    "host": {"type": "str", "default": "127.0.0.1"},
    "programs": {"type": "list", "elements": "str", "default": []},
    "model_path": {"type": "path"},
    "image_reference": {"type": "str", "default": ""},
    "image_alternatives": {"type": "list", "elements": "str", "default": []},
    "weights_paths": {"type": "list", "elements": "path", "default": []},
    "registry": {"type": "str", "default": ""},
    "registry_username": {"type": "str", "default": ""},
    "registry_password": {"type": "str", "default": "", "no_log": True},
    "registry_ca": {"type": "str", "default": ""},
    "registry_proxy": {"type": "str", "default": "", "no_log": True},
    "registry_no_proxy": {"type": "str", "default": ""},
    "registry_mirrors": {"type": "list", "elements": "str", "default": []},
    "insecure_registries": {"type": "list", "elements": "str", "default": []},
    "package_index": {"type": "str", "default": ""},
    "package_index_user": {"type": "str", "default": "", "no_log": True},
    "package_index_proxy": {"type": "str", "default": "", "no_log": True},
    "hub": {"type": "str", "default": ""},
    "hub_proxy": {"type": "str", "default": "", "no_log": True},
    "hub_no_proxy": {"type": "str", "default": ""},
    "hub_ca_bundle": {"type": "str", "default": ""},
    "hub_model": {"type": "str", "default": ""},
    "hub_revision": {"type": "str", "default": "main"},
    "hub_endpoint": {"type": "str", "default": "https://huggingface.co"},
    "hf_token": {"type": "str", "default": "", "no_log": True},
    "asked_at": {"type": "float"},
}


def main() -> None:
    """Run the module."""
    module = GpufleetModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    module.exit_json(changed=False, **probe(Questions(**module.params)))


if __name__ == "__main__":
    main()
