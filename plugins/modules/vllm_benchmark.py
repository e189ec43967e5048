# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measure a vLLM server with vllm bench serve and judge what was measured."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_benchmark
short_description: Measure a vLLM server with vllm bench serve and judge what was measured
version_added: 0.1.0
author: gpufleet contributors (@gpufleet)
description:
  - Runs C(vllm bench serve) with the recipe's arguments in a throw-away container of the serving image, once or
    more for each concurrency, and reads the server's metrics meanwhile.
  - Judges by the requests answered and failed, never by the program's exit status, which is 0 even if all failed, and
    by the tokens that arrived, as it counts an answer that broke off as answered.
  - Fails when a request failed, answers were cut short, a figure at the highest concurrency is beyond its limit, or a
    figure is worse than that of a stored benchmark of the same GPUs, driver, image, plan and load. What was measured is
    returned all the same.
  - Nothing is installed into the serving container and nothing of the run stays on the host.
options:
  concurrency:
    description:
      - Requests at once at most. Several values yield the curve of throughput against latency.
    type: list
    elements: int
    required: true
  follow_baseline:
    description:
      - Measure at the concurrencies of the stored benchmark that this one is compared with, if there is one, instead of
        O(concurrency). Else nothing can be compared where both are chosen by what the servers can hold.
    type: bool
    default: false
  stored_concurrency:
    description:
      - Concurrencies of each stored benchmark by its key. The action plugin sets it with O(follow_baseline).
    type: dict
    default: {}
  num_prompts:
    description:
      - Requests of one run. Five for each one at once when left out, which reaches a steady state.
    type: int
  input_len:
    description:
      - Tokens of each prompt.
    type: int
    default: 1024
  output_len:
    description:
      - Tokens of each answer.
    type: int
    default: 1024
  max_model_len:
    description:
      - The server's limit for prompt and answer together. A load beyond it is refused at once.
    type: int
  runs:
    description:
      - How often each concurrency is measured. From the second on the noise of a run is known.
    type: int
    default: 1
  goodput:
    description:
      - Limits in milliseconds that a good request keeps, of C(ttft), C(tpot) and C(e2el). Good requests a second
        are then measured, too.
    type: dict
    default: {}
  floors:
    description:
      - The least that figures at the highest concurrency may be, such as C(output_throughput_per_gpu).
    type: dict
    default: {}
  ceilings:
    description:
      - The most that they may be, such as C(median_ttft_ms).
    type: dict
    default: {}
  tokenizer:
    description:
      - The model's tokenizer as the container finds it. That of the O(model_source), or else the model's name,
        when left out.
    type: str
    default: ""
  extra_args:
    description:
      - Further arguments of C(vllm bench serve).
    type: list
    elements: str
    default: []
  hardware:
    description:
      - What the server runs on, C(gpus) (list of names) and C(driver). Part of what makes two benchmarks comparable.
    type: dict
    default: {}
  plan:
    description:
      - What the server was planned to be, C(config), C(tensor_parallel_size), C(precision) and more. Part of what
        makes two benchmarks comparable.
    type: dict
    default: {}
  baseline_dir:
    description:
      - Folder on the controller with stored benchmarks. Empty compares with none.
    type: str
    default: ""
  baseline_for:
    description:
      - Parts of RV(comparable), such as C(image_id) and C(plan), of what the server is to be compared with instead of
        its own kind. With those of what served before, a changed server is held against what it replaces.
    type: dict
    default: {}
  save_baseline:
    description:
      - Store this benchmark in O(baseline_dir), in the place of an older one of the same host and server, unless it
        fails on its own.
    type: bool
    default: false
  tolerance:
    description:
      - Share of a stored figure by which a figure may be worse. Where several servers of a kind are stored, their
        median counts.
    type: float
    default: 0.05
  standard_errors:
    description:
      - Differences of fewer standard errors than these count as noise, which is told from repeated runs and from the
        differences between the servers that are stored. It widens O(tolerance) to at most three times itself.
    type: float
    default: 2
  fail_on_gates:
    description:
      - Fail when a gate failed. Otherwise the task succeeds and C(passed) is false.
    type: bool
    default: true
extends_documentation_fragment:
  - gpufleet.vllm.verify
  - gpufleet.vllm.common.docker
  - gpufleet.vllm.common.progress
notes:
  - The action plugin of the same name compares with the stored benchmark on the controller.
seealso:
  - module: gpufleet.vllm.vllm_accuracy
  - module: gpufleet.vllm.vllm_report
"""

EXAMPLES = r"""
- name: Measure as the recipe does
  gpufleet.vllm.vllm_benchmark:
    image: vllm/vllm-openai:deploy
    concurrency: [512]

- name: Measure a curve, three times each, and fail below 2000 tokens a second and GPU
  gpufleet.vllm.vllm_benchmark:
    image: vllm/vllm-openai:deploy
    concurrency: [1, 8, 32, 128]
    runs: 3
    goodput: {ttft: 2000, tpot: 50}
    floors: {output_throughput_per_gpu: 2000}
    ceilings: {p99_ttft_ms: 10000}
    baseline_dir: baselines
"""

RETURN = r"""
name:
  description: Name of the server.
  returned: success or failed gate
  type: str
  sample: vllm-0
model:
  description: The model that was asked.
  returned: success or failed gate
  type: str
  sample: nvidia/Llama-4-Scout-17B-16E-Instruct-FP8
points:
  description:
    - For each concurrency C(concurrency), C(prompts), C(runs) (the figures of each run) and C(summary) (C(mean)
      and C(std) of each figure over the runs).
    - Figures are named as vllm bench does, C(output_throughput) in tokens a second, C(median_ttft_ms) in milliseconds,
      and C(output_throughput_per_gpu), C(preemptions), C(kv_cache_usage_max) (0 to 1), C(requests_waiting_max).
  returned: success or failed gate
  type: list
  elements: dict
  sample: [{"concurrency": 8, "prompts": 40, "runs": [{"completed": 40, "failed": 0, "output_throughput": 460.6}]}]
gates:
  description: The judgements, each C(kind), C(metric), C(value), C(limit), C(passed) and C(text).
  returned: success or failed gate
  type: list
  elements: dict
  sample: [{"kind": "requests", "metric": "failed", "value": 0, "limit": 0, "passed": true}]
notes:
  description: What a person should know of the figures.
  returned: success or failed gate
  type: list
  elements: str
  sample: ["349 preemptions at concurrency 512: the KV cache does not hold that many requests of this length"]
comparable:
  description: Everything that must be equal for two benchmarks to be comparable.
  returned: success or failed gate
  type: dict
  sample: {"hardware": {"gpus": ["NVIDIA H200"], "driver": "580.159.04"}}
baseline:
  description: C(key) of the stored benchmark, C(found), C(saved) (its path when it was stored), C(date) of the
    found one, C(servers) (of how many servers it has figures) and C(why) (why nothing was compared or stored).
  returned: success or failed gate, by the action plugin
  type: dict
  sample: {"key": "0c37c43dd3a0f8f9", "found": true, "saved": "", "date": "2026-11-22T15:00:00+00:00", "servers": 8}
passed:
  description: Whether every gate passed.
  returned: success or failed gate
  type: bool
  sample: true
command:
  description: The docker run line that repeats the last run by hand.
  returned: success or failed gate
  type: str
  sample: docker run --rm --network host --entrypoint vllm vllm/vllm-openai:deploy bench serve
seconds:
  description: How long all runs took.
  returned: success or failed gate
  type: float
  sample: 35.6
error:
  description:
    - The failure in parts, C(name), C(message), C(remedy), C(evidence) and C(details).
    - Names are V(gates-failed), V(requests-failed) (none was answered), V(server-gone), V(benchmark-failed),
      V(benchmark-too-long), V(job-too-slow), V(image-missing), V(busy), V(name-taken), V(interrupted),
      V(invalid-wishes) and those of M(gpufleet.vllm.vllm_completion).
  returned: failure, or a gate failed
  type: dict
"""

import time
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.module import (
    DOCKER_ARGUMENTS,
    PROGRESS_ARGUMENTS,
    GpufleetModule,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.progress import Progress
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers import jobs
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.client import connect
from ansible_collections.gpufleet.vllm.plugins.module_utils.verify import baseline, benchmark, gates, variables
from ansible_collections.gpufleet.vllm.plugins.module_utils.verify.target import (
    TARGET_ARGUMENTS,
    image_id_of,
    target_of,
)

ARGUMENTS: dict[str, Any] = {
    "concurrency": {"type": "list", "elements": "int", "required": True},
    "follow_baseline": {"type": "bool", "default": False},
    "stored_concurrency": {"type": "dict", "default": {}},
    "num_prompts": {"type": "int"},
    "input_len": {"type": "int", "default": 1024},
    "output_len": {"type": "int", "default": 1024},
    "max_model_len": {"type": "int"},
    "runs": {"type": "int", "default": 1},
    "goodput": {"type": "dict", "default": {}},
    "floors": {"type": "dict", "default": {}},
    "ceilings": {"type": "dict", "default": {}},
    "tokenizer": {"type": "str", "default": "", "no_log": False},
    "extra_args": {"type": "list", "elements": "str", "default": []},
    "hardware": {"type": "dict", "default": {}},
    "plan": {"type": "dict", "default": {}},
    "baseline_dir": {"type": "str", "default": ""},
    "baseline_for": {"type": "dict", "default": {}},
    "save_baseline": {"type": "bool", "default": False},
    "tolerance": {"type": "float", "default": 0.05},
    "standard_errors": {"type": "float", "default": 2},
    "fail_on_gates": {"type": "bool", "default": True},
    **TARGET_ARGUMENTS,
    **DOCKER_ARGUMENTS,
    **PROGRESS_ARGUMENTS,
}


def loads_of(params: dict[str, Any], concurrencies: list[int]) -> list[benchmark.BenchmarkLoad]:
    """Return the loads to measure, from the module's options."""
    tokenizer = params["tokenizer"] or params["model_source"].get("argument", "")
    return [
        benchmark.BenchmarkLoad(
            concurrency=concurrency,
            prompts=benchmark.prompts_for(concurrency, params["num_prompts"]),
            input_len=params["input_len"],
            output_len=params["output_len"],
            tokenizer=tokenizer,
            goodput=params["goodput"],
            extra=tuple(params["extra_args"]),
        )
        for concurrency in sorted(set(concurrencies))
    ]


def comparable_of(params: dict[str, Any], image_id: str, model: str) -> dict[str, Any]:
    """Return everything that must be equal for two benchmarks to be comparable, as the options name it."""
    load = ("input_len", "output_len", "num_prompts", "goodput", "extra_args")
    return {
        "hardware": params["hardware"],
        "image_id": image_id,
        "model": model,
        "plan": params["plan"],
        "load": {name: params[name] for name in load},
    }


def of_baseline(params: dict[str, Any], comparable: dict[str, Any]) -> list[int]:
    """Return the concurrencies of the stored benchmark to measure at; none if those of the options are to be taken."""
    if not params["follow_baseline"] or params["save_baseline"]:
        return []
    key = baseline.key_of({**comparable, **params["baseline_for"]})
    return [int(concurrency) for concurrency in params["stored_concurrency"].get(key, [])]


def work(options: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Measure and judge; return the module's result."""
    started = time.monotonic()
    params = variables.options(options, "vllm_benchmark_", concurrency=variables.some_concurrencies)
    benchmark.check_lengths(params["input_len"], params["output_len"], params["max_model_len"])
    client = connect(params["docker_host"], params["docker_timeout"])
    image_id = image_id_of(client, params["image"])
    target = target_of(params)
    # As the options give it: a key must not change with how they are read here.
    comparable = comparable_of(options, image_id, target.model)
    followed = of_baseline(params, comparable)
    loads = loads_of(params, followed or params["concurrency"])
    with jobs.work_folder(params["work_dir"], f"vllm_benchmark of {target.name}", client) as folder:
        measure = benchmark.Benchmark(
            client,
            target,
            folder,
            timeout=params["timeout"],
            gpus=len(params["hardware"].get("gpus") or []),
            progress=progress,
        )
        points = [measure.point(load, params["runs"]) for load in loads]
    last = measure.job(loads[-1], seed=0, result_name="result.json")
    notes = [note for point in points for note in benchmark.notes(point)]
    if followed:
        notes.insert(0, benchmark.followed_note(followed))
    return {
        "changed": False,
        "name": target.name,
        "model": target.model,
        "points": points,
        "gates": benchmark.judge(points, params["floors"], params["ceilings"], benchmark.tokens_of_answers(loads[-1])),
        "notes": notes,
        "comparable": comparable,
        "command": jobs.docker_line(last, target.all_secrets(), folder, params["docker_host"]),
        "seconds": round(time.monotonic() - started, 1),
    }


def main() -> None:
    """Run the module."""
    module = GpufleetModule(argument_spec=ARGUMENTS)
    module.require("docker", "requests")
    params = module.params

    module.run(lambda: gates.verdict(work(params, Progress(params["progress_file"])), fail=params["fail_on_gates"]))


if __name__ == "__main__":
    main()
