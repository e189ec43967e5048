# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Judge the model that a vLLM server serves with lm_eval."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_accuracy
short_description: Judge the model that a vLLM server serves with lm_eval
version_added: 0.1.0
author: gpufleet contributors (@gpufleet)
description:
  - Runs the real lm_eval with the recipe's arguments against the server, in a throw-away container of the serving
    image, which has torch and transformers. lm_eval itself is installed once for each image into a folder of the host.
  - Fails when a score lies below its floor by more than O(standard_errors) of its standard errors, and when
    lm_eval gives no score, which it then explains.
options:
  requirements:
    description:
      - What pip installs for lm_eval, on top of what the image has.
      - lm_eval 0.4.9.1 does not load with transformers 5, which newer images have; its own copy of transformers 4
        beside it is all that it takes. 0.4.13 needs none.
    type: list
    elements: str
    default: ["lm-eval[api]==0.4.9.1", "transformers<5"]
  wheels:
    description:
      - Folder of the host with every package that is needed, for hosts without a package index. Empty for the
        index that pip is configured for on the host.
    type: str
    default: ""
  tasks:
    description:
      - Tasks or groups of lm_eval.
    type: list
    elements: str
    default: [gsm8k]
  tasks_dir:
    description:
      - Folder of the host with tasks of your own, mounted as C(/tasks), where lm_eval also starts. Name their data
        files relative to it. Empty for none.
    type: str
    default: ""
  limit:
    description:
      - Samples of each task at most. All when left out.
    type: int
  num_concurrent:
    description:
      - Requests at once.
    type: int
    default: 128
  request_timeout:
    description:
      - Seconds for one request.
    type: int
    default: 120
  max_retries:
    description:
      - Further attempts at a request that failed.
    type: int
    default: 5
  model_args:
    description:
      - Further arguments of lm_eval's model C(local-completions), such as C(max_gen_toks). They win over the recipe's.
    type: dict
    default: {}
  extra_args:
    description:
      - Further arguments of lm_eval.
    type: list
    elements: str
    default: []
  floors:
    description:
      - Task to metric, named with its filter as C(exact_match,strict-match), to the least score. A task that was run or
        asked for and has no score fails; others do not count.
    type: dict
    default: {}
  standard_errors:
    description:
      - By how many of its standard errors a score may lie below its floor.
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
seealso:
  - module: gpufleet.vllm.vllm_benchmark
  - module: gpufleet.vllm.vllm_report
"""

EXAMPLES = r"""
- name: Judge as the recipe does
  gpufleet.vllm.vllm_accuracy:
    image: vllm/vllm-openai:deploy
    floors:
      gsm8k:
        exact_match,flexible-extract: 0.8946
        exact_match,strict-match: 0.8779

- name: Judge 100 samples of a task of our own
  gpufleet.vllm.vllm_accuracy:
    image: vllm/vllm-openai:deploy
    tasks: [our_task]
    tasks_dir: /srv/tasks
    limit: 100
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
  sample: nvidia/Llama-4-Scout-17B-16E-Instruct-FP4
scores:
  description:
    - For each task and metric C(task), C(metric) (with its filter), C(value), C(stderr) (null if lm_eval gives
      none) and C(samples).
  returned: success or failed gate
  type: list
  elements: dict
  sample:
    - {"task": "gsm8k", "metric": "exact_match,flexible-extract", "value": 0.8946, "stderr": 0.0085, "samples": 1319}
gates:
  description: The judgements, each C(kind), C(metric), C(value), C(limit), C(passed) and C(text).
  returned: success or failed gate
  type: list
  elements: dict
  sample: [{"kind": "accuracy", "metric": "gsm8k exact_match,strict-match", "value": 0.8779, "passed": true}]
notes:
  description: What a person should know of the scores, such as names in O(tasks) that the results do not have.
  returned: success or failed gate
  type: list
  elements: str
  sample: []
passed:
  description: Whether every gate passed.
  returned: success or failed gate
  type: bool
  sample: true
command:
  description: The docker run line that repeats it by hand.
  returned: success or failed gate
  type: str
  sample: docker run --rm --network host --entrypoint python3 vllm/vllm-openai:deploy -m lm_eval
seconds:
  description: How long it took.
  returned: success or failed gate
  type: float
  sample: 310.2
error:
  description:
    - The failure in parts, C(name), C(message), C(remedy), C(evidence) and C(details).
    - Names are V(gates-failed), V(requests-failed), V(server-gone), V(task-unknown), V(task-missing),
      V(dataset-unreachable), V(dataset-gated), V(dataset-script), V(hub-rate-limit), V(hub-refused),
      V(tokenizer-missing), V(task-runs-code), V(task-needs-likelihoods), V(python-package-missing), V(no-samples),
      V(no-results), V(result-unreadable), V(install-failed), V(lm-eval-failed), V(job-too-slow), V(image-missing),
      V(busy), V(name-taken), V(interrupted), V(invalid-wishes), those of M(gpufleet.vllm.vllm_completion), and of
      the disk and the host as M(gpufleet.vllm.vllm_model) has them.
  returned: failure, or a gate failed
  type: dict
"""

import os
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
from ansible_collections.gpufleet.vllm.plugins.module_utils.verify import accuracy, gates, variables
from ansible_collections.gpufleet.vllm.plugins.module_utils.verify.target import (
    TARGET_ARGUMENTS,
    image_id_of,
    target_of,
)

ARGUMENTS: dict[str, Any] = {
    "requirements": {"type": "list", "elements": "str", "default": ["lm-eval[api]==0.4.9.1", "transformers<5"]},
    "wheels": {"type": "str", "default": ""},
    "tasks": {"type": "list", "elements": "str", "default": ["gsm8k"]},
    "tasks_dir": {"type": "str", "default": ""},
    "limit": {"type": "int"},
    "num_concurrent": {"type": "int", "default": 128},
    "request_timeout": {"type": "int", "default": 120},
    "max_retries": {"type": "int", "default": 5},
    "model_args": {"type": "dict", "default": {}},
    "extra_args": {"type": "list", "elements": "str", "default": []},
    "floors": {"type": "dict", "default": {}},
    "standard_errors": {"type": "float", "default": 2},
    "fail_on_gates": {"type": "bool", "default": True},
    **TARGET_ARGUMENTS,
    **DOCKER_ARGUMENTS,
    **PROGRESS_ARGUMENTS,
}


def evaluation_of(params: dict[str, Any]) -> accuracy.Evaluation:
    """Return what lm_eval is asked, from the module's options."""
    recipe = {
        "tokenized_requests": False,
        "tokenizer_backend": None,
        "num_concurrent": params["num_concurrent"],
        "timeout": params["request_timeout"],
        "max_retries": params["max_retries"],
    }
    return accuracy.Evaluation(
        tasks=tuple(params["tasks"]),
        tasks_dir=params["tasks_dir"],
        limit=params["limit"],
        model_args={**recipe, **params["model_args"]},
        extra=tuple(params["extra_args"]),
    )


def work(params: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Install lm_eval if need be, judge the model, and return the module's result."""
    started = time.monotonic()
    params = variables.options(params, "vllm_accuracy_", floors=variables.task_floors)
    client = connect(params["docker_host"], params["docker_timeout"])
    image_id = image_id_of(client, params["image"])
    target, evaluation = target_of(params), evaluation_of(params)
    with jobs.work_folder(params["work_dir"], f"vllm_accuracy of {target.name}", client) as folder:
        installed = accuracy.install_folder(
            os.path.join(params["work_dir"], "lm_eval"), params["requirements"], image_id
        )
        changed = not accuracy.is_installed(installed)
        if changed:
            accuracy.install(
                client,
                target,
                installed,
                params["requirements"],
                wheels=params["wheels"],
                ca_bundle=params["ca_bundle"],
                progress=progress,
            )
        job = accuracy.job_of(target, evaluation, installed, folder)
        found = accuracy.evaluate(
            client, target, evaluation, job, folder=folder, timeout=params["timeout"], progress=progress
        )
    return {
        "changed": changed,
        "name": target.name,
        "model": target.model,
        "scores": found["scores"],
        "gates": gates.accuracy_gates(found["scores"], params["floors"], params["standard_errors"], found["tasks"]),
        "notes": found["notes"],
        "command": jobs.docker_line(job, target.all_secrets(), folder, params["docker_host"]),
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
