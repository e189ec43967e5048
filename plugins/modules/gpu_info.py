# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module gpu_info: see DOCUMENTATION."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_info
version_added: 0.1.0
short_description: Tell what NVIDIA GPUs a host has and how they are
description:
  - Asks the NVIDIA driver through NVML, with the Python library C(nvidia-ml-py); parses no output of nvidia-smi.
  - A host without library, driver or GPU, or with a GPU that fell off the bus, is an answer and not a failure.
    RV(state) names the case, RV(reason) explains it and RV(remedy) says what fixes it.
  - What a card or driver does not support is V(null).
author:
  - gpufleet contributors (@gpufleet)
extends_documentation_fragment:
  - gpufleet.vllm.common.reads
options:
  required:
    description:
      - Fail unless RV(state) is V(ok). The result is returned all the same.
    type: bool
    default: false
requirements:
  - nvidia-ml-py >= 12.560 (Python library pynvml)
"""

EXAMPLES = r"""
- name: See the GPUs of this host
  gpufleet.vllm.gpu_info:
  register: gpus

- name: Stop unless every GPU of this host can be used
  gpufleet.vllm.gpu_info:
    required: true
"""

RETURN = r"""
state:
  description:
    - V(ok) when every GPU answers, V(degraded) when one of them or NVML itself does not.
    - V(no-library), V(no-driver), V(driver-mismatch), V(no-device) or V(insufficient-permissions) when none can be
      asked.
  type: str
  returned: always
  sample: ok
reason:
  description: Why RV(state) is not V(ok), for a person. Empty when it is.
  type: str
  returned: always
  sample: ""
remedy:
  description: What to do about RV(reason). Empty when RV(state) is V(ok).
  type: str
  returned: always
  sample: ""
driver_version:
  description: Version of the driver.
  type: str
  returned: always
  sample: 580.159.04
cuda_driver_version:
  description: Newest CUDA version that the driver runs.
  type: str
  returned: always
  sample: "13.0"
kernel_module:
  description: Version of the loaded kernel module, and whether it is the open one; V(null) when none is loaded.
  type: dict
  returned: always
  sample: {"version": "580.159.04", "open": true}
pci_devices:
  description: PCI bus ids of the NVIDIA GPUs that the kernel sees, with or without a driver.
  type: list
  elements: str
  returned: always
  sample: ["0000:1b:00.0"]
gpus:
  description: The GPUs, in the driver's order. Every key is always there.
  type: list
  elements: dict
  returned: always
  contains:
    index:
      description: The driver's number of this GPU, in the order of the PCI bus.
      type: int
      sample: 0
    uuid:
      description: The GPU's own lasting identifier.
      type: str
      sample: GPU-6a2f1c1e-0d0c-4f9a-9b37-0f6b2f1f0c11
    pci_bus_id:
      description: Address on the PCI bus.
      type: str
      sample: 00000000:1b:00.0
    name:
      description: Name of the product.
      type: str
      sample: NVIDIA H200
    compute_capability:
      description: Compute capability as CUDA writes it.
      type: str
      sample: "9.0"
    architecture:
      description: Name of the architecture, in lower case.
      type: str
      sample: hopper
    memory_total_mib:
      description: Memory of the card in MiB.
      type: int
      sample: 143771
    memory_used_mib:
      description: Memory in use in MiB, without what the driver keeps for itself.
      type: int
      sample: 0
    memory_free_mib:
      description: Memory that can be allocated, in MiB.
      type: int
      sample: 143158
    memory_reserved_mib:
      description: Memory that the driver keeps for itself, in MiB.
      type: int
      sample: 612
    mig_mode:
      description: Whether the card is set to be divided into instances (MIG).
      type: bool
      sample: false
    ecc:
      description:
        - Error correction. C(mode) says whether it is on.
        - The C(volatile) counts are since the driver was loaded, the C(aggregate) ones of the card's life.
      type: dict
      sample:
        mode: true
        corrected_volatile: 0
        uncorrected_volatile: 0
        corrected_aggregate: 0
        uncorrected_aggregate: 0
    remapped_rows:
      description: Rows of memory replaced after errors; C(pending) needs a reset, C(failure) a new card.
      type: dict
      sample: {"corrected": 0, "uncorrected": 0, "pending": false, "failure": false}
    power_limit_watts:
      description: Power limit in watts.
      type: int
      sample: 700
    persistence_mode:
      description: Whether the driver keeps the card initialised while no process uses it.
      type: bool
      sample: true
    numa_node:
      description: NUMA node of the processors nearest to the card.
      type: int
      sample: 0
    nvlink:
      description:
        - C(active_links) and C(inactive_links) count the card's links.
        - C(switched) is true when links end in an NVSwitch; C(remote_gpus) are the bus ids of directly linked GPUs.
      type: dict
      sample: {"active_links": 18, "inactive_links": 0, "switched": true, "remote_gpus": []}
    fabric:
      description:
        - How far the fabric manager has brought the card into the NVLink fabric. C(state) is V(not-started),
          V(in-progress) or V(completed), and C(status) is V(success) or the fabric's error.
        - C(health) is V(healthy), V(unhealthy), V(limited-capacity), or V(null) where the driver does not tell.
      type: dict
      sample:
        state: completed
        status: success
        cluster_uuid: 00000000000000000000000000000000
        clique_id: 0
        health: healthy
    peers:
      description: Indexes of the GPUs of this host that this one reaches over NVLink, directly or through a switch.
      type: list
      elements: int
      sample: [1, 2, 3]
    processes:
      description:
        - Compute processes that hold this card's memory, with the id of their container where they run in one.
        - C(replica) names the server of this collection that a process belongs to, by the configuration that is mounted
          in it. C(supervised) is true when a container engine started the process and still looks after it.
        - Only the program's name is told, never its arguments.
      type: list
      elements: dict
      sample:
        - {"pid": 4242, "name": "python3", "used_mib": 61440, "container": "", "replica": "", "supervised": false}
    error:
      description: Why this GPU cannot be used; V(null) when it can.
      type: str
      sample: null
"""

from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.module import GpufleetModule
from ansible_collections.gpufleet.vllm.plugins.module_utils.gpus.nvml import probe

ARGUMENTS: dict[str, Any] = {"required": {"type": "bool", "default": False}}


def main() -> None:
    """Run the module."""
    module = GpufleetModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    module.require("pynvml")
    result = probe()
    if module.params["required"] and result["state"] != "ok":
        error = GpufleetError(result["reason"], name=result["state"], remedy=result["remedy"])
        module.fail_on(error, **result)
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
