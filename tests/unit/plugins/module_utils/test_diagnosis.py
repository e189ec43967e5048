# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one cause of a failed start, on a recording from a real H200 and on the texts that vLLM and Docker print."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.diagnosis import (
    CAUSES,
    EXIT_CAUSES,
    MOST_CONTEXT_LINES,
    diagnose,
    split_line,
)

LOGS = Path(__file__).parents[2] / "data" / "logs"
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
    ("FileNotFoundError: [Errno 2] No such file or directory: '/templates/x.jinja'", "file-missing"),
    ("OSError: libnuma.so.1: cannot open shared object file: No such file or directory", "library-missing"),
    ("ImportError: /x/_C.abi3.so: undefined symbol: _ZN3c106detail", "library-mismatch"),
    ("ModuleNotFoundError: No module named 'flashinfer'", "python-package-missing"),
    ("torch.AcceleratorError: CUDA error: an illegal memory access was encountered", "cuda-error"),
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


def test_every_entry_of_the_table_is_tried_above() -> None:
    untried = [cause.name for cause in CAUSES if not any(re.search(cause.pattern, text) for text, _name in TEXTS)]
    # These have no text of their own among the above; each is tried by its pattern here.
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
    assert diagnose([TEXTS[1][0]]).remedy == "Set vllm_max_model_len to 215536 or less."


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
    ],
)
def test_what_vllm_puts_in_front_is_taken_off(line: str, level: str, text: str) -> None:
    assert split_line(line) == (level, text)
