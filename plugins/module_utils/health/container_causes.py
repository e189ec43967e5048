# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a line of a log may prove: causes, and those of them that concern the container and its GPUs.

Docker, the container toolkit, the driver and CUDA say these before vLLM itself runs, so what only looks at a container
needs no others; causes.py has the rest. The rank says how near to the root a line stands: an echo is what other
processes print once one has failed, and a hint is a line that good starts print too, such as an answer of the hub that
is tried again.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class Cause:
    """A cause that a line of the log proves.

    Attributes:
        name: stable identifier in kebab case.
        pattern: regular expression searched in the line, after the log's prefix is taken off.
        meaning: one sentence for people; {0}, {1} ... stand for the groups of the pattern.
        remedy: what to do, naming the variable; may hold the groups too.
        rank: how near to the root the line stands: ROOT, GENERAL, ECHO or HINT.
    """

    name: str
    pattern: str
    meaning: str
    remedy: str
    rank: int = 0


# The cause itself.
ROOT = 0
# The cause itself, in words that say only where it was refused; a line that says more goes before it.
GENERAL = 1
# Also printed when something else has failed before.
ECHO = 2
# Also printed by starts that succeed.
HINT = 3


# What the role nvidia_container_toolkit does.
DEPLOY_TOOLKIT = (
    "Run the playbook gpufleet.vllm.deploy, which installs the toolkit and has Docker know it, unless"
    " nvidia_container_toolkit_manage is false or vllm_docker_host is not the host's own socket; then do so by hand"
    " (nvidia-ctk runtime configure --runtime=docker, and restart Docker)."
)

GPU_CAUSES: tuple[Cause, ...] = (
    # Driver and container toolkit
    Cause(
        "driver-too-old",
        r"unsatisfied condition: cuda\s*>=\s*([\d.]+)",
        "The host's NVIDIA driver is too old for the image, which needs CUDA {0}.",
        "Update the driver on the host, or set vllm_version to a release built for an older CUDA.",
    ),
    Cause(
        "driver-too-old",
        r"provided PTX was compiled with an unsupported toolchain|CUDA_ERROR_UNSUPPORTED_PTX_VERSION"
        r"|CUDA_ERROR_INVALID_PTX.*unsupported",
        "The host's NVIDIA driver is older than the CUDA with which the image's kernels were compiled.",
        "Update the driver on the host, or set vllm_version to a release built for an older CUDA.",
    ),
    Cause(
        "driver-too-old",
        r"NVIDIA driver on your system is too old|CUDA driver version is insufficient for CUDA runtime version",
        "The host's NVIDIA driver is too old for the image.",
        "Update the driver on the host, or set vllm_version to a release built for an older CUDA.",
    ),
    Cause(
        "container-toolkit-missing",
        r"could not select device driver \"(?:nvidia)?\" with capabilities: \[\[gpu\]\]",
        "Docker cannot hand GPUs to containers: the NVIDIA container toolkit is not configured on the host.",
        f"{DEPLOY_TOOLKIT} A Docker that is older than the toolkit has to be restarted, which deploy does while no"
        " container runs, or with nvidia_container_toolkit_allow_restart: true. Or set vllm_gpu_access to what the host"
        " has (cdi, runtime or devices).",
    ),
    Cause(
        "container-toolkit-missing",
        r"nvidia-container-runtime-hook\\?\"?: executable file not found|[Uu]nknown (?:or invalid runtime name:?"
        r"|runtime specified) \"?nvidia",
        "Docker has no runtime named nvidia: the NVIDIA container toolkit is not configured on the host.",
        f"{DEPLOY_TOOLKIT} Or set vllm_gpu_access to gpus, cdi or devices.",
    ),
    Cause(
        "cdi-device-missing",
        r"could not select device driver \"cdi\"|unresolvable CDI devices? (.+)"
        r"|CDI (?:device injection|devices?).*(?:fail|not supported|disabled)",
        "Docker knows no such CDI device.",
        "On the host run nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml and see nvidia-ctk cdi list; Docker"
        " needs version 25 or newer with CDI enabled. Or set vllm_gpu_access to gpus.",
    ),
    Cause(
        "gpu-unknown",
        r"nvidia-container-cli: device error: (.+?): unknown device|error gathering device information while adding"
        r" custom device \"(.+?)\"",
        "The host has no such GPU.",
        "See gpu_info for the GPUs that are there; correct vllm_gpu_selection or run without the old vllm_gpus.",
    ),
    Cause(
        "driver-libraries-missing",
        r"nvidia-container-cli: initialization error(?!.*version mismatch)"
        r"|libnvidia-ml\.so\.1: cannot open shared object"
        r"|libcuda\.so\.1: cannot open shared object|Found no NVIDIA driver on your system"
        r"|NVML Shared Library Not Found"
        r"|NVMLError_DriverNotLoaded|NVML: Driver Not Loaded",
        "The NVIDIA driver's libraries are not found, or the driver is not loaded.",
        "Install the driver on the host (nvidia-smi must work there), then run the play again; with vllm_gpu_access"
        " devices mount the driver's libraries through vllm_volumes.",
    ),
    Cause(
        "container-toolkit-failed",
        r"nvidia-container-cli: (.+)|nvidia-container-runtime: (.+)",
        "NVIDIA's container toolkit could not hand the GPUs to the container: {0}{1}",
        "See that nvidia-smi works on the host and run the play again; otherwise set vllm_gpu_access to cdi or"
        " devices, or"
        " nvidia_container_toolkit_version to a newer one.",
        rank=GENERAL,
    ),
    Cause(
        "driver-libraries-not-listed",
        r"/sbin/ldconfig.* returned non-zero exit status|No such file or directory: '/sbin/ldconfig'",
        "Triton could not learn from the image's ldconfig where the driver's libcuda is.",
        "Set TRITON_LIBCUDA_PATH in vllm_environment to the folder of libcuda.so.1 in the container.",
    ),
    Cause(
        "fabric-manager-not-running",
        r"Error 802|CUDA_ERROR_SYSTEM_NOT_READY|system not yet initialized",
        "The GPUs' NVSwitch fabric is not initialised.",
        "Start nvidia-fabricmanager, in the driver's own version, on the host.",
    ),
    Cause(
        "driver-mismatch",
        r"Error 80[34]|[Dd]river/library version mismatch|NVML/RM version mismatch"
        r"|system has unsupported display driver / cuda driver combination"
        r"|forward compatibility was attempted on non supported HW",
        "The driver and the image's CUDA libraries do not go together.",
        "Reboot the host if its driver was just updated; otherwise update it, or set vllm_version to a release built"
        " for its CUDA.",
    ),
    Cause(
        "gpu-lost-by-container",
        r"Failed to initialize NVML: Unknown Error",
        "The container has lost its GPU, as happens after systemd reloads its units.",
        "Use vllm_gpu_access cdi, or set Docker's cgroup driver to cgroupfs; a restart of the server brings it back"
        " (state restarted).",
    ),
    Cause(
        "gpu-fell-off",
        r"GPU has fallen off the bus|GPU is lost|CUDA error: uncorrectable ECC"
        r"|uncorrectable ECC error",
        "The GPU failed.",
        "See dmesg for Xid errors; reset or replace the GPU.",
    ),
    Cause(
        "gpu-busy",
        r"CUDA-capable device\(s\) is/are busy or unavailable|CUDA_ERROR_DEVICE_UNAVAILABLE|exclusive-thread device"
        r" already in use",
        "The GPU takes no further process: it is in exclusive mode, or another process hangs on it.",
        "Run nvidia-smi -c DEFAULT on the host and end the process that holds the GPU (gpu_info lists it), or choose"
        " another with vllm_gpu_selection.",
    ),
    Cause(
        "cuda-does-not-initialise",
        r"CUDA unknown error|Error 999\b|CUDA driver initialization failed|CUDA_ERROR_(?:UNKNOWN|NOT_INITIALIZED)"
        r"|CUDA driver error: (?:unknown|initialization)|CUDA error: initialization error",
        "The NVIDIA driver does not initialise CUDA in the container.",
        "On the host load the module nvidia_uvm (nvidia-modprobe -u -c=0) or reboot it; a container that was handed"
        " device files without /dev/nvidia-uvm needs another vllm_gpu_access.",
    ),
    Cause(
        "no-gpu-in-container",
        r"Torch not compiled with CUDA enabled|PyTorch was compiled without CUDA support",
        "The image's PyTorch was built without CUDA.",
        "Correct vllm_image and vllm_image_tag; on a machine without a GPU set vllm_device: cpu.",
    ),
    Cause(
        "no-gpu-in-container",
        r"No CUDA GPUs are available|no CUDA-capable device is detected|Failed to infer device type"
        r"|Device string must not be empty",
        "The server sees no GPU in its container.",
        "Check vllm_gpu_access and that nvidia-smi works on the host; on a machine without a GPU set vllm_device: cpu.",
    ),
    Cause(
        "illegal-instruction",
        r"Illegal instruction",
        "The processor lacks an instruction that this build uses.",
        "Use a build for this processor (vllm_image; the CPU build needs AVX512 unless it was fixed as the role"
        " gpufleet.vllm.cpu_image does).",
    ),
)

CONTAINER_CAUSES: tuple[Cause, ...] = (
    # Ports, image, permissions
    Cause(
        "port-in-use",
        r"port is already allocated|[Aa]ddress already in use(?!\. Retrying)|Errno 98",
        "The port is taken.",
        "Set vllm_port to a free one, or end what listens there.",
    ),
    Cause(
        "image-wrong-architecture",
        r"exec format error|does not match the detected host platform",
        "The image is for another processor architecture.",
        "Set vllm_platform to the host's (linux/amd64 or linux/arm64) and pull the image again.",
    ),
    Cause(
        "image-not-vllm",
        r"exec: \"?vllm\"?: executable file not found|No module named '?vllm'?$|vllm: (?:command )?not found",
        "The image holds no vLLM.",
        "Correct vllm_image and vllm_image_tag.",
    ),
    Cause(
        "image-missing",
        r"No such image: (\S+)",
        "The host has no image {0}.",
        "Run the deployment's image step (playbook gpufleet.vllm.deploy).",
    ),
    Cause(
        "mount-missing",
        r"bind source path does not exist: (\S+)|error mounting \"([^\"]+)\"|invalid mount config",
        "A folder that should be mounted into the container is missing or cannot be mounted.",
        "Make the folder, or correct vllm_volumes, vllm_hf_home and vllm_cache_dir.",
    ),
    Cause(
        "container-refused",
        r"OCI runtime create failed: (.+)|failed to create (?:task|shim task)[^:]*: (.+)",
        "Docker could not start the container: {0}{1}",
        "See what the message names: a folder of vllm_volumes, vllm_gpu_access, or the engine itself (journalctl --unit"
        " docker).",
        rank=GENERAL,
    ),
    Cause(
        "user-unknown",
        r"getpwuid\(\): uid not found: ?(\d*)",
        "The container runs as user {0}, whom the image does not know.",
        "Set LOGNAME in vllm_environment to any name, so that the user's is not asked for.",
    ),
    Cause(
        "port-not-allowed",
        r"attempt(?:ing)? to bind on address \(?'?([^,)']*)'?, (\d+)\)?: (?:\[errno 13\] )?[Pp]ermission denied",
        "The server may not listen on port {1}: ports below 1024 are for root.",
        "Set vllm_port to 1024 or more.",
    ),
    Cause(
        "host-address-unknown",
        r"[Cc](?:annot|an't) assign requested address|\[Errno 99\]",
        "The address that the server should listen on is none of this host's.",
        "Correct vllm_host: 0.0.0.0, 127.0.0.1 or an address that the host has.",
    ),
    Cause(
        "permission-denied",
        r"PermissionError|Permission denied",
        "The server may not read or write one of its files.",
        "Give its user access to vllm_hf_home, vllm_cache_dir and the model's folder (SELinux: add :z to the entries of"
        " vllm_volumes).",
    ),
    Cause(
        "file-missing",
        r"FileNotFoundError: (?:\[Errno 2\] )?(.+)",
        "The server misses a file: {0}.",
        "Mount it through vllm_volumes, or correct vllm_model and vllm_extra_config.",
    ),
    Cause(
        "library-missing",
        r"([\w.+-]+\.so[\w.]*): cannot open shared object file",
        "The image lacks the library {0}.",
        "Add it to the image (libnuma.so.1 is in the package libnuma1), or use another image (vllm_image).",
    ),
    Cause(
        "library-mismatch",
        r"undefined symbol: |version `\S+' not found",
        "The image's libraries do not belong together.",
        "Use an image as its makers released it (vllm_image, vllm_image_tag).",
    ),
    Cause(
        "python-package-missing",
        r"(?:ModuleNotFoundError|ImportError): No module named '?([\w.]+)",
        "The image lacks the Python package {0}.",
        "Use another image (vllm_image) or a release that holds it.",
        rank=HINT,
    ),
)


def prove(line: str, causes: Iterable[Cause]) -> tuple[Cause, tuple[str, ...]] | None:
    """Return the first of these causes that a line proves, with the groups of its pattern; None if there is none.

    Args:
        line: without the prefix of the log.
        causes: in the order in which they are tried.
    """
    for cause in causes:
        match = re.search(cause.pattern, line)
        if match:
            return cause, tuple(group or "" for group in match.groups())
    return None
