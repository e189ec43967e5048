# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Judges a model with lm_eval, which runs in a throw-away container of the serving image.

The image has torch and transformers already. The rest of lm_eval is installed once for each image into a folder of the
host, by the image's own pip with the host's pip configuration, and mounted into the container.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.progress import Progress
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers import jobs
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.container_pip import pip_settings
from ansible_collections.gpufleet.vllm.plugins.module_utils.verify import results
from ansible_collections.gpufleet.vllm.plugins.module_utils.verify.accuracy_failures import failure
from ansible_collections.gpufleet.vllm.plugins.module_utils.verify.load_watch import LoadWatch
from ansible_collections.gpufleet.vllm.plugins.module_utils.verify.target import Target

if TYPE_CHECKING:
    from docker import DockerClient

INSTALL_FOLDER = "/lm_eval"
TASKS_FOLDER = "/tasks"
RESULT_FOLDER = "/results"
MARKER = ".gpufleet-complete"
INSTALL_TIMEOUT_S = 3600.0
# Resolves beside what the image has, then installs what is missing. Told to do both at once with --prefix, pip first
# uninstalls from the image what it replaces, which fails where the image's packages are mounted read-only.
INSTALL_PROGRAM = """\
import json, subprocess, sys

prefix, *requirements = sys.argv[1:]
pip = [sys.executable, "-m", "pip", "install", "--no-input", "--progress-bar=off"]
resolve = [*pip, "--quiet", "--dry-run", "--report=-", *requirements]
resolved = subprocess.run(resolve, check=False, stdout=subprocess.PIPE)
if resolved.returncode:
    sys.exit(resolved.returncode)
missing = [
    entry["download_info"]["url"] if entry["is_direct"] else "{name}=={version}".format(**entry["metadata"])
    for entry in json.loads(resolved.stdout)["install"]
]
sys.exit(subprocess.call([*pip, "--no-deps", "--ignore-installed", "--prefix", prefix, *missing]))
"""
# Else the hub's libraries ask s3.amazonaws.com for each data set, which only counts how often it is used.
UNCOUNTED = {"HF_UPDATE_DOWNLOAD_COUNTS": "0"}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What lm_eval is asked.

    Attributes:
        tasks: names of tasks or groups.
        tasks_dir: folder of the host with tasks of one's own; empty for none.
        limit: samples of each task at most; None for all.
        model_args: arguments of lm_eval's model C(local-completions) besides its address and name.
        extra: further arguments of lm_eval.
    """

    tasks: tuple[str, ...]
    tasks_dir: str = ""
    limit: int | None = None
    model_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    extra: tuple[str, ...] = ()


# Installation


def install_folder(parent: str, requirements: Sequence[str], image_id: str) -> str:
    """Return the folder of the host in which lm_eval for this image is, or will be."""
    digest = hashlib.sha256(json.dumps([sorted(requirements), image_id]).encode()).hexdigest()[:16]
    return os.path.join(parent, digest)


def is_installed(folder: str) -> bool:
    """Return whether an installation was finished there."""
    return os.path.exists(os.path.join(folder, MARKER))


def install(
    client: DockerClient,
    target: Target,
    folder: str,
    requirements: Sequence[str],
    *,
    wheels: str = "",
    ca_bundle: str = "",
    progress: Progress,
) -> None:
    """Install lm_eval into C(folder); it appears complete or not at all, and older ones beside it go away.

    Args:
        client: the engine.
        target: whose image has Python, pip and what of lm_eval's needs it has already.
        folder: as install_folder returned.
        requirements: as pip takes them.
        wheels: folder of the host with every package needed, for hosts without a package index; empty for the index.
        ca_bundle: file of the host with the certificate authorities to trust; empty for the image's own.
        progress: told what is going on.

    Raises:
        GpufleetError: C(install-failed), with pip's last lines, and as jobs.run_job.
    """
    parent = os.path.dirname(folder)
    os.makedirs(parent, mode=0o755, exist_ok=True)
    progress.phase("lm_eval", f"installing {' '.join(requirements)} (once for each image)")
    with jobs.work_folder(os.path.join(parent, "work"), "installing lm_eval") as work:
        environment, volumes = pip_settings(wheels, ca_bundle)
        job = jobs.Job(
            name="gpufleet-lm-eval-install",
            image=target.image,
            command=("python3", "-c", INSTALL_PROGRAM, INSTALL_FOLDER, *requirements),
            environment={
                **target.environment,
                **target.secrets,
                **environment,
                "PIP_BREAK_SYSTEM_PACKAGES": "1",
                "PIP_ROOT_USER_ACTION": "ignore",
            },
            volumes=(f"{work}:{INSTALL_FOLDER}", *target.volumes, *volumes),
            work_dir=os.path.dirname(parent),
        )
        ended = jobs.run_job(client, job, timeout=INSTALL_TIMEOUT_S)
        if ended.exit_code or not _packages(work):
            raise GpufleetError(
                f"Installing {' '.join(requirements)} in a container of {target.image} failed.",
                name="install-failed",
                remedy="The container uses the network and the pip configuration (index, proxy, certificates) of this"
                " host: check pip config list. Without a package index, name a folder of wheels in"
                " vllm_accuracy_wheels.",
                evidence="\n".join([line for line in ended.lines if "ERROR" in line] or ended.lines[-3:])[-1500:],
                details={"log": ended.lines[-25:]},
            )
        for entry in os.listdir(parent):
            if entry != "work":
                shutil.rmtree(os.path.join(parent, entry), ignore_errors=True)
        with open(os.path.join(work, MARKER), "w", encoding="utf-8") as stream:
            stream.write("\n".join(requirements) + "\n")
        os.chmod(work, 0o755)
        os.rename(work, folder)


def _packages(folder: str) -> str:
    """Return the folder below C(folder) in which pip put lm_eval, relative to it, or an empty text."""
    found = glob.glob(os.path.join(folder, "**", "lm_eval", "__main__.py"), recursive=True)
    return os.path.relpath(os.path.dirname(os.path.dirname(found[0])), folder) if found else ""


# Evaluation


def command(target: Target, evaluation: Evaluation) -> list[str]:
    """Return the command of lm_eval in the container."""
    model_args = {"base_url": f"{target.url}/v1/completions", "model": target.model, **evaluation.model_args}
    words = ["python3", "-m", "lm_eval", "--model", "local-completions", "--tasks", ",".join(evaluation.tasks)]
    words += ["--model_args", ",".join(f"{name}={value}" for name, value in model_args.items())]
    if evaluation.tasks_dir:
        words += ["--include_path", TASKS_FOLDER]
    if evaluation.limit is not None:
        words += ["--limit", str(evaluation.limit)]
    return [*words, "--output_path", RESULT_FOLDER, *evaluation.extra]


def job_of(target: Target, evaluation: Evaluation, installed: str, folder: str) -> jobs.Job:
    """Return the container in which lm_eval runs.

    Args:
        target: the server.
        evaluation: what is asked.
        installed: folder of the host with lm_eval.
        folder: an empty folder of the host for its results.
    """
    # What the server's own variable names stays in reach, behind lm_eval's packages.
    paths = [f"{INSTALL_FOLDER}/{_packages(installed)}", target.environment.get("PYTHONPATH", "")]
    environment = {"PYTHONPATH": ":".join(path for path in paths if path), "PYTHONUNBUFFERED": "1"}
    volumes = [*target.volumes, f"{installed}:{INSTALL_FOLDER}:ro", f"{folder}:{RESULT_FOLDER}"]
    if evaluation.tasks_dir:
        volumes.append(f"{evaluation.tasks_dir}:{TASKS_FOLDER}:ro")
        # Tasks of one's own change; a kept copy of their data would not.
        environment["HF_DATASETS_CACHE"] = "/tmp/datasets"  # noqa: S108  in the container
    return jobs.Job(
        name=f"{target.name}-accuracy",
        image=target.image,
        command=tuple(command(target, evaluation)),
        environment={**UNCOUNTED, **target.job_environment(), **environment},
        volumes=tuple(volumes),
        working_dir=TASKS_FOLDER if evaluation.tasks_dir else "/",
        work_dir=os.path.dirname(folder),
    )


def evaluate(
    client: DockerClient,
    target: Target,
    evaluation: Evaluation,
    job: jobs.Job,
    *,
    folder: str,
    timeout: float,
    progress: Progress,
) -> dict[str, Any]:
    """Run lm_eval against the server and return C(scores), as results.accuracy_scores does, C(tasks) and C(notes).

    C(tasks) are all that ought to have a score, those that were asked for and those in the results; C(notes) what a
    person should know.

    Args:
        client: the engine.
        target: the server.
        evaluation: what is asked.
        job: what job_of returned.
        folder: the folder of the host for its results.
        timeout: seconds for all of it.
        progress: told what is going on.

    Raises:
        GpufleetError: C(requests-failed), C(server-gone), C(task-unknown), C(dataset-unreachable), C(lm-eval-failed),
            C(no-results), and as results.accuracy_scores and jobs.run_job.
    """
    what = f"{target.name}: {', '.join(evaluation.tasks)}"
    progress.phase(what, "starting lm_eval")
    watch = LoadWatch(target, lambda done: progress.phase(what, f"{done} requests answered"))
    ended = jobs.run_job(client, job, timeout=timeout, on_poll=watch.look)
    if ended.exit_code:
        raise failure(target, ended)
    document, asked = _results(folder, ended), _asked(evaluation)
    scores = results.accuracy_scores(document, asked)
    found, missing = results.tasks_of(document), results.missing_tasks(document, asked)
    notes = [
        f"lm_eval has no result by the name {name}, as for a tag, which stands for several tasks; it has"
        f" {', '.join(found)}."
        for name in missing
    ]
    return {"scores": scores, "tasks": [*found, *missing], "notes": notes}


def _asked(evaluation: Evaluation) -> list[str]:
    """Return the tasks that ought to be in the results; a pattern may stand for any."""
    return [task for task in evaluation.tasks if not set("*?[") & set(task)]


def _results(folder: str, ended: jobs.Ended) -> Any:
    """Return the document that lm_eval saved; a save that fails is only a warning to it."""
    found = sorted(glob.glob(os.path.join(folder, "**", "results_*.json"), recursive=True))
    if not found:
        raise GpufleetError(
            "lm_eval ended without an error and left no results file.",
            name="no-results",
            remedy="See its last lines below; a full disk is the usual cause.",
            evidence="\n".join(ended.lines[-8:]),
        )
    try:
        with open(found[-1], encoding="utf-8") as stream:
            return json.load(stream)
    except (OSError, ValueError) as error:
        raise GpufleetError(
            "The results file of lm_eval cannot be read.", name="result-unreadable", evidence=str(error)
        ) from error
