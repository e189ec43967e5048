# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measures a server with the image's own `vllm bench serve`, and reads the server's metrics meanwhile."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.progress import Progress
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers import jobs
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.api import RECIPE_PROMPT, Server
from ansible_collections.gpufleet.vllm.plugins.module_utils.verify import gates, results
from ansible_collections.gpufleet.vllm.plugins.module_utils.verify.load_watch import LoadWatch
from ansible_collections.gpufleet.vllm.plugins.module_utils.verify.target import Target

if TYPE_CHECKING:
    from docker import DockerClient

PERCENTILES = "90,95,99"
RESULT_FOLDER = "/results"
# The recipe measures with five times as many prompts as there are at once, to reach a steady state.
PROMPTS_PER_SLOT = 5
# Options of `vllm bench serve` with which answers may have other lengths than --random-output-len, besides all that end
# in -output-len.
OTHER_LENGTHS = (
    *("--backend", "--dataset-name", "--dataset-path", "--endpoint", "--endpoint-type", "--extra-body"),
    *("--random-range-ratio", "--no-ignore-eos"),
)


@dataclasses.dataclass(frozen=True)
class BenchmarkLoad:
    """What `vllm bench serve` sends.

    Attributes:
        concurrency: the most requests at once.
        prompts: requests in all.
        input_len: tokens of each prompt.
        output_len: tokens of each answer.
        tokenizer: where the container finds the model's tokenizer; empty for the model's own name.
        goodput: limits in milliseconds that a good request keeps, such as C({"ttft": 1000, "tpot": 50}).
        extra: further arguments.
    """

    concurrency: int
    prompts: int
    input_len: int
    output_len: int
    tokenizer: str = ""
    goodput: Mapping[str, float] = dataclasses.field(default_factory=dict)
    extra: tuple[str, ...] = ()


def bench_command(target: Target, load: BenchmarkLoad, seed: int, result_name: str) -> list[str]:
    """Return the command: the recipe's arguments, and those that make releases from 0.12 to 0.33 measure the same."""
    command = ["vllm", "bench", "serve", "--base-url", target.url, "--model", target.model]
    if load.tokenizer:
        command += ["--tokenizer", load.tokenizer]
    command += [
        *("--dataset-name", "random"),
        *("--random-input-len", str(load.input_len)),
        *("--random-output-len", str(load.output_len)),
        "--ignore-eos",
        *("--max-concurrency", str(load.concurrency)),
        *("--num-prompts", str(load.prompts)),
        # Later releases leave it to the server.
        *("--temperature", "0"),
        *("--seed", str(seed)),
        *("--percentile-metrics", ",".join(results.LATENCIES)),
        *("--metric-percentiles", PERCENTILES),
        # One request first, that the server answers at all; 0.12 would wait for that for ten minutes.
        *("--ready-check-timeout-sec", "30"),
    ]
    if load.goodput:
        command += ["--goodput", *(f"{name}:{limit:g}" for name, limit in sorted(load.goodput.items()))]
    command += ["--save-result", "--result-dir", RESULT_FOLDER, "--result-filename", result_name]
    return [*command, *load.extra]


class Benchmark:
    """Repeated runs of `vllm bench serve` against one server.

    Args:
        client: the engine that runs them.
        target: the server.
        folder: an empty folder of the host for the results of this measurement.
        timeout: seconds for each run.
        gpus: GPUs of the server; 0 for one on processors.
        progress: told what is going on.
    """

    def __init__(
        self, client: DockerClient, target: Target, folder: str, *, timeout: float, gpus: int, progress: Progress
    ) -> None:
        self._client = client
        self._target = target
        self._folder = folder
        self._timeout = timeout
        self._gpus = gpus
        self._progress = progress

    def point(self, load: BenchmarkLoad, runs: int) -> dict[str, Any]:
        """Measure one load C(runs) times and return the point: the load, each run's figures, and their summary."""
        found = [self.run(load, number, runs) for number in range(1, runs + 1)]
        return {
            "concurrency": load.concurrency,
            "prompts": load.prompts,
            "runs": found,
            "summary": results.summarise(found),
        }

    def job(self, load: BenchmarkLoad, seed: int, result_name: str) -> jobs.Job:
        """Return the container in which a run of vllm bench serve runs."""
        return jobs.Job(
            name=f"{self._target.name}-benchmark",
            image=self._target.image,
            command=tuple(bench_command(self._target, load, seed, result_name)),
            environment=self._target.job_environment(),
            volumes=(*self._target.volumes, f"{self._folder}:{RESULT_FOLDER}"),
            work_dir=os.path.dirname(self._folder),
        )

    def run(self, load: BenchmarkLoad, number: int = 1, of: int = 1) -> dict[str, float]:
        """Measure once and return the figures.

        Raises:
            GpufleetError: C(benchmark-failed) when the program itself fails, C(requests-failed) when no request at all
                was answered, C(server-gone), and as jobs.run_job.
        """
        what = f"{self._target.name}: concurrency {load.concurrency}" + (f", run {number} of {of}" if of > 1 else "")
        self._progress.phase(what, "starting")
        # Prompts that the server has seen before would be answered from its prefix cache.
        seed = int(time.time() * 10) % 2**31
        name = f"{seed}.json"
        job = self.job(load, seed, name)
        watch = LoadWatch(self._target, lambda done: self._progress.phase(what, f"{done}/{load.prompts} requests"))
        ended = jobs.run_job(self._client, job, timeout=self._timeout, on_poll=watch.look)
        figures = self._figures(os.path.join(self._folder, name), ended, load)
        if not figures["completed"]:
            raise self._no_answers(load, ended)
        return {**figures, **watch.figures()}

    def _figures(self, path: str, ended: jobs.Ended, load: BenchmarkLoad) -> dict[str, float]:
        try:
            with open(path, encoding="utf-8") as stream:
                document = json.load(stream)
        except (OSError, ValueError) as error:
            cause = self._refusal()
            raise GpufleetError(
                f"vllm bench serve ended with exit status {ended.exit_code} and left no result"
                + (f": {cause.message}" if cause else "."),
                name="benchmark-failed",
                remedy=cause.remedy if cause else "See its last lines below.",
                evidence=(cause.evidence if cause else "") or "\n".join(ended.lines[-8:]),
                details={"log": ended.lines[-25:]},
            ) from error
        return results.benchmark_figures(document, prompts=load.prompts, gpus=self._gpus)

    def _no_answers(self, load: BenchmarkLoad, ended: jobs.Ended) -> GpufleetError:
        cause = self._refusal()
        return GpufleetError(
            f"None of {load.prompts} requests was answered" + (f": {cause.message}" if cause else "."),
            name="requests-failed",
            remedy=cause.remedy if cause else "Look at the server's log (docker logs): the cause stands there.",
            evidence=(cause.evidence if cause else "") or "\n".join(ended.lines[-8:]),
            details={"log": ended.lines[-25:]},
        )

    def _refusal(self) -> GpufleetError | None:
        """Ask the server once and return what is wrong with it, or None when it answers."""
        target = self._target
        server = Server(target.url, api_key=target.api_key, timeout=30, verify=target.verify)
        try:
            server.complete(target.model, RECIPE_PROMPT, max_tokens=4, temperature=0)
        except GpufleetError as error:
            return error
        return None


def prompts_for(concurrency: int, wanted: int | None) -> int:
    """Return the number of prompts: the wanted one, else five for each request at once."""
    return wanted or concurrency * PROMPTS_PER_SLOT


def check_lengths(input_len: int, output_len: int, max_model_len: int | None) -> None:
    """Refuse a load whose requests the server must refuse.

    Raises:
        GpufleetError: C(benchmark-too-long).
    """
    if max_model_len and input_len + output_len > max_model_len:
        raise GpufleetError(
            f"vllm_benchmark_input_len + vllm_benchmark_output_len = {input_len} + {output_len} tokens do not fit the"
            f" server's max-model-len of {max_model_len}: it would refuse every request.",
            name="benchmark-too-long",
            remedy="Lower them, or raise vllm_max_model_len and deploy again.",
        )


def notes(point: Mapping[str, Any]) -> list[str]:
    """Return what a person should know of a point that is no failure."""
    summary, concurrency = point["summary"], point["concurrency"]
    found = []
    if point["prompts"] < PROMPTS_PER_SLOT * concurrency:
        found.append(
            f"{point['prompts']} prompts at concurrency {concurrency}: a steady state takes at least"
            f" {PROMPTS_PER_SLOT * concurrency}."
        )
    preemptions = summary.get("preemptions", {}).get("mean", 0)
    if preemptions:
        found.append(
            f"{preemptions:.0f} preemptions at concurrency {concurrency}: the KV cache does not hold that many requests"
            " of this length; a lower vllm_max_num_seqs serves them sooner."
        )
    return found


def followed_note(concurrencies: Sequence[int]) -> str:
    """Return what a person should know when the stored benchmark has chosen the load."""
    listed = ", ".join(map(str, concurrencies))
    return f"Measured at concurrency {listed}, as the baseline was, for vllm_benchmark_concurrency is empty."


def tokens_of_answers(load: BenchmarkLoad) -> int | None:
    """Return how many tokens each answer of a load has; None where further arguments may make it another number."""
    given = {word.partition("=")[0].replace("_", "-") for word in load.extra if word.startswith("--")}
    # As the program's own parser, this takes the beginning of a name for the name.
    changed = any(name.startswith(word) for word in given for name in OTHER_LENGTHS)
    return None if changed or any(word.endswith("-output-len") for word in given) else load.output_len


def judge(
    points: Sequence[Mapping[str, Any]],
    floors: Mapping[str, float],
    ceilings: Mapping[str, float],
    answer_len: int | None = None,
) -> list[gates.Gate]:
    """Return the judgements of a measurement: failed requests and answers cut short of every run, and limits.

    Args:
        points: what Benchmark.point returned.
        floors: names of figures at the highest concurrency to the least allowed value.
        ceilings: names of them to the greatest allowed value.
        answer_len: what tokens_of_answers returned.
    """
    found = []
    for point in points:
        completed = sum(run["completed"] for run in point["runs"])
        failed = sum(run["failed"] for run in point["runs"])
        where = f"concurrency {point['concurrency']}"
        found.append(gates.requests_gate(completed, failed, where))
        if answer_len is not None:
            arrived = sum(run.get("total_output_tokens", 0) for run in point["runs"])
            found.append(gates.tokens_gate(arrived, completed * answer_len, where))
    highest = max(points, key=lambda point: point["concurrency"])
    means = {name: values["mean"] for name, values in highest["summary"].items()}
    return found + gates.limit_gates(means, floors, ceilings, f"concurrency {highest['concurrency']}")
