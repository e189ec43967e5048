# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which options of C(vllm serve), and environment variables like them, a user may set: a decision on each.

A server of this collection is one container on one host. It is reached by HTTP at vllm_host and vllm_port, it is ready
when it has completed a text, and its door (C(in_container/door.py)) is a middleware of vLLM's own front end. What
contradicts that is refused before a server is touched. A test asks for a decision on every option of every release.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ALLOW, WARN, REFUSE = "allow", "warn", "refuse"


@dataclass(frozen=True)
class Decision:
    """What is decided on some options or environment variables.

    Attributes:
        kind: ALLOW, WARN or REFUSE.
        names: theirs, divided by white space; the field of an option as C(option.field).
        reason: why; of one that is not allowed it goes on after the name and the value.
        instead: what to do instead of one that is not allowed.
        harmless: pattern of the values that are allowed all the same.
        beside: options beside which one is allowed all the same.
    """

    kind: str
    names: str
    reason: str
    instead: str = ""
    harmless: str = "false"
    beside: tuple[str, ...] = ()

    def holds(self, value: Any, others: Mapping[str, Any]) -> bool:
        """Return whether it counts for a value beside the other options."""
        harmless = re.fullmatch(self.harmless, str(value).strip(), re.IGNORECASE)
        return self.kind != ALLOW and not harmless and not any(option in others for option in self.beside)

    def text(self, name: str, value: Any) -> str:
        """Return what is said of one that is not allowed."""
        shown = str(value).lower() if isinstance(value, bool) else value
        return f"{name}: {shown} {self.reason}; {self.instead}"


ONE_SERVER = (
    "a server is one engine on one host: set vllm_replicas for more of them, vllm_tensor_parallel_size for more GPUs"
)
TLS = (
    "leave it out and let the router do TLS (router_tls, router_certificate), or keep vllm_host at 127.0.0.1 behind a"
    " proxy of your own"
)
SILENT = "leave it out, or raise vllm_phase_timeouts where starts take long"
PAIR = "make sure that such a proxy asks this server; the router of this collection sends it whole requests"

OPTIONS = (
    Decision(
        REFUSE,
        "uds",
        "has the server listen on a socket file, where neither its health check nor a router reaches it",
        "set vllm_host and vllm_port",
    ),
    Decision(
        REFUSE,
        "ssl-keyfile ssl-certfile ssl-ca-certs ssl-cert-reqs ssl-ciphers enable-ssl-refresh",
        "is for a server that speaks TLS, and its health check and the router speak plain HTTP to it",
        TLS,
    ),
    Decision(
        REFUSE,
        "grpc grpc-port",
        "is for a server that speaks gRPC, and clients, health check and router speak HTTP to it",
        "leave it out",
    ),
    Decision(
        REFUSE,
        "root-path",
        "changes which paths ask for the API key (with / none does), and the router asks for them without a prefix",
        "leave it out and let the proxy before the router take the prefix away",
    ),
    Decision(
        REFUSE,
        "headless",
        "starts an engine without an API server, so that nothing answers",
        "leave it out; " + ONE_SERVER,
    ),
    Decision(
        REFUSE,
        "api-server-count",
        "starts an engine without an API server, so that nothing answers",
        "set 1 or more, or leave it out",
        harmless=r"\+?0*[1-9]\d*",
    ),
    Decision(REFUSE, "help", "prints a text and ends", "leave it out"),
    Decision(
        REFUSE,
        "nnodes pipeline-parallel-size prefill-context-parallel-size",
        "needs more hosts or GPUs than the server is given",
        ONE_SERVER,
        harmless="1",
    ),
    Decision(REFUSE, "node-rank", "is for one engine on several hosts", ONE_SERVER, harmless="0"),
    Decision(REFUSE, "master-addr master-port", "is for one engine on several hosts", ONE_SERVER),
    Decision(
        REFUSE,
        "data-parallel-size-local data-parallel-rank data-parallel-start-rank data-parallel-address"
        " data-parallel-rpc-port data-parallel-backend data-parallel-external-lb data-parallel-hybrid-lb"
        " data-parallel-multi-port-external-lb data-parallel-supervisor-port dp-supervisor-probe-failure-threshold"
        " dp-supervisor-probe-interval-s dp-supervisor-probe-timeout-s enable-elastic-ep elastic-ep-max-dp-size",
        "is for a service of several engines (data parallelism)",
        ONE_SERVER,
    ),
    Decision(
        REFUSE,
        "distributed-executor-backend",
        "waits for torchrun to start the other processes, which nothing does here",
        "set mp, uni or ray, or leave it out",
        harmless="(?!external_launcher).*",
    ),
    Decision(
        REFUSE,
        "tokens-only",
        "leaves the tokenizer out, so that no completion of a text is answered",
        "leave it out",
    ),
    Decision(
        REFUSE,
        "skip-tokenizer-init",
        "leaves the tokenizer out, so that no completion of a text is answered",
        "leave it out; models without texts need it beside runner, convert or io-processor-plugin",
        beside=("runner", "convert", "task", "io-processor-plugin"),
    ),
    Decision(
        REFUSE,
        "mm-encoder-only",
        "leaves the language model out, so that no completion is answered",
        "leave it out; the encoder's half of a pair needs it beside ec-transfer-config",
        beside=("ec-transfer-config",),
    ),
    Decision(
        WARN,
        "log-level logging-config.log_level",
        "hides the lines of the log by which a start is followed",
        SILENT,
        harmless="info|debug|notset",
    ),
    Decision(
        WARN,
        "log-config-file logging-config.pylogging_config_file logging-config.formatter",
        "may hide or change the lines of the log by which a start is followed and a failure is told",
        "keep vLLM's messages of level INFO on stdout or stderr",
        harmless="text",
    ),
    Decision(
        WARN,
        "logging-config.configure_logging",
        "hides the lines of the log by which a start is followed",
        SILENT,
        harmless="true|1",
    ),
    Decision(
        WARN,
        "disable-log-stats",
        "takes the engine's counters out of /metrics",
        "without them neither load nor a hanging engine is seen",
    ),
    Decision(
        WARN,
        "kv-transfer-config.kv_role",
        "is one half of a pair, which a proxy has to send its part of each request",
        PAIR,
        harmless="kv_both",
    ),
    Decision(
        WARN,
        "ec-transfer-config.ec_role",
        "is one half of a pair, which a proxy has to send its part of each request",
        PAIR,
        harmless="ec_both",
    ),
    Decision(
        ALLOW,
        """
        allow-credentials allowed-headers allowed-methods allowed-origins anthropic-disabled-thinking-effort
        chat-template chat-template-content-format cohere-format cohere-is-reasoning-model
        default-chat-template-kwargs disable-fastapi-docs enable-auto-tool-choice enable-force-include-usage
        enable-offline-docs enable-per-request-metrics enable-prompt-tokens-details enable-request-id-headers
        enable-return-routed-experts enable-scale-out enable-server-load-tracking enable-tokenizer-info-endpoint
        exclude-tools-when-tool-choice-none fingerprint-mode fingerprint-value h11-max-header-count
        h11-max-incomplete-event-size interleave-mm-strings io-processor-plugin max-logprobs
        per-request-spec-decode-metrics reasoning-config reasoning-effort-map reasoning-parser reasoning-parser-plugin
        renderer-num-workers response-role return-sampling-mask return-tokens-as-token-ids sse-keep-alive-interval
        stream-interval structured-outputs-config tool-call-parser tool-parser-plugin tool-server tool-strict-level
        trust-request-chat-template trust-request-mm-kwargs
        """,
        "what HTTP answers are made of; where the server listens stays",
    ),
    Decision(
        ALLOW,
        "middleware disable-frontend-multiprocessing fail-on-environ-validation",
        "the door stays the outermost middleware, as it is named last",
    ),
    Decision(
        ALLOW,
        """
        aggregate-engine-logging collect-detailed-traces cudagraph-metrics custom-histogram-buckets
        disable-access-log-for-endpoints disable-log-requests disable-uvicorn-access-log enable-layerwise-nvtx-tracing
        enable-log-deltas enable-log-outputs enable-log-requests enable-logging-iteration-details enable-mfu-metrics
        enable-trace-replay jit-monitor-mode jit-monitor-verbose kv-cache-metrics kv-cache-metrics-sample
        log-error-stack logging-config max-log-len otlp-traces-endpoint profiler-config ray-workers-use-nsight
        show-hidden-metrics-for-version use-tqdm-on-load uvicorn-log-level watchdog-config
        """,
        "what is logged, measured or profiled beside the lines by which a start is followed",
    ),
    Decision(
        ALLOW,
        """
        allow-deprecated-quantization allowed-local-media-path allowed-media-domains code-revision config-format
        convert diffusion-config download-dir generation-config hf-config-path hf-overrides ignore-patterns
        load-format logits-processor-pattern logits-processors logprobs-mode model-class-overrides model-impl
        model-loader-extra-config override-attention-dtype override-generation-config pooler-config
        pt-load-map-location quantization quantization-config revision runner safetensors-load-strategy
        safetensors-prefetch-block-size safetensors-prefetch-num-threads seed task tokenizer tokenizer-mode
        tokenizer-revision trust-remote-code use-fp64-gumbel watermark watermark-config weight-transfer-config
        """,
        "how the model is loaded and sampled",
    ),
    Decision(
        ALLOW,
        """
        default-mm-loras disable-chunked-mm-input disable-mm-preprocessor-cache enable-lora
        enable-mixed-moe-lora-format enable-mm-embeds enable-moe-shared-loras enable-multimodal-encoder-data-parallel
        enable-prompt-embeds enable-tower-connector-lora fully-sharded-loras language-model-only limit-mm-per-prompt
        lora-dtype lora-modules lora-target-modules max-cpu-loras max-lora-cls-labels max-lora-rank max-loras
        media-io-kwargs mm-device-do-normalize mm-encoder-attn-backend mm-encoder-attn-dtype mm-encoder-fp8-scale-path
        mm-encoder-fp8-scale-save-margin mm-encoder-fp8-scale-save-path mm-encoder-tp-mode mm-hasher-algorithm
        mm-ipc-gpu-memory-gb mm-processor-cache-gb mm-processor-cache-type mm-processor-device mm-processor-kwargs
        mm-shm-cache-max-object-size-mb mm-tensor-ipc skip-mm-profiling specialize-active-lora video-pruning-method
        video-pruning-rate
        """,
        "adapters, images, sound and films within one server",
    ),
    Decision(
        ALLOW,
        """
        block-size calculate-kv-scales cp-kv-cache-interleave-size cpu-offload-gb cpu-offload-params
        disable-hybrid-kv-cache-manager ec-manager-config ec-transfer-config enable-cumem-allocator
        enable-mamba-cache-stochastic-rounding enable-mamba-shared-prefix-checkpoint enable-prefix-caching
        enable-shm-tensor-arena enable-sleep-mode engram-config kv-cache-dtype-skip-layers kv-cache-memory-bytes
        kv-events-config kv-offloading-backend kv-offloading-size kv-sharing-fast-prefill kv-transfer-config
        mamba-block-size mamba-cache-dtype mamba-cache-mode mamba-cache-philox-rounds mamba-ssm-cache-dtype
        num-gpu-blocks-override offload-backend offload-group-size offload-num-in-group offload-params
        offload-prefetch-step prefix-cache-retention-interval prefix-caching-hash-algo prefix-match-unit
        replayssm-buffer-len sleep-mode-backend sleep-mode-offload-cudagraph sleep-preserve-parameter-names swap-space
        use-replayssm
        """,
        "memory and caches of one server; what does not fit ends the start with a cause of its own",
    ),
    Decision(
        ALLOW,
        """
        additional-config async-scheduling aux-output-config disable-cascade-attn disable-sliding-window
        enable-batch-sharded-sampling enable-chunked-prefill enable-flash-late-interaction
        long-prefill-token-threshold long-prefill-token-threshold-adaptive max-long-partial-prefills
        max-num-active-seqs max-num-partial-prefills max-num-queued-reqs max-num-queued-tokens
        max-num-scheduled-tokens prefill-schedule-interval scheduler-cls scheduler-reserve-full-isl scheduling-policy
        spec-method spec-model spec-tokens speculative-config swa-bounded-replay use-gpu-for-pooling-score
        """,
        "how requests are scheduled and guessed ahead",
    ),
    Decision(
        ALLOW,
        """
        attention-backend attention-config compilation-config cuda-graph-sizes cudagraph-capture-sizes
        enable-bf16x3-router-gemm enable-flashinfer-autotune enforce-eager gdn-prefill-backend ir-op-priority
        kda-decode-backend kda-prefill-backend kernel-config linear-backend mamba-backend mamba-ssu-algorithm
        max-cudagraph-capture-size moe-backend monokernel optimization-level performance-mode
        sparse-indexer-topk-backend
        """,
        "kernels and graphs",
    ),
    Decision(
        ALLOW,
        """
        all2all-backend cpu-distributed-timeout-seconds dbo-decode-token-threshold dbo-prefill-token-threshold
        dcp-comm-backend dcp-kv-cache-interleave-size dcp-q-replicate decode-context-parallel-size
        disable-custom-all-reduce disable-nccl-for-dp-synchronization distributed-timeout-seconds dp-sync-interval
        enable-dbo enable-ep-weight-filter enable-eplb enable-expert-parallel enable-fault-tolerance enable-hc-sp
        enable-nccl-comm-suspend eplb-config expert-placement-strategy fault-tolerance-config
        max-parallel-loading-workers numa-bind numa-bind-cpus numa-bind-nodes ubatch-size worker-cls
        worker-extension-cls
        """,
        "how the GPUs of one server share its work; their number stays",
    ),
)

# Of vllm_environment and vllm_secret_environment. Those that are not here are allowed.
ENVIRONMENT = (
    Decision(
        REFUSE,
        "VLLM_PORT",
        "is where vLLM's processes reach each other, and not the port of the API",
        "set vllm_port for that, and leave it out",
    ),
    Decision(
        REFUSE,
        "VLLM_HOST_IP",
        "is where vLLM's processes reach each other, all in one container, and not the address of the API",
        "set vllm_host for that, and leave it out",
        harmless=r"127(\.\d+){3}|::1|localhost|",
    ),
    Decision(
        REFUSE,
        "VLLM_DP_SIZE",
        "is for a service of several engines (data parallelism)",
        ONE_SERVER,
        harmless="1",
    ),
    Decision(
        REFUSE,
        "VLLM_DP_RANK VLLM_DP_RANK_LOCAL",
        "is for a service of several engines (data parallelism)",
        ONE_SERVER,
        harmless="0",
    ),
    Decision(
        REFUSE,
        "VLLM_DP_MASTER_IP VLLM_DP_MASTER_PORT",
        "is for a service of several engines (data parallelism)",
        ONE_SERVER,
    ),
    Decision(
        REFUSE,
        "VLLM_USE_RUST_FRONTEND",
        "puts a front end before the engine that loads no middleware, so that a drain cannot close the server's door",
        "leave it out",
        harmless="0|false|",
    ),
    Decision(
        REFUSE,
        "CUDA_VISIBLE_DEVICES NVIDIA_VISIBLE_DEVICES",
        "counts GPUs in another way than the plan, which gives each server its own",
        "set vllm_gpu_selection",
    ),
    Decision(
        WARN,
        "VLLM_LOGGING_LEVEL",
        "hides the lines of the log by which a start is followed",
        SILENT,
        harmless="info|debug|notset|",
    ),
    Decision(
        WARN,
        "VLLM_CONFIGURE_LOGGING",
        "hides the lines of the log by which a start is followed",
        SILENT,
        harmless="1",
    ),
    Decision(
        WARN,
        "VLLM_LOGGING_STREAM",
        "takes the lines out of the container's log by which a start is followed",
        SILENT,
        harmless=r"ext://sys\.std(out|err)",
    ),
    Decision(
        WARN,
        "VLLM_LOGGING_CONFIG_PATH",
        "may hide or change the lines of the log by which a start is followed and a failure is told",
        "keep vLLM's messages of level INFO on stdout or stderr",
        harmless="",
    ),
    Decision(
        WARN,
        "VLLM_SERVER_DEV_MODE",
        "opens paths without a key that stop the server, empty its caches or run code in it",
        "never where others reach vllm_host and vllm_port",
        harmless="0|false|",
    ),
)

# Short names, and one that is long. A file of options has no place for the short ones, so the whole names are written.
ALIASES = {
    "ac": "attention-config",
    "asc": "api-server-count",
    "cc": "compilation-config",
    "dc": "diffusion-config",
    "dcp": "decode-context-parallel-size",
    "device-memory-utilization": "gpu-memory-utilization",
    "dp": "data-parallel-size",
    "dpa": "data-parallel-address",
    "dpb": "data-parallel-backend",
    "dpe": "data-parallel-external-lb",
    "dph": "data-parallel-hybrid-lb",
    "dpl": "data-parallel-size-local",
    "dpm": "data-parallel-multi-port-external-lb",
    "dpn": "data-parallel-rank",
    "dpp": "data-parallel-rpc-port",
    "dpr": "data-parallel-start-rank",
    "ep": "enable-expert-parallel",
    "n": "nnodes",
    "pcp": "prefill-context-parallel-size",
    "pp": "pipeline-parallel-size",
    "q": "quantization",
    "r": "node-rank",
    "sc": "speculative-config",
    "tp": "tensor-parallel-size",
}
# Switches of which vLLM has no form that turns them off; they are off by default.
WITHOUT_NEGATIVE = frozenset(
    {
        "aggregate-engine-logging",
        "data-parallel-multi-port-external-lb",
        "disable-log-stats",
        "disable-mm-preprocessor-cache",
        "enable-multimodal-encoder-data-parallel",
        "grpc",
        "headless",
    }
)
# Options that take a list as one text of JSON; others take several values.
JSON_LISTS = frozenset({"allowed-headers", "allowed-methods", "allowed-origins", "custom-histogram-buckets"})

BY_OPTION = {name: decision for decision in OPTIONS for name in decision.names.split()}
BY_VARIABLE = {name: decision for decision in ENVIRONMENT for name in decision.names.split()}
