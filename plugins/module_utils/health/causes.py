# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a vLLM server did not start, or died: one named cause, the line that proves it, and what to do.

A failing vLLM prints its cause once, far above the errors of the processes that waited for it; so of two causes of
one rank the earlier line wins (container_causes.py says what a rank is).
"""

from __future__ import annotations

import re

from ansible_collections.gpufleet.vllm.plugins.module_utils.health.container_causes import (
    CONTAINER_CAUSES,
    ECHO,
    GENERAL,
    GPU_CAUSES,
    HINT,
    Cause,
)

# In one line, the first entry of the lowest rank that matches wins; between lines of a rank, the earlier line does.
CAUSES: tuple[Cause, ...] = (
    # Our own health check (in_container/health_check.py)
    Cause(
        "ended-by-watchdog",
        r"gpufleet-watchdog: (.+?)\. The server is ended",
        "It no longer worked and was ended, so that it is started again: {0}.",
        "Look at what its log says before that, and at dmesg for Xid lines of the GPU. Raise vllm_watchdog_timeout if"
        " the server was only busy.",
    ),
    # What custom all-reduce's C++ code says before it ends its process
    Cause(
        "gpu-out-of-memory",
        r"^Failed: .*\.cuh?:\d+ 'out of memory'",
        "The GPU's memory did not suffice for what the GPUs exchange.",
        "Lower vllm_gpu_memory_utilization or vllm_max_num_seqs, or set disable-custom-all-reduce: true in"
        " vllm_extra_config.",
    ),
    Cause(
        "custom-all-reduce-failed",
        r"(?:custom|quick)_all_?reduce\S*\.cuh?:\d+ '([^']+)'|[Cc]ustom_?(?:ar|all_?reduce).*\binvalid argument",
        "The GPUs could not share memory for vLLM's own all-reduce ({0}), as when PyTorch's allocator uses expandable"
        " segments.",
        "Take expandable_segments out of PYTORCH_CUDA_ALLOC_CONF (PYTORCH_ALLOC_CONF) in vllm_environment, or set"
        " disable-custom-all-reduce: true in vllm_extra_config.",
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
        r"(?:torch\.(?:cuda\.)?OutOfMemoryError|CUDA out of memory|CUDA error(?: \S+:\d+)?:? '?out of memory"
        r"|[Cc]uda failure (?:\d+ )?'out of memory'|CUDA_ERROR_OUT_OF_MEMORY|cudaErrorMemoryAllocation"
        r"|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED)",
        "The GPU's memory did not suffice.",
        "Lower vllm_gpu_memory_utilization, vllm_max_num_seqs or vllm_max_num_batched_tokens, or raise"
        " vllm_tensor_parallel_size.",
    ),
    # The home folder of a user whom the image does not know is /, and the remedy is another than for the mounts.
    Cause(
        "permission-denied",
        r"Permission denied: '/root(?:/\.cache)?'",
        "The server's user may not enter /root, where its caches are mounted.",
        "Use an image whose user is root, or may enter /root (vllm_image).",
    ),
    Cause(
        "permission-denied",
        r"(?:Permission denied|Read-only file system): '(?!/root/\.(?:cache/(?:huggingface|vllm|flashinfer)|triton))"
        r"((?:/[^'/]+)*/\.(?:triton|config|cache|nv|local|ssh|netrc|numba|cupy|matplotlib)\b[^']*|/nonexistent[^']*)'",
        "The server may not write {0} in the home folder of its user.",
        "Set HOME in vllm_environment to a folder that the container's user may write, such as /tmp.",
    ),
    # Memory and disk of the host
    Cause(
        "shared-memory-too-small",
        r"(?:/dev/shm/nccl)|Bus error|unable to (?:allocate|mmap).*shared memory|insufficient shared memory \(shm\)"
        r"|No space left on device: '/dev/shm|unable to (?:open|resize) shared memory object",
        "The container's shared memory is too small.",
        "Servers use the host's shared memory (ipc_mode host, the default): make room in /dev/shm, or"
        " enlarge it with mount -o remount,size=64G /dev/shm.",
    ),
    Cause(
        "disk-full",
        r"No space left on device|Disk quota exceeded|Errno (?:28|122)\]|os error (?:28|122)\)",
        "A disk is full, or its user's quota is used up.",
        "Make room where vllm_hf_home, vllm_cache_dir and Docker's data folder are, or move them to a larger disk.",
    ),
    Cause(
        "storage-failed",
        r"\[Errno (?:5|116|117|121)\]|os error (?:5|116|117|121)\)|Input/output error|Stale file handle"
        r"|Structure needs cleaning|Remote I/O error",
        "A disk, or a file server, fails: it does not hand over what is stored there.",
        "See dmesg on the host; put vllm_hf_home, vllm_cache_dir and the model's folder on storage that works.",
    ),
    Cause(
        "folder-not-writable",
        r"Read-only file system(?:: '([^']+)')?|\[Errno 30\]|os error 30\)",
        "A folder that the server has to write to is mounted read-only.",
        "Take ro from the folder's entry in vllm_volumes, or move vllm_hf_home and vllm_cache_dir to where the host may"
        " write.",
    ),
    Cause(
        "too-many-open-files",
        r"(?<!`OSError: )\[Errno 24\]|os error 24\)|(?<!Errno 24\] )Too many open files",
        "The server reached the limit of files that it may have open.",
        "Raise nofile under default-ulimits in docker_daemon_config.",
    ),
    Cause(
        "threads-refused",
        r"(?:pthread_create failed|can't start new thread|Thread creation failed|Cannot create thread)"
        r".*Operation not permitted",
        "The Docker engine's filter of system calls refuses the server's threads: the engine, or the host's libseccomp,"
        " is older than the image.",
        "Update the Docker engine to 20.10.10 or newer and libseccomp2 to 2.5 or newer (docker_source), or use an older"
        " image (vllm_version).",
    ),
    Cause(
        "threads-refused",
        r"pthread_create failed|can't start new thread|[Tt]hread creation failed"
        r"|(?<!Again: )Resource temporarily unavailable"
        r"|failed to (?:spawn|create) (?:new )?thread|Cannot create (?:new )?thread",
        "The server was refused another thread or process: a limit of the host or of the container is reached.",
        "Lower OMP_NUM_THREADS (OPENBLAS_NUM_THREADS) in vllm_environment, or raise the limit: nproc under"
        " default-ulimits in docker_daemon_config, TasksMax of docker.service, kernel.threads-max and kernel.pid_max.",
    ),
    Cause(
        "host-out-of-memory",
        r"Killed signal terminated program|died due to signal 9|Killed\s+signal 9|cc1plus: out of memory"
        r"|(?:virtual )?memory exhausted: |SubprocException.*SIGKILL",
        "A compiler that the server had started was killed, as happens when the host has no memory left.",
        "Lower MAX_JOBS (and NVCC_THREADS) in vllm_environment so that fewer compilers run at a time, or use a host"
        " with more memory.",
    ),
    Cause(
        "host-out-of-memory",
        r"Cannot allocate memory|DefaultCPUAllocator: (?:can't|not enough memory)|std::bad_alloc|^MemoryError"
        r"|\[Errno 12\]|os error 12\)|memory allocation of \d+ bytes failed|cudaHostAlloc.*(?:failed|out of memory)",
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
        r"Selected backend \S+ is not valid for this configuration|No valid attention backend found"
        r"|FlashAttention only supports",
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
        r"fatal error: '?([^\s:']+)'?(?::| file) (?:No such file or directory|not found)"
        r"|cannot find -l(\S+)|catastrophic error: cannot open source file \"([^\"]+)\"",
        "The image has a compiler for the kernels that are compiled at start-up, but lacks a part that they need:"
        " {0}{1}{2}.",
        "Use an image that has it (vllm_image: one with CUDA's development files), or keep FlashInfer from compiling:"
        " VLLM_USE_FLASHINFER_SAMPLER: '0' in vllm_environment, or another attention-backend in vllm_extra_config.",
    ),
    Cause(
        "compiler-missing",
        r"nvcc fatal\s*: Unknown option|ptxas fatal\s*: Unsupported \.version|unrecognized command[- ]line option"
        r"|unsupported GNU version"
        r"|SM \d+\S*(?: \S+)* requires CUDA >=|requires CUDA Toolkit|requires nvcc|Could not determine CUDA version",
        "The image's compiler is too old or too new for the kernels that are compiled at start-up.",
        "Use an image as its makers released it (vllm_image, vllm_image_tag), or keep FlashInfer from compiling:"
        " VLLM_USE_FLASHINFER_SAMPLER: '0' in vllm_environment, or another attention-backend in vllm_extra_config.",
    ),
    Cause(
        "compiler-missing",
        r"Failed to find C compiler|cannot execute '\S*(?:cc1|cc1plus|cicc)'|(?:nvcc|ninja|gcc|g\+\+|c\+\+|cc"
        r"|ptxas): (?:command )?not found"
        r"|Could not find (?:nvcc|CUDA|cuda_home)|nvcc not found|[Nn]inja is required|Cannot find (?:ptxas|nvcc)"
        r"|(?:CUDA_HOME|CUDA_PATH) (?:environment variable is )?(?:is )?(?:not set|unset)"
        r"|Unable to find (?:nvcc|ninja|CUDA)|No such file or directory: '(?:\S*/)?(?:nvcc|ninja|gcc|g\+\+|c\+\+|cc"
        r"|ptxas)'"
        r"|Compiler: \S+ is not found|MissingJITCacheError",
        "The image has no compiler for the kernels that are compiled at start-up.",
        "Use an image that has one (vllm_image: one with CUDA's development files), or keep FlashInfer from compiling:"
        " VLLM_USE_FLASHINFER_SAMPLER: '0' in vllm_environment, or another attention-backend in vllm_extra_config.",
    ),
    Cause(
        "compile-cache-damaged",
        r"Expected tensors only, but got: <class '\w+'>|Inductor cache lookup failed",
        "What torch had compiled and kept for the next start is damaged, or of another vLLM.",
        "Remove the folder vllm/torch_compile_cache below vllm_cache_dir on the host and run the play again; the next"
        " start compiles anew.",
    ),
    Cause(
        "compile-cache-damaged",
        r"(?:flashinfer|torch_extensions|torchinductor|torch_compile_cache|/\.?triton/|/\.cache/)\S*: (?:file too short"
        r"|invalid ELF header|cannot (?:read|apply)|undefined symbol)",
        "A kernel that was compiled and kept for the next start is damaged, or of another vLLM.",
        "Remove what is below vllm_cache_dir on the host and run the play again; the next start compiles anew.",
    ),
    Cause(
        "compile-cache-damaged",
        r"leading to a corrupted compilation artifact",
        "vLLM could not compile the model, and says that what it kept of an earlier attempt is damaged.",
        "Remove the folder vllm/torch_compile_cache below vllm_cache_dir on the host and run the play again, which"
        " then shows the failure itself if it comes again.",
        rank=ECHO,
    ),
    Cause(
        "gpu-not-capable",
        r"^(?:[\w.]+: )?(.*\b(?:[Rr]equires?|only (?:supported|supports?|available)(?: on| for)?) (?:\S+ ){0,4}?"
        r"(?:compute capability|SM ?\d+|sm_?\d+|Blackwell|Hopper|Ampere)\b.*)",
        "A kernel or a precision that was chosen does not run on this GPU: {0}",
        "Set vllm_precision and vllm_kv_cache_dtype to auto, and take attention-backend and moe-backend out of"
        " vllm_extra_config; otherwise this model needs another GPU.",
        rank=GENERAL,
    ),
    Cause(
        "kernel-image-missing",
        r"no kernel image is available for execution on the device|device kernel image is invalid"
        r"|CUDA error: invalid device function|[Uu]nsupported gpu architecture|ptxas fatal.*\bsm_\w+"
        r"|No supported CUDA architectures found|FlashInfer requires GPUs with sm\d+|Unknown CUDA arch"
        r"|Unsupported compute capability"
        r"|(?:Value|target|gpu) 'sm_\w+' is not|LLVM ERROR: .*sm_|unsupported (?:GPU )?arch(?:itecture)? '?sm_",
        "The image's kernels, or its compiler, were not made for this GPU.",
        "Set vllm_version (vllm_image_tag) to a release that supports the GPU's compute capability.",
    ),
    *GPU_CAUSES,
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
        "tensor-parallel-size-does-not-divide",
        r"(?:input|output|in|out)(?:_size|put_partition|_features)?_?(?:size|per_partition|partition_size)?\S*"
        r"(?: of \w[^=]*)? ?= ?(\d+) is not divisible by (?:the )?(?:weight quantization )?\w+ ?= ?(\d+)"
        r"|(?:intermediate|input|output)\S*_per_partition \(?(\d+)\)? ?(?:to be|must be|not|is not) divisible by (\d+)",
        "The model's layers cannot be split over so many GPUs: a part of {0}{2} is no multiple of {1}{3}, in which its"
        " weights are quantized.",
        "Set vllm_tensor_parallel_size to a smaller size (and vllm_replicas to more), enable-expert-parallel: true in"
        " vllm_extra_config for a mixture of experts, or another vllm_precision.",
    ),
    Cause(
        "tensor-parallel-size-does-not-divide",
        r"(?:not aligned with the quantized weight shape|size_per_partition.* divisible by|per_partition.* divisible by"
        r"|divisible by (?:the )?(?:`?tp_size|tensor[ _-]?(?:model[ _-])?parallel)|not divisible by tp\b"
        r"|heads? must be divisible by world_size|[Tt]ensor[ -]parallel(?:ized| world size)?.*(?:not divi(?:de|sible)"
        r"|does not divide|divides num)"
        r"|too large tensor parallel size|heads? .*divisible by (?:attn_)?tp|tensor_parallel_size splits"
        r"|tensor parallel \S+ size .*divisible|[Ww]eight \w+ ?= ?\d+ is not divisible by)",
        "The model's layers cannot be split over so many GPUs.",
        "Set vllm_tensor_parallel_size to a smaller size (and vllm_replicas to more), or another vllm_precision.",
    ),
    Cause(
        "tensor-parallel-size-does-not-divide",
        r"^AssertionError: (\d+) is not divisible by (\d+)$",
        "A layer of {0} cannot be split over {1} GPUs.",
        "Set vllm_tensor_parallel_size to a divisor of {0}.",
    ),
    Cause(
        "gpu-peer-access-missing",
        r"peer access is not supported between these two devices|peer mapping resources exhausted",
        "Two GPUs of the server cannot reach each other's memory.",
        "Set NCCL_P2P_DISABLE: '1' in vllm_environment and disable-custom-all-reduce: true in vllm_extra_config, or"
        " switch off ACS and IOMMU in the host's firmware.",
    ),
    Cause(
        "host-address-unknown",
        r"Unable to find address for: (\S+)|ifa != nullptr|[Nn]o (?:socket )?interfaces? found"
        r"|Gloo connectFullMesh failed",
        "The server's processes do not find an address of this host to talk to each other.",
        "Set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME in vllm_environment to an interface that the container has (lo"
        " will do: all processes are in one container), or set vllm_network_mode to host.",
    ),
    Cause(
        "multicast-not-supported",
        r"does not support multicasting|cuMulticast\w+.*(?:not supported|failed)|[Mm]ulticast\S* is not supported",
        "The GPUs of this host cannot multicast over NVLink, which symmetric memory was to use.",
        "Set VLLM_ALLREDUCE_USE_SYMM_MEM: '0' and NCCL_NVLS_ENABLE: '0' in vllm_environment; see that"
        " nvidia-fabricmanager runs on the host.",
    ),
    Cause(
        "nccl-error",
        r"ncclSystemError|ncclUnhandledCudaError|NCCL error|ncclRemoteError|ncclInternalError|ncclInvalidUsage"
        r"|NCCL WARN|Watchdog caught collective operation timeout",
        "The GPUs could not talk to each other (NCCL).",
        "Give the container the host's shared memory (ipc_mode host); set NCCL_DEBUG: INFO in vllm_environment to learn"
        " more.",
        rank=ECHO,
    ),
    # Model
    Cause(
        "model-gated",
        r"You are trying to access a gated repo|is a gated repository|Access to model \S+ is restricted|GatedRepoError",
        "The hub gives this model only to accounts that accepted its licence.",
        "Accept the licence at the model's page and set vllm_hf_token to a token of that account.",
    ),
    Cause(
        "model-not-found",
        r"is not a local folder and is not a valid model identifier|RepositoryNotFoundError"
        r"|Can't load the configuration of"
        r"|Incorrect path_or_model_id"
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
        r"HarmonyError: error downloading or loading vocab file|(?:openaipublic|tiktoken|harmony).*(?:[Mm]ax retries"
        r"|[Tt]imed out|[Ff]ailed to (?:download|resolve))",
        "The host cannot fetch the vocabulary of the model's tokenizer, which OpenAI's servers keep.",
        "Give the host a way out (proxy variables in vllm_environment, vllm_ca_bundle), or copy the vocabulary to it,"
        " mount it through vllm_volumes and name its folder as TIKTOKEN_ENCODINGS_BASE in vllm_environment.",
    ),
    Cause(
        "kernels-not-fetched",
        r"Artifact not found locally: |Failed to (?:get|fetch) (?:the )?checksum|[Ff]ailed to download \S*(?:cubin"
        r"|flashinfer)|(?:cubin|flashinfer)"
        r"\S* .*(?:download failed|could not be downloaded)",
        "FlashInfer could not fetch its compiled kernels from NVIDIA's servers.",
        "Give the host a way out (proxy variables in vllm_environment, vllm_ca_bundle), or use an image that holds"
        " flashinfer-cubin (vllm_image).",
    ),
    Cause(
        "revision-not-found",
        r"is not a valid git identifier|RevisionNotFoundError",
        "The hub's repository has no such revision.",
        "Correct revision (tokenizer-revision, code-revision) in vllm_extra_config.",
    ),
    Cause(
        "hub-unreachable",
        r"couldn't connect to '([^']+)'|LocalEntryNotFoundError|Cannot reach https?://\S*huggingface"
        r"|outgoing traffic has been disabled|OfflineModeIsEnabled|Cannot find (?:an appropriate cached snapshot|the"
        r" requested files)",
        "The host cannot reach the hub and has no copy of the model.",
        "Give the host a way out (proxy variables in vllm_environment, vllm_ca_bundle), or copy the model to it and set"
        " vllm_model to the folder.",
    ),
    Cause(
        "certificate-not-trusted",
        r"CERTIFICATE_VERIFY_FAILED",
        "A TLS certificate is not trusted, as behind an inspecting proxy.",
        "Set vllm_ca_bundle to a file with the proxy's certificate authority.",
        rank=HINT,
    ),
    Cause(
        "hub-rate-limit",
        r"429 Client Error|Too Many Requests",
        "The hub limits the rate of requests from here.",
        "Set vllm_hf_token, or start fewer hosts at a time; the download goes on where it stopped.",
        rank=HINT,
    ),
    Cause(
        "name-not-resolved",
        r"(?:Temporary failure in name resolution|Name or service not known|Failed to resolve '([^']+)')",
        "A host name could not be resolved from the container.",
        "Fix the host's DNS, or set vllm_network_mode to host.",
        rank=HINT,
    ),
    Cause(
        "hub-unreachable",
        r"Max retries exceeded with url|(?:ConnectTimeout|ReadTimeout|ConnectError|ProxyError|NewConnectionError)\b"
        r"|Network is unreachable|No route to host",
        "A server on the network, most often the hub, could not be reached from the container.",
        "Give the host a way out (proxy variables in vllm_environment, vllm_ca_bundle), or copy the model to it and set"
        " vllm_model to the folder.",
        rank=HINT,
    ),
    Cause(
        "weights-corrupt",
        r"SafetensorError|Invalid magic number; corrupt file|The state dictionary .* is corrupted"
        r"|Error while deserializing header|MetadataIncompleteBuffer|InvalidHeaderDeserialization"
        r"|HeaderTooLarge|PytorchStreamReader failed|unexpected end of (?:data|file)",
        "A file of the weights is damaged or cut short.",
        "Remove the model's folder under vllm_hf_home (or the file under vllm_model) and fetch it again.",
    ),
    Cause(
        "weights-missing",
        r"Cannot find any model weights with|[Ee]rror no file named|No safetensors (?:files )?found",
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
        r"Model architectures? (\S.*?) (?:(?:are|is) not supported|failed to be inspected|was supported)"
        r"|model type `?(\S+?)`? but Transformers does not recognize this architecture",
        "This vLLM does not know the model's architecture.",
        "Set vllm_version to a release that supports it.",
    ),
    Cause(
        "config-json-missing",
        r"does not appear to have a file named config\.json|(?:No"
        r"|no) config(?:\.json)? (?:file )?found",
        "The model's folder or repository has no config.json.",
        "Correct vllm_model.",
    ),
    Cause(
        "tokenizer-unreadable",
        r"data did not match any variant of untagged enum|Can't load tokenizer for|Couldn't instantiate the backend"
        r" tokenizer|Unable to load vocabulary from file|Tokenizer class \S+ does not exist|expected value at line 1"
        r" column 1|[Ee]rror parsing line .*tokenizer|No tokenizer file found",
        "The model's tokenizer cannot be read: its files are missing, cut short, or newer than this vLLM.",
        "Fetch the model's files again (a file of git-lfs's: git lfs pull in vllm_model), or set vllm_version to a"
        " newer"
        " release.",
    ),
    Cause(
        "config-json-unreadable",
        r"is not a valid JSON file",
        "A JSON file of the model, such as config.json, is damaged or cut short.",
        "Fetch the model's files again, or correct those in the folder of vllm_model.",
    ),
    Cause(
        "config-json-unreadable",
        r"^json\.decoder\.JSONDecodeError: ",
        "vLLM read a text of JSON that is damaged or cut short, most often a file of the model such as config.json.",
        "Look at the evidence; fetch the model's files again, or correct those in the folder of vllm_model.",
        rank=GENERAL,
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
        r"invalid (tool call parser|reasoning parser): (\S+)",
        "This vLLM has no {0} {1}.",
        "Correct tool-call-parser or reasoning-parser in vllm_extra_config, or set vllm_version to a release that has"
        " it.",
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
    Cause(
        "environment-value-refused",
        r"^ValueError: (VLLM_[A-Z_0-9]+) (?:'[^']*' )?(?:must|appears|is set|should|expected|\()",
        "An environment variable has a value that vLLM refuses.",
        "Correct {0} in vllm_environment.",
    ),
    Cause(
        "configuration-refused",
        r"^\s*Value error, (.+?)(?: \[type=|$)",
        "vLLM refuses the configuration: {0}",
        "Correct the option that it names: the variable of that name (vllm_*), or vllm_extra_config.",
        rank=GENERAL,
    ),
    Cause(
        "configuration-refused",
        r"^\s*(Input should be .+?|Unexpected keyword argument|Extra inputs are not permitted) \[type=\w+,"
        r" input_value=(.*?)(?:, input_type=|$)",
        "vLLM refuses a value of its configuration, {1}: {0}.",
        "Correct the option that the line above names: the variable of that name (vllm_*), or vllm_extra_config.",
        rank=GENERAL,
    ),
    Cause(
        "configuration-refused",
        r"^TypeError: Error: (--\S+ requires .+)",
        "vLLM refuses the configuration: {0}",
        "Correct the option that it names in vllm_extra_config.",
        rank=GENERAL,
    ),
    # torch's and Triton's compilers, once nothing above says why
    Cause(
        "compilation-failed",
        r"A compilation subprocess exited unexpectedly|^(?:torch\._(?:inductor|dynamo)\.exc\.\w+|triton\.(?:compiler"
        r"|runtime)\.errors\.\w+|LoweringException"
        r"|BackendCompilerFailed|InductorError|CompilationError|OutOfResources|PTXASError"
        r"|(?:\w+\.)*PassManager::run failed)\b:? ?(.*)",
        "A compiler that vLLM calls at start-up failed: {0}",
        "Set enforce-eager: true in vllm_extra_config, which does without torch's compiler, or another vllm_version.",
        rank=GENERAL,
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
    # What a crash prints that is no error of Python's; a process may also crash because another has failed.
    Cause(
        "segmentation-fault",
        r"Segfault encountered|Segmentation fault|SIGSEGV",
        "One of the server's processes crashed (segmentation fault).",
        "Try another vllm_version, and without LD_PRELOAD and VLLM_* variables in vllm_environment; see dmesg on the"
        " host for Xid lines of the GPU.",
        rank=ECHO,
    ),
    Cause(
        "memory-corrupted",
        r"^(?:free|malloc|realloc|munmap_chunk|malloc_consolidate)\(\): |corrupted size vs\. prev_size"
        r"|double free or corruption|corrupted double-linked list|stack smashing detected|heap corruption",
        "One of the server's processes ended because its memory was corrupted, which is a fault of the software.",
        "Try another vllm_version, and without LD_PRELOAD and VLLM_* variables in vllm_environment.",
        rank=ECHO,
    ),
    *CONTAINER_CAUSES,
    Cause(
        "cuda-error",
        r"(CUDA error: .+|CUBLAS_STATUS_\w+|CUDNN_STATUS_\w+)",
        "The GPU reported: {0}.",
        "See dmesg on the host for Xid errors, and the vLLM issues for this message.",
        rank=HINT,
    ),
)

_FAILED = r"^(?:[\w.]+\.)?[A-Z]\w*(?:Error|Exception): (.+)"
_REFUSED = r"^(?:[\w.]+\.)?(?:ValueError|TypeError|NotImplementedError|AssertionError): (.+)"

# What the place in the sources says of an error that no pattern knows: (file of the innermost frame, cause).
PLACES: tuple[tuple[str, Cause], ...] = (
    (
        r"/vllm/envs\.py$",
        Cause(
            "environment-value-refused",
            _FAILED,
            "An environment variable has a value that vLLM refuses: {0}",
            "Correct it in vllm_environment.",
            GENERAL,
        ),
    ),
    (
        r"/vllm/config/|/vllm/engine/arg_utils\.py$|/vllm/entrypoints/openai/(?:cli_args|api_server)\.py$"
        r"|/vllm/entrypoints/cli/|/vllm/utils/argparse_utils\.py$",
        Cause(
            "configuration-refused",
            _REFUSED,
            "vLLM refuses the configuration: {0}",
            "Correct the option that it names: the variable of that name (vllm_*), or vllm_extra_config.",
            GENERAL,
        ),
    ),
    (
        r"/vllm/model_executor/model_loader/",
        Cause(
            "weights-not-loaded",
            _FAILED,
            "vLLM could not load the model's weights: {0}",
            "Check the files under vllm_model and load-format in vllm_extra_config, or set vllm_version to a newer"
            " release.",
            GENERAL,
        ),
    ),
    (
        r"/vllm/model_executor/layers/quantization/|/compressed_tensors/|/vllm/model_executor/kernels/",
        Cause(
            "quantization-failed",
            _FAILED,
            "vLLM's code for the model's quantization failed: {0}",
            "Set vllm_precision and vllm_tensor_parallel_size to auto, or vllm_version to a newer release.",
            GENERAL,
        ),
    ),
    (
        r"/vllm/v1/attention/|/vllm/attention/|/vllm_flash_attn/",
        Cause(
            "attention-backend-failed",
            _FAILED,
            "vLLM's attention backend failed: {0}",
            "Take attention-backend out of vllm_extra_config (VLLM_ATTENTION_BACKEND out of vllm_environment) or name"
            " another, and set vllm_kv_cache_dtype to auto.",
            GENERAL,
        ),
    ),
    (
        r"/vllm/lora/",
        Cause(
            "lora-refused",
            r"^(?:[\w.]+\.)?(?:ValueError|TypeError|NotImplementedError): (.+)",
            "vLLM refuses a LoRA adapter: {0}",
            "Correct lora-modules, max-lora-rank and max-loras in vllm_extra_config.",
            GENERAL,
        ),
    ),
    (
        r"/vllm/(?:model_executor/models|models|transformers_utils)/",
        Cause(
            "model-code-failed",
            _FAILED,
            "vLLM's code for this model failed: {0}",
            "Set vllm_version to another release, or correct what the message names (in vllm_extra_config hf-overrides,"
            " limit-mm-per-prompt), or the model's files.",
            GENERAL,
        ),
    ),
)

# What is left to say when no error is in the log: which process ended, and not why. That vLLM names no process in
# "Failed core proc(s): {}" says nothing, not even that one was killed.
PROCESS_DIED = Cause(
    "process-died",
    r"(?:Worker|Engine core) proc \S+ died unexpectedly|engine core exited unexpectedly"
    r"|Failed core proc\(s\): \{[^}]*: -(?:4|6|7|9|11)\b",
    "One of the server's processes ended without saying why.",
    "See dmesg on the host for 'Out of memory' and for Xid lines of the GPU. With PYTHONFAULTHANDLER: '1' and"
    " VLLM_LOGGING_LEVEL: DEBUG in vllm_environment the next start says where it ends.",
    ECHO,
)

# Errors of processes that only waited for the one that failed.
WRAPPER = re.compile(
    r"Engine core initialization failed|WorkerProc initialization failed|Engine process failed to start"
    r"|EngineDeadError|Executor failed|died unexpectedly|See root cause above|See stack trace|SystemExit"
    r"|KeyboardInterrupt|EngineCore encountered|EngineCore failed to start|WorkerProc (?:failed|hit an exception)"
    r"|Worker failed with error|for the root cause|Failed core proc|Ninja build failed|ChildFailedError"
    r"|recvValue failed|Broken pipe|Connection (?:reset|closed) by peer|EOFError$|CancelledError|BrokenBarrierError"
    r"|shutting down executor"
    r"|Error in model execution|CalledProcessError: Command '\['ninja'"
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
        "Servers use the host's shared memory (ipc_mode host, the default): make room in /dev/shm, or"
        " enlarge it with mount -o remount,size=64G /dev/shm.",
    ),
    137: Cause(
        "killed",
        "",
        "The server was killed (SIGKILL): by the host's out-of-memory killer, or by someone. The kernel's log does not"
        " tell.",
        "See dmesg for 'Out of memory'; if it is there, give the host more memory or lower what the server takes.",
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
