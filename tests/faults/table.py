# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The faults that test_faults.py provokes: how each comes about, what the user sees, and the state afterwards.

The page docs/docsite/rst/faults.rst is made from this table by tools/faults_page.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

# Where a fault strikes: the deployment that serves under load all the while, or one of its own beside it.
SERVING, OWN = "serving", "own"

# The state afterwards: name -> what it means, as the page says it. state.py checks each.
UNTOUCHED = "untouched"
PUT_BACK = "put back"
NOTHING = "nothing"
RESTARTED = "restarted"
FINISHED = "finished"
STATES = {
    UNTOUCHED: "The old server was not touched: it answered every request.",
    PUT_BACK: "The old server was put back, as it was, and answers.",
    NOTHING: "Nothing is left of the server that failed.",
    RESTARTED: "The same server runs again and answers; the next run changes nothing.",
    FINISHED: "The next run finished what was begun: the new server answers, nothing else is left.",
}

DUMMY = {"load-format": "dummy"}
BACK = "was put back and answers again."


@dataclasses.dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        name: of the test case.
        what: how it comes about, as the page says it.
        error: the name of the error that the user sees; empty where the play does not fail, or not by an error of ours.
        says: a part of what the user sees, word for word.
        after: the state afterwards, one of STATES.
        on: SERVING or OWN.
        how: the function of provocations.py that provokes it.
        wishes: variables of the deployment.
        replayed: the server is a stand-in that prints what vLLM prints and exits as vLLM does: the fault needs a GPU.
        proof: a part of the error's evidence, word for word, that tells this fault from others of its name.
        phase: the phase of the start in which it failed; empty where that does not matter.
        or_else: another C(error) with its C(says) that the user may see instead, as chance will have it.
        cure: variables that do what the error's remedy says; with them the same deployment serves.
        stops: whether the serving server is stopped by it, so that the requests refused and lost are measured.
    """

    name: str
    what: str
    error: str
    says: str
    after: str
    on: str = OWN
    how: str = "deploy"
    wishes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    replayed: bool = False
    proof: str = ""
    phase: str = ""
    or_else: tuple[str, str] = ("", "")
    cure: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def told(self) -> list[tuple[str, str]]:
        """Return what the user may see: the name of the error, and a part of the text."""
        return [(self.error, self.says), *([self.or_else] if any(self.or_else) else [])]

    @property
    def stops(self) -> bool:
        """Whether the server that is under load stops for a while: requests are then counted and published."""
        return self.on == SERVING and self.after != UNTOUCHED


FAULTS: tuple[Fault, ...] = (
    # A change that cannot work, seen before the server is touched.
    Fault(
        "flag-unknown",
        "A flag that this vLLM does not have, in ``vllm_extra_config``",
        "config-refused",
        "it has no option no-such-flag. No server was touched.",
        UNTOUCHED,
        SERVING,
        wishes={"vllm_extra_config": {**DUMMY, "no-such-flag": 1}},
    ),
    Fault(
        "flag-value-refused",
        "A value that this vLLM refuses",
        "config-refused",
        "argument --scheduling-policy: invalid choice: 'fairest'",
        UNTOUCHED,
        SERVING,
        wishes={"vllm_extra_config": {**DUMMY, "scheduling-policy": "fairest"}},
    ),
    Fault(
        "template-error",
        "A variable that refers to one that is not defined",
        "",
        "'seats_of_this_host' is undefined",
        UNTOUCHED,
        SERVING,
        wishes={"vllm_extra_config": {**DUMMY, "max-num-seqs": "{{ seats_of_this_host }}"}},
    ),
    Fault(
        "port-taken",
        "Another program listens at the port that the server should move to",
        "port-in-use",
        "holds it",
        UNTOUCHED,
        SERVING,
        how="take_port",
    ),
    Fault(
        "model-missing",
        "The model's folder is not on the host",
        "no-model-folder",
        "/nowhere/at/all",
        UNTOUCHED,
        SERVING,
        wishes={"vllm_model": "/nowhere/at/all"},
    ),
    Fault(
        "new-weights-corrupt",
        "A file of the new model's weights was cut short while it was copied",
        "weights-corrupt",
        "model.safetensors has ",
        UNTOUCHED,
        SERVING,
        how="truncate_weights",
        wishes={"vllm_extra_config": {}},
    ),
    Fault(
        "image-gone",
        "The image was removed from the host, and it is not to be pulled",
        "image-missing",
        "The image gpufleet-faults/gone:1 is not on this host",
        UNTOUCHED,
        SERVING,
        wishes={
            "vllm_image": "gpufleet-faults/gone",
            "vllm_image_tag": "1",
            "vllm_version": "0.32.0",
            "vllm_image_source": "present",
        },
    ),
    Fault(
        "image-wrong-architecture",
        "The image on the host was made for another processor architecture",
        "platform-missing",
        "linux/",
        UNTOUCHED,
        SERVING,
        how="use_foreign_image",
    ),
    Fault(
        "log-rotated-away",
        "The server's log was cut to nothing on the host, as logrotate's ``copytruncate`` does",
        "",
        "1 of 1 replicas serving",
        UNTOUCHED,
        SERVING,
        how="truncate_log",
    ),
    # A new server that cannot start; nothing served before.
    Fault(
        "disk-full",
        "No room on the disk of ``vllm_config_dir``",
        "write-failed",
        "No space left on device",
        NOTHING,
        how="fill_disk",
    ),
    Fault(
        "memory-taken",
        "The host has less free memory than the server must take",
        "cpu-memory-short",
        "The host has less free memory than the server is allowed to take.",
        NOTHING,
        wishes={"vllm_gpu_memory_utilization": 0.99},
        cure={"vllm_gpu_memory_utilization": 0.1},
    ),
    Fault(
        "max-model-len-too-long",
        "One request of ``vllm_max_model_len`` does not fit the KV cache",
        "max-model-len-too-long",
        "One request of max-model-len 8192 tokens does not fit the KV cache.",
        NOTHING,
        wishes={"vllm_max_model_len": 8192, "vllm_extra_config": {**DUMMY, "kv-cache-memory-bytes": 1024 * 1024}},
    ),
    Fault(
        "weights-corrupt",
        "A file of weights was cut short while it was copied",
        "weights-corrupt",
        "model.safetensors",
        NOTHING,
        how="truncate_weights",
        wishes={"vllm_extra_config": {}},
    ),
    Fault(
        "permission-denied",
        "The image's user may not enter the folder with the caches, where the model's own code is to be copied",
        "permission-denied",
        "The server's user may not enter /root",
        NOTHING,
        how="use_image_of_another_user",
        wishes={"vllm_extra_config": {**DUMMY, "trust-remote-code": True}},
        proof="Permission denied: '/root/.cache",
    ),
    Fault(
        "engine-killed-while-loading",
        "The engine's process is killed while the model is loaded",
        "killed",
        "The server was killed (SIGKILL)",
        NOTHING,
        how="kill_loading_engine",
        phase="weights",
        # vLLM may look before the process that has ended can be asked what ended it.
        or_else=("process-died", "One of the server's processes ended without saying why"),
    ),
    Fault(
        "engine-crashed-while-loading",
        "The engine's process crashes (segmentation fault) while the model is loaded",
        "segmentation-fault",
        "(segmentation fault)",
        NOTHING,
        how="crash_loading_engine",
        phase="weights",
        or_else=("process-died", "One of the server's processes ended without saying why"),
    ),
    Fault(
        "threads-refused",
        "The container may have so few processes and threads that vLLM cannot start its own",
        "threads-refused",
        "The server was refused another thread or process",
        NOTHING,
        how="limit_processes",
    ),
    Fault(
        "configuration-refused",
        "Options that do not go together, which only vLLM's start notices: tools without a parser for them",
        "configuration-refused",
        "vLLM refuses the configuration: --enable-auto-tool-choice requires --tool-call-parser",
        NOTHING,
        wishes={"vllm_extra_config": {**DUMMY, "enable-auto-tool-choice": True}},
        cure={"vllm_extra_config": {**DUMMY, "enable-auto-tool-choice": True, "tool-call-parser": "pythonic"}},
    ),
    Fault(
        "out-of-memory",
        "The kernel kills the server because its container reached the memory limit",
        "out-of-memory-kill",
        "The kernel killed the server because its container reached the memory limit.",
        NOTHING,
        how="limit_memory",
    ),
    Fault(
        "start-stalled",
        "The starting server's processes hang: no line, no processor time, for ``vllm_stall_timeout``",
        "start-stalled",
        "has printed nothing and used neither processor, network nor disk",
        NOTHING,
        how="freeze_start",
        wishes={"vllm_stall_timeout": 15},
    ),
    Fault(
        "health-never-good",
        "The server is up, but ``/health`` does not turn good within ``vllm_ready_timeout``: a stand-in answers 500",
        "not-ready-in-time",
        "was not ready within 30 s (vllm_ready_timeout); it was in the phase 'serving', at started",
        NOTHING,
        how="answer_badly",
        wishes={"vllm_ready_timeout": 30},
        phase="serving",
    ),
    # What needs a GPU to happen.
    Fault(
        "no-memory-for-kv-cache",
        "Weights and activations leave no memory for the KV cache",
        "no-memory-for-kv-cache",
        "The weights and activations leave no memory for the KV cache.",
        NOTHING,
        how="replay_message",
        wishes={"message": "No available memory for the cache blocks"},
        replayed=True,
    ),
    Fault(
        "gpu-memory-taken",
        "Another process holds the GPU's memory",
        "gpu-memory-taken",
        "something else holds its memory",
        NOTHING,
        how="replay_message",
        wishes={"message": "Free memory on device .* is less than desired GPU memory utilization"},
        replayed=True,
    ),
    Fault(
        "moe-backend-refused",
        "A forced MoE backend cannot run the model on this GPU (recorded on an H200)",
        "moe-backend-not-supported",
        "The MoE backend that was asked for cannot run this model on this GPU.",
        NOTHING,
        how="replay_recording",
        wishes={"recording": "start-refused-moe-backend.log"},
        replayed=True,
    ),
    Fault(
        "precision-not-supported",
        "The GPU cannot run the model's precision",
        "precision-not-supported",
        "This GPU cannot run the model's precision.",
        NOTHING,
        how="replay_line",
        wishes={
            "line": "ValueError: Current platform does not support NVFP4 quantization. Please use Blackwell and above."
        },
        replayed=True,
    ),
    Fault(
        "fabric-manager-stopped",
        "nvidia-fabricmanager does not run on a host with NVSwitches",
        "fabric-manager-not-running",
        "The GPUs' NVSwitch fabric is not initialised.",
        NOTHING,
        how="replay_line",
        wishes={
            "line": "RuntimeError: Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before"
            " calling NumCudaDevices() that might have already set an error? Error 802: system not yet initialized"
        },
        replayed=True,
    ),
    Fault(
        "custom-all-reduce",
        "The GPUs cannot share memory for all-reduce, because PyTorch's allocator uses expandable segments",
        "custom-all-reduce-failed",
        "The GPUs could not share memory for vLLM's own all-reduce",
        NOTHING,
        how="replay_line",
        wishes={"line": "Failed: Cuda error /workspace/csrc/custom_all_reduce.cuh:164 'invalid argument'"},
        replayed=True,
    ),
    Fault(
        "weights-not-divisible",
        "Weights that are quantized in blocks cannot be split over so many GPUs",
        "tensor-parallel-size-does-not-divide",
        "The model's layers cannot be split over so many GPUs",
        NOTHING,
        how="replay_line",
        wishes={
            "line": "ValueError: The output_size of gate's and up's weight = 192 is not divisible by weight"
            " quantization block_n = 128."
        },
        replayed=True,
    ),
    Fault(
        "header-missing",
        "FlashInfer compiles a kernel at start-up, and the image lacks one of CUDA's headers",
        "compiler-missing",
        "lacks a part that they need: curand_kernel.h",
        NOTHING,
        how="replay_line",
        wishes={"line": "sampling.cuh:21:10: fatal error: curand_kernel.h: No such file or directory"},
        replayed=True,
    ),
    Fault(
        "compile-cache-damaged",
        "What torch had compiled for an earlier start is damaged",
        "compile-cache-damaged",
        "is damaged, or of another vLLM",
        NOTHING,
        how="replay_line",
        wishes={"line": "AssertionError: Expected tensors only, but got: <class 'int'>"},
        replayed=True,
    ),
    Fault(
        "model-gated",
        "The hub wants a token for the model, or its licence accepted",
        "model-gated",
        "The hub gives this model only to accounts that accepted its licence.",
        NOTHING,
        how="replay_line",
        wishes={
            "line": "OSError: You are trying to access a gated repo. Make sure to have access to it at"
            " https://huggingface.co/meta-llama/Llama-4-Scout-17B-16E-Instruct."
        },
        replayed=True,
    ),
    # What stops the server that serves.
    Fault(
        "server-killed",
        "The server's process is killed (``kill -9``)",
        "",
        "",
        RESTARTED,
        SERVING,
        how="kill_server",
    ),
    Fault(
        "new-version-fails",
        "The new version's image cannot start: its libraries do not belong together",
        "library-mismatch",
        BACK,
        PUT_BACK,
        SERVING,
        how="use_broken_image",
    ),
    Fault(
        "new-server-out-of-memory",
        "The kernel kills the new server because its container reached the memory limit",
        "out-of-memory-kill",
        BACK,
        PUT_BACK,
        SERVING,
        how="limit_memory",
        wishes={"vllm_max_num_seqs": 5},
    ),
    Fault(
        "new-weights-cut-later",
        "A file of the new model's weights is cut short after it was checked, before the new server reads it",
        "weights-corrupt",
        BACK,
        PUT_BACK,
        SERVING,
        how="truncate_weights_later",
        wishes={"vllm_extra_config": {}},
        phase="weights",
    ),
    Fault(
        "new-server-no-kv-cache",
        "Weights and activations of the new server leave no memory for the KV cache (replayed)",
        "no-memory-for-kv-cache",
        BACK,
        PUT_BACK,
        SERVING,
        how="replay_message",
        wishes={"message": "No available memory for the cache blocks"},
        replayed=True,
    ),
    Fault(
        "cache-disk-full",
        "The new server cannot keep what it compiled: the disk of ``vllm_cache_dir`` is full (replayed)",
        "disk-full",
        BACK,
        PUT_BACK,
        SERVING,
        how="fill_cache",
        wishes={"recording": "start-cold-triton-moe.log"},
        replayed=True,
        proof="OSError: [Errno 28] No space left on device",
    ),
    Fault(
        "play-killed-early",
        "The play and its module on the host are killed before the old server is stopped, while the configuration is"
        " checked",
        "",
        "",
        FINISHED,
        SERVING,
        how="kill_play_that_checks",
        wishes={"vllm_max_num_seqs": 7},
    ),
    Fault(
        "play-killed-while-draining",
        "The play and its module are killed while the old server finishes its requests and turns new ones away",
        "",
        "takes requests again: its drain was interrupted",
        FINISHED,
        SERVING,
        how="kill_play_that_drains",
        wishes={"vllm_max_num_seqs": 5},
    ),
    Fault(
        "play-killed",
        "The play and its module are killed while the new server starts",
        "",
        "",
        FINISHED,
        SERVING,
        how="kill_play",
        wishes={"vllm_max_num_seqs": 6},
    ),
    Fault(
        "docker-restarted",
        "The Docker daemon is restarted, as an update of it does",
        "",
        "",
        RESTARTED,
        SERVING,
        how="restart_docker",
    ),
)
