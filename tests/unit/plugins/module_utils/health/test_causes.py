# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one cause of a failed start, on a recording from a real H200 and on the texts that vLLM and Docker print."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.health.causes import CAUSES, EXIT_CAUSES, WRAPPER
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.diagnosis import (
    MOST_CONTEXT_LINES,
    diagnose,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.log_lines import split_line

LOGS = Path(__file__).parents[3] / "data" / "logs"
MESSAGES: list[dict[str, Any]] = json.loads((LOGS.parent / "vllm_messages.json").read_text(encoding="utf-8"))[
    "messages"
]
WRAPPERS = [
    "(APIServer pid=478) Traceback (most recent call last):",
    "(APIServer pid=478) RuntimeError: Engine core initialization failed. See root cause above. Failed: {}",
]

TEXTS = [
    (
        "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`",
        "no-memory-for-kv-cache",
    ),
    (
        "ValueError: To serve at least one request with the models's max seq len (10485760), (960.00 GiB KV cache is"
        " needed, which is larger than the available KV cache memory (19.73 GiB). Based on the available memory, the"
        " estimated maximum model length is 215536.",
        "max-model-len-too-long",
    ),
    (
        "ValueError: To serve at least one request with the model's max seq len (1048576), 96 GiB KV cache is needed",
        "max-model-len-too-long",
    ),
    (
        "ValueError: User-specified max_model_len (65536) is greater than the derived max_model_len"
        " (max_position_embeddings=8192 or model_max_length=None in model's config.json).",
        "max-model-len-beyond-model",
    ),
    (
        "ValueError: Free memory on device (35.51/139.8 GiB) on startup is less than desired GPU memory utilization"
        " (0.92, 128.62 GiB).",
        "gpu-memory-taken",
    ),
    ("ValueError: Free memory on device cuda:0 is less than desired GPU memory utilization", "gpu-memory-taken"),
    (
        "ValueError: Available memory on node 0 (5.1/23.5 GiB) on startup is less than desired CPU memory utilization",
        "cpu-memory-short",
    ),
    ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", "gpu-out-of-memory"),
    (
        "AssertionError: Error in memory profiling. Initial free memory 10, current free memory 20.",
        "gpu-memory-changed",
    ),
    ("OSError: [Errno 28] No space left on device", "disk-full"),
    ("RuntimeError: [enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory", "host-out-of-memory"),
    (
        "ValueError: The quantization method modelopt_fp4 is not supported for the current GPU. Minimum: 100.",
        "precision-not-supported",
    ),
    ("ValueError: Current platform does not support NVFP4", "precision-not-supported"),
    ("ValueError: No valid NVFP4 GEMM backend found", "precision-not-supported"),
    ("ValueError: vLLM CUTLASS FP8 MoE backend is disabled for this configuration.", "moe-backend-not-supported"),
    ("ValueError: FLASHINFER_TRTLLM does not support the deployment configuration", "moe-backend-not-supported"),
    ("NotImplementedError: fp8 KV cache is not supported on this CPU", "kv-cache-dtype-not-supported"),
    ("ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0.", "dtype-not-supported"),
    ("RuntimeError: Could not find nvcc and default cuda_home='/usr/local/cuda' doesn't exist", "compiler-missing"),
    ("RuntimeError: Failed to find C compiler. Please specify via CC environment variable", "compiler-missing"),
    (
        "CUDA error: no kernel image is available for execution on the device",
        "kernel-image-missing",
    ),
    (
        "nvidia-container-cli: requirement error: unsatisfied condition: cuda>=12.9, please update your driver",
        "driver-too-old",
    ),
    ("RuntimeError: The NVIDIA driver on your system is too old (found version 12020).", "driver-too-old"),
    ('could not select device driver "" with capabilities: [[gpu]]', "container-toolkit-missing"),
    ('could not select device driver "nvidia" with capabilities: [[gpu]]', "container-toolkit-missing"),
    ("Unknown runtime specified nvidia: unknown or invalid runtime name: nvidia", "container-toolkit-missing"),
    ("Unknown runtime specified nvidia", "container-toolkit-missing"),
    ('could not select device driver "cdi" with capabilities: []', "cdi-device-missing"),
    ("CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=7", "cdi-device-missing"),
    ("nvidia-container-cli: device error: GPU-1234: unknown device: unknown", "gpu-unknown"),
    (
        'error gathering device information while adding custom device "/dev/nvidia7": no such file or directory',
        "gpu-unknown",
    ),
    ("nvidia-container-cli: initialization error: nvml error: driver not loaded", "driver-libraries-missing"),
    (
        "RuntimeError: Unexpected error from cudaGetDeviceCount(). Error 802: system not yet initialized",
        "fabric-manager-not-running",
    ),
    (
        "RuntimeError: Unexpected error from cudaGetDeviceCount(). Error 803: system has unsupported display driver",
        "driver-mismatch",
    ),
    ("Error 804: forward compatibility was attempted on non supported HW", "driver-mismatch"),
    ("Failed to initialize NVML: Unknown Error", "gpu-lost-by-container"),
    ("RuntimeError: No CUDA GPUs are available", "no-gpu-in-container"),
    ("RuntimeError: Failed to infer device type, please set the environment variable", "no-gpu-in-container"),
    ("Fatal Python error: Illegal instruction", "illegal-instruction"),
    (
        "ValueError: World size (8) is larger than the number of available GPUs (4) in this node.",
        "too-few-gpus",
    ),
    (
        "ValueError: Total number of attention heads (40) must be divisible by tensor parallel size (3).",
        "tensor-parallel-size-does-not-divide",
    ),
    (
        "RuntimeError: NCCL error: ncclSystemError: System call (e.g. socket, malloc) or external library call failed",
        "nccl-error",
    ),
    ("Error while creating shared memory segment /dev/shm/nccl-a1b2c3 (size 33030528)", "shared-memory-too-small"),
    ("OSError: You are trying to access a gated repo.", "model-gated"),
    ("RuntimeError: FlashAttention only supports Ampere GPUs or newer.", "attention-backend-not-supported"),
    ("RuntimeError: DeepGEMM MegaMoE requires SM100 GPUs", "gpu-not-capable"),
    ("ValueError: nvfp4_per_token online quantization requires a Blackwell (SM100) GPU.", "gpu-not-capable"),
    ("AssertionError: dynamic_causal is only supported on SM90 (Hopper).", "gpu-not-capable"),
    ("ptxas fatal   : Unsupported .version 8.8; current version is '8.7'", "compiler-missing"),
    ("gcc: fatal error: cannot execute 'cc1plus': execvp: No such file or directory", "compiler-missing"),
    ("OSError: Incorrect path_or_model_id: '/models/x'. Please provide either the path", "model-not-found"),
    ("NVMLError_LibRmVersionMismatch: RM has detected an NVML/RM version mismatch.", "driver-mismatch"),
    ("RuntimeError: Found no NVIDIA driver on your system. Please check", "driver-libraries-missing"),
    ("nvidia-container-cli: detection error: driver rpc error: timed out", "container-toolkit-failed"),
    (
        'OCI runtime create failed: exec: "nvidia-container-runtime-hook": executable file not found in $PATH',
        "container-toolkit-missing",
    ),
    ("OCI runtime create failed: runc create failed: unable to start container process: no space", "container-refused"),
    ("RuntimeError: [SymmDeviceMemory] Device does not support multicasting.", "multicast-not-supported"),
    ("json.decoder.JSONDecodeError: Expecting value: line 1 column 1 (char 0)", "config-json-unreadable"),
    ("RuntimeError: CUDA error: unspecified launch failure", "cuda-error"),
    (
        "OSError: meta-llama/Nope is not a local folder and is not a valid model identifier listed on",
        "model-not-found",
    ),
    ("requests.exceptions.HTTPError: 401 Client Error: Unauthorized for url: https://hub.example.com/x", "hub-refused"),
    ("requests.exceptions.HTTPError: 403 Client Error: Forbidden for url: https://hub.example.com/x", "hub-refused"),
    ("OSError: We couldn't connect to 'https://hub.example.com' to load the files", "hub-unreachable"),
    ("huggingface_hub.errors.HfHubHTTPError: 429 Client Error: Too Many Requests for url", "hub-rate-limit"),
    (
        "ssl.SSLCertVerificationError: [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed",
        "certificate-not-trusted",
    ),
    ("safetensors_rust.SafetensorError: Error while deserializing header: MetadataIncompleteBuffer", "weights-corrupt"),
    ("RuntimeError: Cannot find any model weights with `/models/x`", "weights-missing"),
    (
        "ValueError: Following weights were not initialized from checkpoint: {'lm_head.weight'}",
        "weights-do-not-fit-model",
    ),
    ("ValueError: Model architectures ['NewForCausalLM'] are not supported for now.", "architecture-not-supported"),
    ("OSError: /models/x does not appear to have a file named config.json.", "config-json-missing"),
    ("ValueError: ... Please pass the argument `trust_remote_code=True` to allow custom code", "remote-code-refused"),
    ("vllm: error: unrecognized arguments: --swap-space 4", "flag-unknown"),
    ("vllm serve: error: argument --kv-cache-dtype: invalid choice: 'fp9'", "flag-value-refused"),
    ("yaml.scanner.ScannerError: mapping values are not allowed here", "config-file-unreadable"),
    (
        "ValueError: max_num_batched_tokens (1024) is smaller than max_model_len (8192).",
        "max-num-batched-tokens-too-small",
    ),
    (
        "ValueError: max_num_batched_tokens (128) must be greater than or equal to max_num_seqs (256).",
        "max-num-batched-tokens-too-small",
    ),
    ("OSError: [Errno 98] Address already in use", "port-in-use"),
    (
        "driver failed programming external connectivity: Bind for 0.0.0.0:8000 failed: port is already allocated",
        "port-in-use",
    ),
    ("exec /usr/local/bin/vllm: exec format error", "image-wrong-architecture"),
    ('exec: "vllm": executable file not found in $PATH', "image-not-vllm"),
    ("No such image: vllm/vllm-openai:deploy", "image-missing"),
    ("invalid mount config for type bind: bind source path does not exist: /srv/models", "mount-missing"),
    ("PermissionError: [Errno 13] Permission denied: '/root/.cache/vllm'", "permission-denied"),
    ("Error parsing config: [Errno 13] Permission denied: '/root/.cache', retrying 1 of 2", "permission-denied"),
    ("FileNotFoundError: [Errno 2] No such file or directory: '/templates/x.jinja'", "file-missing"),
    ("OSError: libnuma.so.1: cannot open shared object file: No such file or directory", "library-missing"),
    ("ImportError: /x/_C.abi3.so: undefined symbol: _ZN3c106detail", "library-mismatch"),
    ("ModuleNotFoundError: No module named 'flashinfer'", "python-package-missing"),
    (
        "torch._inductor.exc.InductorError: InvalidCxxCompiler: No working C++ compiler found in"
        " torch._inductor.config.cpp.cxx: (None, 'g++')",
        "compiler-missing",
    ),
    ("KeyError: 'getpwuid(): uid not found: 1000'", "user-unknown"),
    (
        "subprocess.CalledProcessError: Command '['/sbin/ldconfig', '-p']' returned non-zero exit status 1.",
        "driver-libraries-not-listed",
    ),
    ("ValueError: Unknown vLLM environment variable detected: VLLM_NOPE", "environment-variable-unknown"),
    ("torch.AcceleratorError: CUDA error: an illegal memory access was encountered", "cuda-error"),
    (
        "gpufleet-watchdog: /health does not answer, for 315 s. The server is ended so that it is started again.",
        "ended-by-watchdog",
    ),
]


@pytest.mark.parametrize(
    ("text", "name"), TEXTS, ids=[f"{name}-{number}" for number, (_text, name) in enumerate(TEXTS)]
)
def test_a_cause_is_found_between_prefix_and_wrappers(text: str, name: str) -> None:
    log = [
        "(APIServer pid=478) INFO 11-22 08:15:00 [api_utils.py:345] vLLM API server version 0.26.0",
        "(EngineCore_DP0 pid=773) ERROR 11-22 08:15:43 [core.py:1330] EngineCore failed to start.",
        f"(EngineCore_DP0 pid=773) ERROR 11-22 08:15:43 [core.py:1330] {text}",
        *WRAPPERS,
    ]
    error = diagnose(log, exit_code=1, what="The server vllm-0 did not start")
    assert error.name == name
    assert error.evidence == text[:400]
    assert error.message.startswith("The server vllm-0 did not start (exit code 1). ")
    assert "{" not in error.message + error.remedy


def said_by_vllm(messages: list[dict[str, Any]]) -> set[str]:
    """Return every text that was found for these messages in vLLM's sources."""
    return {place["text"] for message in messages for places in message["found"].values() for place in places}


def test_every_entry_of_the_table_is_tried_above() -> None:
    texts = [text for text, _name in TEXTS] + [f"ValueError: {text}" for text in said_by_vllm(MESSAGES)]
    reported = json.loads((LOGS.parent / "reported_messages.json").read_text(encoding="utf-8"))
    texts += [split_line(line)[1] for message in reported for line in message["log"]]
    untried = [cause.name for cause in CAUSES if not any(re.search(cause.pattern, text) for text in texts)]
    # These have no text of their own among those; each is tried by its pattern here.
    others = {
        "attention-backend-not-supported": "ValueError: Selected backend X is not valid for this configuration.",
        "chat-template-missing": "ValueError: The supplied chat template (x.jinja) looks like a file path",
        "combination-refused": "ValueError: Currently, async scheduling is only supported with EAGLE",
        "environment-value-refused": "ValueError: Invalid value 'X' for VLLM_ATTENTION_BACKEND",
        "gpu-fell-off": "NVRM: GPU has fallen off the bus.",
        "name-not-resolved": "socket.gaierror: [Errno -3] Temporary failure in name resolution",
        "too-few-gpus": "torch.AcceleratorError: CUDA error: invalid device ordinal",
    }
    assert sorted(set(untried) - set(others)) == []
    for name, text in others.items():
        assert diagnose([text]).name == name


# What each pattern that was found in vLLM's sources means. Of the patterns that others print, a whole line is added.
MESSAGE_NAMES = {
    "No available memory for the cache blocks": "no-memory-for-kv-cache",
    "To serve at least one request with the model(s's|'s) max seq len": "max-model-len-too-long",
    "Free memory on device .* is less than desired GPU memory utilization": "gpu-memory-taken",
    r"Available memory on node \S+ .* is less than desired CPU memory utilization": "cpu-memory-short",
    r"quantization method \S+ is not supported for the current GPU": "precision-not-supported",
    "does not support NVFP4": "precision-not-supported",
    "No valid NVFP4 GEMM backend": "precision-not-supported",
    "backend is disabled for this configuration": "moe-backend-not-supported",
    "support(s)? the deployment configuration": ("moe-backend-not-supported", "no-moe-backend"),
    "World size .* is larger than the number of": "too-few-gpus",
    r"more than the \S+ GiB of CPU memory reserved": "cpu-memory-share-too-small",
    "on kv cache allocation is less than requested memory for kv": "cpu-memory-short",
    "cannot be larger than the number of available GPUs": "too-few-gpus",
    r"DP adjusted local rank \S+ is out of bounds|[Ll]ocal_?[Ww]orld_?[Ss]ize .*less than or equal to the number of"
    " visible devices": "too-few-gpus",
    r"User-specified max_model_len \((\d+)\) is greater than the derived max_model_len": "max-model-len-beyond-model",
    "Cannot auto-fit max_model_len: not enough GPU memory": "no-memory-for-kv-cache",
    r"attention heads \S+ must be divisible by tensor parallel size": "tensor-parallel-size-does-not-divide",
    r"max_num_batched_tokens \S+ must be greater than or equal to max_num_seqs": "max-num-batched-tokens-too-small",
    r"max_num_batched_tokens \S+ is smaller than max_model_len": "max-num-batched-tokens-too-small",
    "CUDA out of memory occurred when warming up sampler with": "gpu-out-of-memory",
    r"Error in memory profiling\. Initial free memory": "gpu-memory-changed",
    "Cannot find any model weights with": "weights-missing",
    "weights were not initialized from checkpoint": "weights-do-not-fit-model",
    "Invalid repository ID or local directory specified": "model-not-found",
    "Could not detect config format for no config file found": "config-json-missing",
    "Model architectures .* are not supported for now": "architecture-not-supported",
    "No valid attention backend found for": "attention-backend-not-supported",
    r"Selected backend \S+ is not valid for this configuration": "attention-backend-not-supported",
    "Bfloat16 is only supported on GPUs with compute capability of at least": "dtype-not-supported",
    "Failed to infer device type": "no-gpu-in-container",
    r"Quantization method specified in the model config \S+ does not match the quantization method"
    " specified": "quantization-mismatch",
    r"Found VLLM_USE_FLASHINFER_MOE_FP\d+=1, but no FlashInfer \S+ MoE backend supports the"
    " configuration": "moe-backend-not-supported",
    r"moe_backend='\S*' is not supported for \S+ MoE": "moe-backend-not-supported",
    "FP8 KV cache (not yet supported|is unsupported)|not compatible with FP8 KV cache": "kv-cache-dtype-not-supported",
    "Did not receive response from front-end process within": "front-end-lost",
    "Timed out waiting for engine(s| core processes)": "engine-start-timeout",
    r"Worker proc \S+ died unexpectedly|Engine core proc \S+ died unexpectedly": "process-died",
    "Config file must be of a yaml/yml type|No config file specified": "config-file-unreadable",
    "Unknown vLLM environment variable detected": "environment-variable-unknown",
}
LINES_OF_OTHERS = {
    "You are trying to access a gated repo": ("OSError: You are trying to access a gated repo.", "model-gated"),
    "40[13] Client Error": ("requests.exceptions.HTTPError: 401 Client Error: Unauthorized", "hub-refused"),
    "is not a local folder and is not a valid model identifier": (
        "OSError: org/x is not a local folder and is not a valid model identifier listed on the hub",
        "model-not-found",
    ),
    "couldn't connect to '": ("OSError: We couldn't connect to 'https://hub.example.com' to load", "hub-unreachable"),
    "429 Client Error": ("requests.exceptions.HTTPError: 429 Client Error: Too Many Requests", "hub-rate-limit"),
    "unsatisfied condition: cuda>=": ("requirement error: unsatisfied condition: cuda>=12.9", "driver-too-old"),
    r'could not select device driver "" with capabilities: \[\[gpu\]\]': (
        'could not select device driver "" with capabilities: [[gpu]]',
        "container-toolkit-missing",
    ),
    "Error 80[34]": ("RuntimeError: Error 803: system has unsupported display driver", "driver-mismatch"),
    "Error 802": ("RuntimeError: Error 802: system not yet initialized", "fabric-manager-not-running"),
    "Failed to initialize NVML: Unknown Error": ("Failed to initialize NVML: Unknown Error", "gpu-lost-by-container"),
    "/dev/shm/nccl": ("Error while creating shared memory segment /dev/shm/nccl-a", "shared-memory-too-small"),
    "ncclSystemError": ("RuntimeError: NCCL error: ncclSystemError: System call failed", "nccl-error"),
    "unrecognized arguments:": ("vllm: error: unrecognized arguments: --swap-space", "flag-unknown"),
    "Address already in use": ("OSError: [Errno 98] Address already in use", "port-in-use"),
    "Illegal instruction": ("Fatal Python error: Illegal instruction", "illegal-instruction"),
}
# Lines that are no cause: those of processes that waited, and a part of a message that stands above.
WRAPPER_MESSAGES = ("Engine core initialization failed", "WorkerProc initialization failed")
PARTS = (r"estimated maximum model length is (\d+)",)


def test_every_message_has_a_name() -> None:
    named = {*MESSAGE_NAMES, *LINES_OF_OTHERS, *WRAPPER_MESSAGES, *PARTS}
    assert {message["pattern"] for message in MESSAGES} == named


@pytest.mark.parametrize("pattern", MESSAGE_NAMES, ids=lambda pattern: pattern[:40])
def test_what_vllm_says_is_recognised_in_every_version(pattern: str) -> None:
    wanted = MESSAGE_NAMES[pattern]
    names = (wanted,) if isinstance(wanted, str) else wanted
    told = set()
    for text in said_by_vllm([message for message in MESSAGES if message["pattern"] == pattern]):
        log = [
            "(EngineCore pid=8) ERROR 11-22 08:15:43 [core.py:1330] EngineCore failed to start.",
            *f"(EngineCore pid=8) ERROR 11-22 08:15:43 [core.py:1330] ValueError: {text}".splitlines(),
            *WRAPPERS,
            "(APIServer pid=1) ERROR 11-22 08:15:44 [x.py:1] Engine core proc EngineCore_DP0 died unexpectedly",
        ]
        error = diagnose(log, exit_code=1)
        told.add(error.name)
        assert error.name in names, f"{error.name}: {text}"
        assert "{" not in error.message + error.remedy
    assert told == set(names)


@pytest.mark.parametrize("pattern", LINES_OF_OTHERS)
def test_what_others_say_is_recognised(pattern: str) -> None:
    line, name = LINES_OF_OTHERS[pattern]
    assert re.search(pattern, line)
    assert diagnose([line, *WRAPPERS]).name == name


@pytest.mark.parametrize("pattern", WRAPPER_MESSAGES)
def test_wrappers_are_no_cause(pattern: str) -> None:
    assert WRAPPER.search(pattern)
    error = diagnose([f"RuntimeError: {pattern}", "vllm.NovelError: the moon is full"])
    assert (error.name, error.evidence) == ("unknown-failure", "vllm.NovelError: the moon is full")


def test_a_port_that_is_tried_again_is_not_in_use() -> None:
    assert diagnose(["Address already in use. Retrying with a new port."]).name == "unknown-failure"


def test_a_killed_process_is_told_only_when_no_other_error_is_there() -> None:
    killed = "ERROR 11-22 08:15:44 [x.py:1] Worker proc VllmWorker-0 died unexpectedly, shutting down executor."
    numa = "[W1122 13:36:35.945111661 utils.cpp:41] Warning: numa_migrate_pages failed. errno: 1"
    assert diagnose([numa, killed, *WRAPPERS], exit_code=1).name == "process-died"
    assert diagnose(["vllm.NovelError: the moon is full", killed, *WRAPPERS]).name == "unknown-failure"
    # Nor does a warning of torch hide what an exit code tells.
    assert diagnose([numa], exit_code=132).name == "illegal-instruction"


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("Worker proc VllmWorker-0 died unexpectedly (exit code: -9), shutting down executor.", "killed"),
        ("RuntimeError: Engine core initialization failed. Failed core proc(s): {'EngineCore_DP0': -9}", "killed"),
        (
            "RuntimeError: Engine core initialization failed. Failed core proc(s): {'EngineCore': -4}",
            "illegal-instruction",
        ),
        ("RuntimeError: Engine core initialization failed. Failed core proc(s): {'EngineCore': 1}", "unknown-failure"),
        ("RuntimeError: Engine core initialization failed. Failed core proc(s): {}", "process-died"),
    ],
)
def test_the_signal_that_ended_a_process_is_told(line: str, name: str) -> None:
    assert diagnose([line], exit_code=1).name == name


def test_the_engine_without_a_compiler_is_told_how_to_do_without() -> None:
    log = (LOGS / "engine-dead-container-alive-cpu-0.32.log").read_text(encoding="utf-8").splitlines()
    error = diagnose(log)
    assert error.name == "compiler-missing"
    assert error.evidence.startswith("torch._inductor.exc.InductorError: InvalidCxxCompiler: No working C++ compiler")
    assert "enforce-eager" in error.remedy


def test_the_recorded_failure_has_one_cause_far_above_its_end() -> None:
    error = diagnose((LOGS / "start-refused-moe-backend.log").read_text().splitlines(), exit_code=1)
    assert error.name == "moe-backend-not-supported"
    assert error.evidence == "ValueError: vLLM CUTLASS FP8 MoE backend is disabled for this configuration."
    assert "vllm_extra_config" in error.remedy


@pytest.mark.parametrize(
    "name",
    ["start-cpu-0.32.log", "start-cold-triton-moe.log", "start-cold-marlin-moe.log", "start-warm-triton-moe.log"],
)
def test_nothing_in_a_good_start_looks_like_a_cause(name: str) -> None:
    assert diagnose((LOGS / name).read_text().splitlines()).name == "unknown-failure"


def test_the_number_to_use_is_in_the_remedy() -> None:
    text = next(text for text, name in TEXTS if name == "max-model-len-too-long" and "215536" in text)
    assert diagnose([text]).remedy == "Set vllm_max_model_len to 215536 or less."


def test_the_earlier_of_two_causes_wins() -> None:
    lines = ["RuntimeError: No CUDA GPUs are available", "OSError: [Errno 98] Address already in use"]
    assert diagnose(lines).name == "no-gpu-in-container"
    assert diagnose(reversed(lines)).name == "port-in-use"


def test_what_was_only_warned_of_counts_when_nothing_stronger_is_there() -> None:
    warned = "WARNING 11-22 08:15:43 [cpu.py:1] libnuma.so.1: cannot open shared object file"
    assert diagnose([warned, *WRAPPERS]).name == "library-missing"
    assert diagnose([warned, "OSError: [Errno 98] Address already in use"]).name == "port-in-use"
    informed = "INFO 11-22 08:15:43 [x.py:1] ran before: No CUDA GPUs are available"
    assert diagnose([informed]).name == "unknown-failure"


def test_a_rate_limit_that_passed_is_not_the_cause() -> None:
    lines = ["429 Client Error: Too Many Requests", "OSError: [Errno 28] No space left on device"]
    assert diagnose(lines).name == "disk-full"


def test_the_kernels_out_of_memory_kill_is_said_whatever_the_log_holds() -> None:
    error = diagnose(["RuntimeError: No CUDA GPUs are available"], exit_code=137, out_of_memory=True)
    assert (error.name, error.evidence) == ("out-of-memory-kill", "OOMKilled: true")


@pytest.mark.parametrize("code", sorted(EXIT_CAUSES))
def test_an_exit_code_tells_what_the_log_does_not(code: int) -> None:
    error = diagnose(["INFO 11-22 08:15:43 [x.py:1] loading"], exit_code=code)
    assert error.name == EXIT_CAUSES[code].name
    assert f"exit code {code}" in error.evidence


def test_an_unknown_failure_shows_its_first_error_with_few_lines_around() -> None:
    lines = [f"INFO 11-22 08:15:43 [x.py:1] line {number}" for number in range(50)]
    lines += ["Traceback (most recent call last):", '  File "x.py", line 1', "vllm.NovelError: the moon is full"]
    lines += ["After", *WRAPPERS, *[f"more {number}" for number in range(300)]]
    error = diagnose(lines, exit_code=3)
    assert (error.name, error.evidence) == ("unknown-failure", "vllm.NovelError: the moon is full")
    assert len(error.details["log"]) <= MOST_CONTEXT_LINES
    assert "After" in error.details["log"]
    assert error.as_text().count("\n") < MOST_CONTEXT_LINES + 5


def test_an_engine_that_died_while_serving_is_named() -> None:
    lines = [
        "(EngineCore pid=8) ERROR 11-22 08:15:43 [core.py:1512] EngineCore encountered a fatal error.",
        "(EngineCore pid=8) ERROR 11-22 08:15:43 [core.py:1512] vllm.NovelError: the moon is full",
        "(APIServer pid=1) ERROR 11-22 08:15:43 [async_llm.py:704] vllm.v1.engine.exceptions.EngineDeadError: x",
    ]
    error = diagnose(lines, exit_code=0, what="The server vllm-0 died")
    assert (error.name, error.evidence) == ("engine-died", "vllm.NovelError: the moon is full")


def test_an_empty_log_is_said_to_be_empty() -> None:
    assert diagnose([], exit_code=1).evidence == "the log is empty"


@pytest.mark.parametrize(
    ("line", "level", "text"),
    [
        ("(EngineCore pid=773) ERROR 11-22 08:15:43 [core.py:1330] ValueError: x", "ERROR", "ValueError: x"),
        ("(EngineCore_DP0 pid=1) (Worker_TP0 pid=2) WARNING 11-22 08:15:43 [a.py:1] y", "WARNING", "y"),
        ("(VllmWorker rank=0 pid=3) INFO 11-22 08:15:43 [a.py:1] z", "INFO", "z"),
        ("ERROR 11-22 08:15:43 engine.py:1] old", "ERROR", "engine.py:1] old"),
        ("(in parentheses, not a process) text", "", "(in parentheses, not a process) text"),
        ("plain\r\n", "", "plain"),
        ("[W1122 13:36:35.945 utils.cpp:41] Warning: numa failed", "WARNING", "Warning: numa failed"),
        ("W1122 14:09:30.606000 7 torch/_library/triton.py:53] no Triton", "WARNING", "no Triton"),
    ],
)
def test_what_vllm_puts_in_front_is_taken_off(line: str, level: str, text: str) -> None:
    assert split_line(line) == (level, text)


# What the CPU build 0.32 printed when its EngineCore was killed with -9 while it served.
ENGINE_KILLED = """
INFO:     127.0.0.1:58572 - "GET /metrics HTTP/1.1" 200 OK
(Worker pid=68) INFO 11-22 17:46:25 [multiproc_executor.py:843] Parent process exited, terminating worker queues
(APIServer pid=7) WARNING 11-22 17:46:25 [core_client.py:817] [shutdown] MPClient: engine core exited unexpectedly; starting cleanup
(APIServer pid=7) INFO 11-22 17:46:25 [core_client.py:777] [shutdown] MPClient: complete
(APIServer pid=7) ERROR 11-22 17:46:25 [async_llm.py:906] AsyncLLM output_handler failed.
(APIServer pid=7) ERROR 11-22 17:46:25 [async_llm.py:906] Traceback (most recent call last):
(APIServer pid=7) ERROR 11-22 17:46:25 [async_llm.py:906]     raise self._format_exception(outputs) from None
(APIServer pid=7) ERROR 11-22 17:46:25 [async_llm.py:906] vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See stack trace (above) for the root cause.
INFO:     Shutting down
INFO:     Finished server process [7]
"""  # noqa: E501 - as vLLM prints it


def test_an_engine_killed_while_it_served_is_told_though_the_server_ended_by_itself() -> None:
    error = diagnose(ENGINE_KILLED.strip().splitlines(), exit_code=0, what="The server vllm-0 died")
    assert (error.name, "engine core exited unexpectedly" in error.evidence) == ("process-died", True)


ENGINE = "(EngineCore_DP0 pid=773) ERROR 11-22 08:15:43 [core.py:1330] "
WORKER = "(EngineCore_DP0 pid=773) (Worker_TP1 pid=802) ERROR 11-22 08:15:43 [multiproc_executor.py:671] "


def test_a_process_that_vllm_names_no_code_of_was_not_killed() -> None:
    error = diagnose(
        ["RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"], exit_code=1
    )
    assert error.name == "process-died"
    assert "out-of-memory" not in error.as_text()
    wait = "(EngineCore pid=7) ValueError: 1 is 2"
    assert diagnose([wait, "RuntimeError: Failed core proc(s): {}"], exit_code=1).name == "unknown-failure"
    died = diagnose(["Worker proc VllmWorker-0 died unexpectedly (exit code: None), shutting down executor."])
    assert died.name == "process-died"
    assert "give the host more memory" not in died.as_text()


def test_memory_is_blamed_on_the_kernels_word_or_on_exit_code_137_alone() -> None:
    died = "Worker proc VllmWorker-0 died unexpectedly (exit code: None), shutting down executor."
    kill = "oom-kill:constraint=CONSTRAINT_NONE,task_memcg=/docker/x,task=python3,pid=7,uid=0"
    assert diagnose([died], memory_kill=kill).name == "host-out-of-memory"
    assert diagnose(["INFO 11-22 08:15:43 [x.py:1] loading"], exit_code=137).name == "killed"
    assert diagnose(["RuntimeError: No CUDA GPUs are available"], exit_code=137).name == "no-gpu-in-container"


def test_the_cause_nearer_to_the_root_wins_and_the_other_is_also_seen() -> None:
    error = diagnose(
        [
            f"{WORKER}torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:3690, remote process",
            f"{ENGINE}torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
            "!!!!!!! Segfault encountered !!!!!!!",
            *WRAPPERS,
        ]
    )
    assert error.name == "gpu-out-of-memory"
    assert "Also seen: nccl-error, segmentation-fault." in error.message
    assert [seen["name"] for seen in error.details["also_seen"]] == ["nccl-error", "segmentation-fault"]
    assert error.details["also_seen"][0]["line"].startswith("torch.distributed.DistBackendError: NCCL error")


def test_the_source_code_that_a_traceback_shows_proves_nothing() -> None:
    lines = [
        f"{ENGINE}Traceback (most recent call last):",
        f'{ENGINE}  File "/usr/lib/python3.12/site-packages/vllm/x.py", line 7, in run',
        f'{ENGINE}    raise ValueError("No available memory for the cache blocks")',
        f"{ENGINE}    ^^^^^^^^^^^^^^^^^",
        f"{ENGINE}vllm.NovelError: the moon is full",
    ]
    error = diagnose(lines)
    assert (error.name, error.evidence) == ("unknown-failure", "vllm.NovelError: the moon is full")


def test_the_place_of_an_error_tells_what_its_text_does_not() -> None:
    def raised(file: str, text: str) -> str:
        frame = f'{ENGINE}  File "/usr/local/lib/python3.12/dist-packages/{file}", line 7, in check'
        return diagnose(
            [f"{ENGINE}Traceback (most recent call last):", frame, ENGINE + "    check()", ENGINE + text]
        ).name

    assert raised("vllm/config/scheduler.py", "ValueError: the moon is full") == "configuration-refused"
    assert raised("vllm/model_executor/models/moon.py", "ValueError: the moon is full") == "model-code-failed"
    # The same place, and a text that says more.
    assert raised("vllm/config/model.py", "ValueError: Total number of attention heads (5) must be divisible by tensor"
                  " parallel size (2).") == "tensor-parallel-size-does-not-divide"  # fmt: skip
    assert raised("elsewhere/moon.py", "ValueError: the moon is full") == "unknown-failure"


def test_an_unknown_failure_shows_the_first_error_of_the_deepest_process() -> None:
    lines = [
        "(APIServer pid=1) ERROR 11-22 08:15:40 [x.py:1] vllm.EarlyError: a wave breaks",
        *[f"{ENGINE}waits {number}" for number in range(20)],
        f"{WORKER}vllm.NovelError: the moon is full",
        f"{WORKER}vllm.LaterError: the tide is out",
        f"{ENGINE}vllm.WaitError: no worker answers",
        *WRAPPERS,
        *[f"(APIServer pid=1) last words {number}" for number in range(20)],
    ]
    error = diagnose(lines, exit_code=1)
    assert (error.name, error.evidence) == ("unknown-failure", "vllm.NovelError: the moon is full")
    assert {"vllm.LaterError: the tide is out", "vllm.WaitError: no worker answers"} <= set(error.details["log"])
    assert not any("last words" in line for line in error.details["log"])


def test_an_unknown_failure_shows_a_compilers_own_line() -> None:
    lines = [
        f"{ENGINE}RuntimeError: Ninja build failed. Ninja output:",
        f"{ENGINE}[1/3] c++ -MMD -c sampling.cc",
        f"{ENGINE}/x/include/moon.cuh:21:10: error: expected a ';'",
        f"{ENGINE}ninja: build stopped: subcommand failed.",
        *WRAPPERS,
    ]
    error = diagnose(lines, exit_code=1)
    assert (error.name, error.evidence) == ("unknown-failure", "/x/include/moon.cuh:21:10: error: expected a ';'")


def test_a_hint_does_not_hide_that_a_process_was_killed() -> None:
    hint = "'(MaxRetryError(...Max retries exceeded with url: /api))' thrown while requesting HEAD; Retrying in 1s"
    killed = "Worker proc VllmWorker-0 died unexpectedly (exit code: -9), shutting down executor."
    assert diagnose([hint]).name == "hub-unreachable"
    assert diagnose([hint, killed]).name == "killed"


def test_the_remedy_for_an_unwritable_home_is_another_home() -> None:
    for place in ("/.triton", "/.triton/cache", "/home/user/.cache/vllm", "/root/.config/vllm"):
        error = diagnose([f"PermissionError: [Errno 13] Permission denied: '{place}'"])
        assert error.name == "permission-denied"
        assert "Set HOME in vllm_environment" in error.remedy, place
    for place in ("/root/.cache/huggingface/hub", "/root/.triton/cache", "/srv/models/x/config.json"):
        error = diagnose([f"PermissionError: [Errno 13] Permission denied: '{place}'"])
        assert "vllm_hf_home" in error.remedy, place
