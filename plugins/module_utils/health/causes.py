# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a vLLM server did not start, or died: one named cause, the line that proves it, and what to do.

A failing vLLM prints its cause once, far above the errors of the processes that waited for it; so the earliest line
that a strong cause matches wins. Weak causes are lines that also appear in starts that succeed, such as an answer of
the hub that is tried again; they count only when nothing stronger is found.
"""

from __future__ import annotations

import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class Cause:
    """A cause that a line of the log proves.

    Attributes:
        name: stable identifier in kebab case.
        pattern: regular expression searched in the line, after the log's prefix is taken off.
        meaning: one sentence for people; {0}, {1} ... stand for the groups of the pattern.
        remedy: what to do, naming the variable; may hold the groups too.
        weak: whether the line also appears in starts that succeed.
    """

    name: str
    pattern: str
    meaning: str
    remedy: str
    weak: bool = False


# What the role nvidia_container_toolkit does.
DEPLOY_TOOLKIT = (
    "Run the playbook gpufleet.vllm.deploy, which installs the toolkit and has Docker know it, unless"
    " nvidia_container_toolkit_manage is false or vllm_docker_host is not the host's own socket; then do so by hand"
    " (nvidia-ctk runtime configure --runtime=docker, and restart Docker)."
)

# In one line, the first entry that matches wins; between lines, the earlier line does.
CAUSES: tuple[Cause, ...] = (
    # Our own health check (in_container/health_check.py)
    Cause(
        "ended-by-watchdog",
        r"gpufleet-watchdog: (.+?)\. The server is ended",
        "It no longer worked and was ended, so that it is started again: {0}.",
        "Look at what its log says before that, and at dmesg for Xid lines of the GPU. Raise vllm_watchdog_timeout if"
        " the server was only busy.",
    ),
    # Memory of the card
    Cause(
        "no-memory-for-kv-cache",
        r"No available memory for the cache blocks|Cannot auto-fit max_model_len: not enough",
        "The weights and activations leave no memory for the KV cache.",
        "Lower vllm_max_num_batched_tokens, raise vllm_gpu_memory_utilization, use a larger"
        " vllm_tensor_parallel_size or a smaller vllm_precision.",
    ),
    Cause(
        "max-model-len-too-long",
        r"To serve at least one request with the model(?:s|'s|s's)? max seq len \(?(\d+)\)?.*"
        r"estimated maximum model length is (\d+)",
        "One request of max-model-len {0} tokens does not fit the KV cache.",
        "Set vllm_max_model_len to {1} or less.",
    ),
    Cause(
        "max-model-len-too-long",
        r"To serve at least one request with the model(?:s|'s|s's)? max seq len",
        "One request of the full max-model-len does not fit the KV cache.",
        "Lower vllm_max_model_len.",
    ),
    Cause(
        "max-model-len-beyond-model",
        r"User-specified max_model_len \((\d+)\) is greater than the derived max_model_len \([^)]*?(\d+)",
        "max-model-len {0} is more than the model was made for.",
        "Set vllm_max_model_len to {1} or less.",
    ),
    Cause(
        "gpu-memory-taken",
        r"Free memory on device \S* ?\(?([\d.]+)/([\d.]+) GiB\)? on startup is less than desired GPU memory",
        "Only {0} of the GPU's {1} GiB are free: something else holds its memory.",
        "End the process that holds the GPU (gpu_info lists it), choose another with vllm_gpu_selection, or lower"
        " vllm_gpu_memory_utilization.",
    ),
    Cause(
        "gpu-memory-taken",
        r"Free memory on device .* is less than desired GPU memory utilization",
        "Something else holds the GPU's memory.",
        "End the process that holds the GPU (gpu_info lists it), choose another with vllm_gpu_selection, or lower"
        " vllm_gpu_memory_utilization.",
    ),
    Cause(
        "gpu-memory-changed",
        r"Error in memory profiling\. Initial free memory",
        "Another process freed GPU memory while this server measured it.",
        "Run the play again once nothing else starts or ends on that GPU.",
    ),
    Cause(
        "cpu-memory-short",
        r"Available memory on node \d+ .* is less than desired CPU memory utilization",
        "The host has less free memory than the server is allowed to take.",
        "Lower vllm_gpu_memory_utilization, which the CPU build reads as the share of the host's memory.",
    ),
    Cause(
        "cpu-memory-short",
        r"Available memory on node \S+ .* on kv cache allocation is less than requested memory for kv",
        "The host has less free memory than the KV cache is to take.",
        "End other processes on the host, or lower vllm_gpu_memory_utilization (or what sets the cache's size:"
        " kv-cache-memory-bytes in vllm_extra_config, VLLM_CPU_KVCACHE_SPACE in vllm_environment).",
    ),
    Cause(
        "cpu-memory-share-too-small",
        r"already uses ([\d.]+) GiB .*more than the ([\d.]+) GiB of CPU memory reserved",
        "The weights and the server itself take {0} GiB, more than the {1} GiB of the host's memory that it may use.",
        "Raise vllm_gpu_memory_utilization, which the CPU build reads as the share of the host's memory, or use a host"
        " with more.",
    ),
    Cause(
        "gpu-out-of-memory",
        r"(?:torch\.(?:cuda\.)?OutOfMemoryError|CUDA out of memory|CUDA error: out of memory)",
        "The GPU's memory did not suffice.",
        "Lower vllm_gpu_memory_utilization, vllm_max_num_seqs or vllm_max_num_batched_tokens, or raise"
        " vllm_tensor_parallel_size.",
    ),
    # Memory and disk of the host
    Cause(
        "disk-full",
        r"No space left on device",
        "A disk is full.",
        "Make room where vllm_hf_home, vllm_cache_dir and Docker's data folder are, or move them to a larger disk.",
    ),
    Cause(
        "shared-memory-too-small",
        r"(?:/dev/shm/nccl)|Bus error|unable to (?:allocate|mmap).*shared memory",
        "The container's shared memory is too small.",
        "Run with the host's (ipc_mode host, the default) or give it more with shm_size.",
    ),
    Cause(
        "host-out-of-memory",
        r"(?:Cannot allocate memory|DefaultCPUAllocator: (?:can't|not enough memory)|std::bad_alloc|^MemoryError)",
        "The host's memory did not suffice.",
        "End other processes, lower vllm_gpu_memory_utilization (CPU build), or use a host with more memory.",
    ),
    # Precision and kernels
    Cause(
        "precision-not-supported",
        r"quantization method (\S+) is not supported for the current GPU|does not support NVFP4"
        r"|No valid NVFP4 GEMM backend",
        "This GPU cannot run the model's precision.",
        "Set vllm_precision to auto, or to one that the GPU has (fp8 from compute capability 8.9, fp4 from 10.0).",
    ),
    Cause(
        "no-moe-backend",
        r"No (\S.*?) MoE backend supports the deployment configuration",
        "This vLLM has no backend that runs a mixture of experts in {0} in this configuration on this GPU.",
        "Set vllm_precision and vllm_tensor_parallel_size to auto, or vllm_version to a newer release.",
    ),
    Cause(
        "moe-backend-not-supported",
        r"Found (VLLM_USE_FLASHINFER_MOE_FP\d+)=1, but no",
        "{0}=1 asks for FlashInfer's MoE backend, which cannot run this model on this GPU.",
        "Set {0} to '0' in vllm_environment and let vLLM choose.",
    ),
    Cause(
        "moe-backend-not-supported",
        r"moe_backend='(\S*)' is not supported for (\S.*?) MoE",
        "This vLLM has no MoE backend {0} for {1}.",
        "Correct moe-backend in vllm_extra_config, or take it out and let vLLM choose.",
    ),
    Cause(
        "moe-backend-not-supported",
        r"backend is disabled for this configuration|does not support the deployment configuration",
        "The MoE backend that was asked for cannot run this model on this GPU.",
        "Take moe-backend out of vllm_extra_config, or VLLM_USE_FLASHINFER_MOE_* out of vllm_environment, and let"
        " vLLM choose.",
    ),
    Cause(
        "kv-cache-dtype-not-supported",
        r"(?:kv[-_ ]cache[-_ ]dtype|(?:fp8|FP8) KV cache)\b.*\bnot (?:yet )?supported"
        r"|FP8 KV cache is unsupported|not compatible with FP8 KV cache",
        "This device or attention backend cannot keep the KV cache in that type.",
        "Set vllm_kv_cache_dtype to auto.",
    ),
    Cause(
        "dtype-not-supported",
        r"[Bb]float16 is only supported on GPUs with compute capability"
        r"|is not supported for quantization method \S+ Supported dtypes",
        "The GPU or the quantization cannot use that dtype.",
        "Set dtype in vllm_extra_config to float16 or auto.",
    ),
    Cause(
        "quantization-mismatch",
        r"Quantization method specified in the model config \(([^)]*)\) does not match .*\(([^)]*)\)",
        "The model's files are quantized as {0}, but the configuration says {1}.",
        "Take quantization out of vllm_extra_config: vLLM reads it from the model.",
    ),
    Cause(
        "attention-backend-not-supported",
        r"(?:Selected backend \S+ is not valid for this configuration|No valid attention backend found)",
        "The attention backend cannot run this configuration.",
        "Take VLLM_ATTENTION_BACKEND out of vllm_environment (attention-backend out of vllm_extra_config).",
    ),
    Cause(
        "compiler-missing",
        r"No working C\+\+ compiler found",
        "The image has no C++ compiler for what torch compiles at start-up.",
        "Set enforce-eager: true in vllm_extra_config, or use an image that has g++ (vllm_image).",
    ),
    Cause(
        "compiler-missing",
        r"Failed to find C compiler|(?:nvcc|ninja|gcc|g\+\+): (?:command )?not found|Could not find nvcc"
        r"|Ninja is required|No such file or directory: '(?:nvcc|ninja|gcc|g\+\+|cc)'",
        "The image has no compiler for the kernels that are compiled at start-up.",
        "Use an image that has one (vllm_image), or avoid the compiling backend through vllm_extra_config.",
    ),
    Cause(
        "kernel-image-missing",
        r"no kernel image is available for execution on the device",
        "The image's kernels were not built for this GPU.",
        "Set vllm_version (vllm_image_tag) to a release that supports the GPU's compute capability.",
    ),
    # Driver and container toolkit
    Cause(
        "driver-too-old",
        r"unsatisfied condition: cuda\s*>=\s*([\d.]+)",
        "The host's NVIDIA driver is too old for the image, which needs CUDA {0}.",
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
        r"[Uu]nknown (?:or invalid runtime name:?|runtime specified) \"?nvidia",
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
        r"nvidia-container-cli: initialization error|libnvidia-ml\.so\.1: cannot open shared object"
        r"|libcuda\.so\.1: cannot open shared object",
        "The NVIDIA driver's libraries are not found.",
        "Install the driver on the host (nvidia-smi must work there), then run the play again; with vllm_gpu_access"
        " devices mount the driver's libraries through vllm_volumes.",
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
        r"Error 80[34]|system has unsupported display driver / cuda driver combination"
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
        r"GPU has fallen off the bus|GPU is lost|CUDA error: (?:uncorrectable ECC|unspecified launch failure)"
        r"|uncorrectable ECC error",
        "The GPU failed.",
        "See dmesg for Xid errors; reset or replace the GPU.",
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
    # Parallelism
    Cause(
        "too-few-gpus",
        r"World size \(?(\d+)\)? .*is larger than the number of",
        "The server was told to use {0} GPUs but sees fewer.",
        "Lower vllm_tensor_parallel_size or give it more GPUs with vllm_gpu_selection.",
    ),
    Cause(
        "too-few-gpus",
        r"[Tt]ensor parallel size \(?(\d+)\)? cannot be larger than the number of available GPUs \(?(\d+)"
        r"|local_world_size \(?(\d+)\)? must be less than or equal to the number of visible devices \(?(\d+)",
        "The server was told to use {0}{2} GPUs but sees {1}{3}.",
        "Lower vllm_tensor_parallel_size or give it more GPUs with vllm_gpu_selection.",
    ),
    Cause(
        "too-few-gpus",
        r"World size .* is larger than the number of|invalid device ordinal|DP adjusted local rank \S+ is out of bounds"
        r"|local_?world_?size .*less than or equal to the number of visible devices",
        "The server was told to use more GPUs than it sees.",
        "Lower vllm_tensor_parallel_size or give it more GPUs with vllm_gpu_selection.",
    ),
    Cause(
        "tensor-parallel-size-does-not-divide",
        r"Total number of attention heads \((\d+)\) must be divisible by tensor parallel size \((\d+)\)",
        "The model's {0} attention heads cannot be split over {1} GPUs.",
        "Set vllm_tensor_parallel_size to a divisor of {0}.",
    ),
    Cause(
        "nccl-error",
        r"ncclSystemError|ncclUnhandledCudaError|NCCL error|ncclRemoteError|ncclInternalError",
        "The GPUs could not talk to each other (NCCL).",
        "Give the container the host's shared memory (ipc_mode host); set NCCL_DEBUG: INFO in vllm_environment to learn"
        " more.",
    ),
    # Model
    Cause(
        "model-gated",
        r"You are trying to access a gated repo|Access to model \S+ is restricted|GatedRepoError",
        "The hub gives this model only to accounts that accepted its licence.",
        "Accept the licence at the model's page and set vllm_hf_token to a token of that account.",
    ),
    Cause(
        "model-not-found",
        r"is not a local folder and is not a valid model identifier|RepositoryNotFoundError"
        r"|Invalid repository ID or local directory specified|Repo id must (?:be|use)",
        "There is no such model at the hub, and no such folder.",
        "Correct vllm_model; for a private model set vllm_hf_token.",
    ),
    Cause(
        "hub-refused",
        r"(40[13]) Client Error",
        "The hub refused the request ({0}).",
        "Set vllm_hf_token to a valid token of an account that may read the model.",
    ),
    Cause(
        "hub-unreachable",
        r"couldn't connect to '([^']+)'|LocalEntryNotFoundError|Cannot reach https?://\S*huggingface"
        r"|outgoing traffic has been disabled",
        "The host cannot reach the hub and has no copy of the model.",
        "Give the host a way out (proxy variables in vllm_environment, vllm_ca_bundle), or copy the model to it and set"
        " vllm_model to the folder.",
    ),
    Cause(
        "certificate-not-trusted",
        r"CERTIFICATE_VERIFY_FAILED",
        "A TLS certificate is not trusted, as behind an inspecting proxy.",
        "Set vllm_ca_bundle to a file with the proxy's certificate authority.",
        weak=True,
    ),
    Cause(
        "hub-rate-limit",
        r"429 Client Error|Too Many Requests",
        "The hub limits the rate of requests from here.",
        "Set vllm_hf_token, or start fewer hosts at a time; the download goes on where it stopped.",
        weak=True,
    ),
    Cause(
        "name-not-resolved",
        r"(?:Temporary failure in name resolution|Name or service not known|Failed to resolve '([^']+)')",
        "A host name could not be resolved from the container.",
        "Mend the host's DNS, or set vllm_network_mode to host.",
        weak=True,
    ),
    Cause(
        "weights-corrupt",
        r"SafetensorError|Error while deserializing header|MetadataIncompleteBuffer|InvalidHeaderDeserialization"
        r"|HeaderTooLarge|PytorchStreamReader failed|unexpected end of (?:data|file)",
        "A file of the weights is damaged or cut short.",
        "Remove the model's folder under vllm_hf_home (or the file under vllm_model) and fetch it again.",
    ),
    Cause(
        "weights-missing",
        r"Cannot find any model weights with",
        "The model's folder holds no weights.",
        "Fetch the model again, or correct vllm_model.",
    ),
    Cause(
        "weights-do-not-fit-model",
        r"Following weights were not initialized from checkpoint|There is no module or parameter named"
        r"|size mismatch for|assert param(?:_data)?\.(?:size|shape)|KeyError: '(?:model\.)?layers\.",
        "The weights do not belong to the model that its config.json describes, or this vLLM is too old for them.",
        "Check the files under vllm_model, or set vllm_version to a newer release.",
    ),
    Cause(
        "architecture-not-supported",
        r"Model architectures (\S.*?) (?:are not supported|failed to be inspected)"
        r"|model type `?(\S+?)`? but Transformers does not recognize this architecture",
        "This vLLM does not know the model's architecture.",
        "Set vllm_version to a release that supports it.",
    ),
    Cause(
        "config-json-missing",
        r"does not appear to have a file named config\.json|(?:No|no) config(?:\.json)? (?:file )?found",
        "The model's folder or repository has no config.json.",
        "Correct vllm_model.",
    ),
    Cause(
        "remote-code-refused",
        r"Please pass the argument `trust_remote_code=True`|requires you to execute the configuration file"
        r"|contains custom code which must be executed",
        "The model brings code of its own, which vLLM runs only when told to.",
        "If you trust it, set trust-remote-code: true in vllm_extra_config.",
    ),
    Cause(
        "chat-template-missing",
        r"The supplied chat template .* (?:looks like|does not exist)",
        "The chat template that the configuration names does not exist in the container.",
        "Correct chat-template in vllm_extra_config and mount it through vllm_volumes.",
    ),
    # Flags and configuration
    Cause(
        "flag-unknown",
        r"error: unrecognized arguments: (.+)",
        "This vLLM has no option {0}.",
        "Take it out of vllm_extra_config, or set vllm_version to a release that has it.",
    ),
    Cause(
        "flag-value-refused",
        r"error: argument (\S+?):? (.+)",
        "This vLLM refuses the value of {0}: {1}.",
        "Correct it: see the variable of that name (vllm_*) or vllm_extra_config.",
    ),
    Cause(
        "config-file-unreadable",
        r"yaml\.(?:parser|scanner)\.\w+|The config file.*(?:invalid|must be)|Failed to parse config file"
        r"|Config file must be of a yaml/yml type|No config file specified",
        "vLLM cannot read the configuration file.",
        "Run the play again, which writes it anew; look at vllm_extra_config.",
    ),
    Cause(
        "max-num-batched-tokens-too-small",
        r"max_num_batched_tokens \((\d+)\) is smaller than max_model_len \((\d+)\)",
        "max-num-batched-tokens {0} is smaller than max-model-len {1} while chunked prefill is off.",
        "Set vllm_max_num_batched_tokens to {1} or more, or lower vllm_max_model_len.",
    ),
    Cause(
        "max-num-batched-tokens-too-small",
        r"max_num_batched_tokens \((\d+)\) must be greater than or equal to max_num_seqs \((\d+)\)",
        "max-num-batched-tokens {0} is smaller than max-num-seqs {1}.",
        "Raise vllm_max_num_batched_tokens or lower vllm_max_num_seqs.",
    ),
    Cause(
        "combination-refused",
        r"[Aa]sync[- ]scheduling .*(?:not (?:yet )?(?:support|compatible)|only supported)"
        r"|does not support async scheduling",
        "Asynchronous scheduling does not go with the rest of the configuration.",
        "Set async-scheduling out of vllm_extra_config (no-async-scheduling: true).",
    ),
    Cause(
        "environment-value-refused",
        r"Invalid value '(.*?)' for (VLLM_\w+)|ValueError: .*environment variable (VLLM_\w+)",
        "An environment variable has a value that vLLM refuses.",
        "Correct it in vllm_environment.",
    ),
    Cause(
        "environment-variable-unknown",
        r"^ValueError: Unknown vLLM environment variable detected: (\w+)",
        "This vLLM knows no variable {0}, and was told to refuse such.",
        "Take it out of vllm_environment, or fail-on-environ-validation out of vllm_extra_config.",
    ),
    # Time
    Cause(
        "engine-start-timeout",
        r"Timed out waiting for engine(?:s| core processes) to",
        "The API server gave the engine up before it had loaded the weights.",
        "Set VLLM_ENGINE_READY_TIMEOUT_S in vllm_environment to more seconds (from 0.17 on), or put vllm_hf_home on a"
        " faster disk; a second start finds the weights there.",
    ),
    Cause(
        "front-end-lost",
        r"Did not receive response from front-end process within (\d+)",
        "The engine waited {0} minutes in vain for the API server, which has ended or is starved of processor time.",
        "See whether the host is overloaded, then run the play again.",
    ),
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
        "user-unknown",
        r"getpwuid\(\): uid not found: ?(\d*)",
        "The container runs as user {0}, whom the image does not know.",
        "Set LOGNAME in vllm_environment to any name, so that nobody asks for the user's.",
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
        weak=True,
    ),
    Cause(
        "cuda-error",
        r"(CUDA error: .+|CUBLAS_STATUS_\w+|CUDNN_STATUS_\w+)",
        "The GPU reported: {0}.",
        "See dmesg on the host for Xid errors, and the vLLM issues for this message.",
        weak=True,
    ),
)

# What is left to say when neither a cause nor any other error is in the log.
KILLED_PROCESS = Cause(
    "process-killed",
    r"(?:Worker|Engine core) proc \S+ died unexpectedly|engine core exited unexpectedly"
    # Without any: vLLM looked before the process that had ended could be asked for its exit code.
    r"|Failed core proc\(s\): \{(?:\}|[^}]*: -(?:4|7|9|11)\b)",
    "One of the server's processes was ended from outside, most often by the host's out-of-memory killer.",
    "See dmesg for 'Out of memory'; give the host more memory, or lower what the server takes.",
)

# Errors of processes that only waited for the one that failed.
WRAPPER = re.compile(
    r"Engine core initialization failed|WorkerProc initialization failed|Engine process failed to start"
    r"|EngineDeadError|Executor failed|died unexpectedly|See root cause above|See stack trace|SystemExit"
    r"|KeyboardInterrupt|EngineCore encountered|EngineCore failed to start|WorkerProc (?:failed|hit an exception)"
)


# Exit codes of a process that a signal ended: 128 + the signal's number.
EXIT_CAUSES: dict[int, Cause] = {
    132: Cause(
        "illegal-instruction",
        "",
        "The server was ended by an illegal instruction: the processor lacks one that this build uses.",
        "Use a build for this processor (vllm_image; the CPU build needs AVX512 unless it was fixed as the role"
        " gpufleet.vllm.cpu_image does).",
    ),
    134: Cause("aborted", "", "The server aborted itself (SIGABRT).", "Look at the last lines of its log."),
    135: Cause(
        "shared-memory-too-small",
        "",
        "The server was ended by a bus error, as when shared memory is full.",
        "Run with the host's (ipc_mode host, the default) or give it more with shm_size.",
    ),
    137: Cause(
        "killed",
        "",
        "The server was killed (SIGKILL): by the host's out-of-memory killer, or by someone.",
        "See dmesg for 'Out of memory'; give the host more memory, or lower what the server takes.",
    ),
    139: Cause(
        "segmentation-fault",
        "",
        "The server crashed (segmentation fault).",
        "Try another vllm_version, and without VLLM_* variables in vllm_environment.",
    ),
    143: Cause(
        "stopped-from-outside",
        "",
        "The server was told to stop (SIGTERM) while it was starting.",
        "See who stopped the container, and run the play again.",
    ),
}
OUT_OF_MEMORY_KILL = Cause(
    "out-of-memory-kill",
    "",
    "The kernel killed the server because its container reached the memory limit.",
    "Raise the container's memory limit or lower what the server takes (vllm_max_num_seqs, vllm_max_num_batched_tokens;"
    " on the CPU also vllm_gpu_memory_utilization).",
)
HOST_MEMORY_KILL = Cause(
    "host-out-of-memory",
    "",
    "The kernel killed one of the server's processes because the host had no memory left.",
    "End other processes, lower what the server takes (on the CPU vllm_gpu_memory_utilization), or use a host with more"
    " memory.",
)
