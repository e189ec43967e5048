# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fetches the weights of a hub model into a host's Hugging Face cache before a server that needs them is started.

hub_download fetches them in a container of the serving image. What it fetched is recorded below the cache, in
C(gpufleet/models--<owner>--<name>.json), so that the next run knows from the host's files alone that nothing lacks.
"""

from __future__ import annotations

import collections
import inspect
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Callable

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.progress import Progress
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.secret_names import without_secrets
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.text import MIB, format_bytes
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers import image_python
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.jobs import Job, run_job
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.deadlines import VARIABLE as DEADLINES
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container import hub_download
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container.hub_download import PROGRESS_MARK
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container.paths import (
    CA_BUNDLE_PATH,
    CA_BUNDLE_VARIABLES,
    CACHES,
    HF_HOME,
    joined_volumes,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.cache_lock import cache_lock
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.cached import commit_of, lacks, note_fetched
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.refusals import download_error, not_here
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.surroundings import Surroundings
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.wants import Want

if TYPE_CHECKING:
    from docker import DockerClient


# A name as huggingface_hub takes it.
HUB_NAME = re.compile(r"([\w.-]+/)?[\w.-]{1,96}")
NO_DEADLINE_S = 10.0 * 365 * 86400
RATE_WINDOW_S = 10.0


# The server's own variables, without what it alone wants; nothing of NVIDIA's runtime is needed here.
LEFT_OUT = ("VLLM_API_KEY", "PYTHONPATH")
QUIET = {"NVIDIA_VISIBLE_DEVICES": "void", "PYTHONUNBUFFERED": "1"}


def ensure_weights(
    client: Callable[[], DockerClient | None],
    wants: Sequence[Want],
    around: Surroundings,
    *,
    check: bool,
    progress: Progress,
) -> dict[str, Any]:
    """Make sure that the cache has everything that is wanted.

    Args:
        client: returns the engine's client, or None where the image is not on the host yet; called only when a
            container is needed.
        wants: see wants_of.
        around: how to go about it.
        check: only tell what would be fetched.
        progress: told how far it is.

    Returns:
        C(changed), C(models) (each C(repository), C(revision), C(commit), C(files), C(bytes), C(missing_files) and
        C(missing_bytes), as they were before) and C(diff).

    Raises:
        GpufleetError: see the module's RETURN.
    """
    for want in wants:
        _check_name(want)
    missing = _missing(wants, around)
    if missing and around.is_offline:
        raise not_here(missing, around)
    engine = client() if missing else None
    if engine is None or check:
        asked = [want for want, _lack in missing]
        models = _run(engine, asked, around, fetch=False, progress=progress) if engine else []
        return _result(_what_is_known(wants, missing, models, around))
    with cache_lock(missing[0][0], around, progress):
        # Whoever was waited for may have fetched all of it.
        missing = _missing(wants, around)
        asked = [want for want, _lack in missing]
        models = _run(engine, asked, around, fetch=True, progress=progress) if asked else []
        for want, model in zip(asked, models):
            note_fetched(around.hf_home, want, model)
    return _result(_what_is_known(wants, missing, models, around))


def _check_name(want: Want) -> None:
    """Refuse a name that no repository of the hub can have, before anybody is asked."""
    if not HUB_NAME.fullmatch(want.repository) or "--" in want.repository or ".." in want.repository:
        raise GpufleetError(
            f"{want.repository!r} is no name of a model at the hub.",
            name="model-not-found",
            remedy="Correct vllm_model (or tokenizer, hf-config-path or speculative-config in vllm_extra_config):"
            " <owner>/<name>, of letters, digits, dots, dashes and underscores, or the absolute path of a folder.",
            details={"repository": want.repository},
        )


def _missing(wants: Sequence[Want], around: Surroundings) -> list[tuple[Want, str]]:
    """Return the repositories that the cache lacks something of, with what it is."""
    return [(want, lack) for want in wants for lack in [lacks(want, around)] if lack]


def _what_is_known(
    wants: Sequence[Want],
    missing: Sequence[tuple[Want, str]],
    models: Sequence[dict[str, Any]],
    around: Surroundings,
) -> list[dict[str, Any]]:
    """Return what is known of each repository: what the hub told of it (C(models), of those missing) or the host."""
    asked = dict(zip((want for want, _lack in missing), models))
    lack_of = dict(missing)
    return [asked.get(want) or _unknown(want, lack_of.get(want, ""), around.cache.folder) for want in wants]


def _unknown(want: Want, lack: str, hub: str) -> dict[str, Any]:
    """Return what is known of a repository without asking the hub."""
    return {
        "repository": want.repository,
        "revision": want.revision,
        "commit": commit_of(hub, want),
        "files": {},
        "bytes": 0,
        "missing_files": [lack] if lack else [],
        "missing_bytes": 0,
    }


def _result(models: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    short = [model for model in models if model["missing_files"]]
    return {
        "changed": bool(short),
        "models": [{**model, "files": len(model["files"])} for model in models],
        "diff": [
            {
                "before_header": model["repository"],
                "after_header": model["repository"],
                "before": _state(model, len(model["missing_files"]), model["missing_bytes"]),
                "after": _state(model, 0, 0),
            }
            for model in short
        ],
    }


def _state(model: Mapping[str, Any], missing_files: int, missing_bytes: int) -> str:
    """Return what there is of a model as the text of a diff."""
    revision, files = f"revision {model['revision']}", len(model["files"])
    if not files:
        return f"{revision}: {'incomplete' if missing_files else 'complete'}\n"
    there = f"{files - missing_files} of {files} files, {format_bytes(model['bytes'] - missing_bytes)}"
    return f"{revision} ({model['commit'][:12]}): {there}\n"


def _run(
    client: DockerClient, wants: Sequence[Want], around: Surroundings, *, fetch: bool, progress: Progress
) -> list[dict[str, Any]]:
    """Run hub_download and return its C(models)."""
    watch = Watch(around.stall_timeout, progress)
    asking = {
        "wants": [asdict(want) for want in wants],
        "fetch": fetch,
        "retries": around.retries,
        "backoff": around.backoff,
    }
    script = inspect.getsource(hub_download)
    job = Job(
        name=f"{around.prefix}-weights" if fetch else f"{around.prefix}-weights-look",
        image=around.image,
        command=("/bin/sh", "-c", image_python.LAUNCH, "vllm", script, json.dumps(asking)),
        environment=_environment(around),
        volumes=tuple(_volumes(around, fetch)),
        network_mode=around.network_mode,
    )
    progress.phase(f"weights of {wants[0].repository}", "asking the hub")
    try:
        ended = run_job(client, job, timeout=around.timeout or NO_DEADLINE_S, on_lines=watch.take)
        said = "\n".join(line for line in ended.lines if not line.startswith(PROGRESS_MARK))
        answer = json.loads(image_python.answer_in(said, ended.exit_code))
    except image_python.NoAnswerError as error:
        raise GpufleetError(
            f"The download of {wants[0]} ended without an answer.",
            name="download-failed",
            remedy="Run the play again, which goes on with what is there; see dmesg on the host for 'Out of memory'.",
            evidence=without_secrets(str(error), around.secrets),
        ) from error
    except GpufleetError as error:
        if error.name != "job-too-slow":
            raise
        raise GpufleetError(
            f"The download of {wants[0]} took more than {around.timeout:g} s ({DEADLINES}: download); it was at"
            f" {watch.text() or 'its beginning'}.",
            name="download-too-slow",
            remedy=f"Run the play again, which goes on with the files that are complete; raise {DEADLINES}: download.",
            details={"repository": wants[0].repository},
        ) from error
    if "error" in answer:
        raise download_error(answer["error"], around)
    return list(answer["models"])


def _environment(around: Surroundings) -> dict[str, str]:
    """Return the variables with which the server goes to the hub."""
    environment = {"HF_HOME": HF_HOME}
    if around.ca_bundle:
        environment.update(dict.fromkeys(CA_BUNDLE_VARIABLES, CA_BUNDLE_PATH))
    merged = {**environment, **around.environment, **around.secrets, **QUIET}
    return {name: value for name, value in merged.items() if name not in LEFT_OUT}


def _volumes(around: Surroundings, fetch: bool) -> list[str]:
    """Return the server's mounts without its compile caches; read-only, and only what is there, when it only looks."""
    own = [f"{around.hf_home}:{HF_HOME}"]
    if around.ca_bundle:
        own.append(f"{around.ca_bundle}:{CA_BUNDLE_PATH}:ro")
    # A volume without a colon is one of Docker's own, empty and of no use to a download.
    targets = {volume: volume.split(":")[1] for volume in joined_volumes(own, around.volumes) if ":" in volume}
    kept = [volume for volume, target in targets.items() if target and target not in CACHES.values()]
    return kept if fetch else image_python.mounts(kept, dry=True, without=())


class Watch:
    """Turns the program's lines into progress, and ends a download that stands still.

    Args:
        stall_timeout: seconds without a further byte; 0 for ever.
        progress: told how far it is.
        clock: returns seconds; only differences count.
    """

    def __init__(self, stall_timeout: float, progress: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        self._stall_timeout = stall_timeout
        self._progress = progress
        self._clock = clock
        self._state: dict[str, Any] = {}
        self._samples: collections.deque[tuple[float, int]] = collections.deque()
        self._moved = clock()

    def take(self, lines: Sequence[str]) -> None:
        """Take the last lines of the program's output.

        Raises:
            GpufleetError: C(download-stalled).
        """
        told = [line[len(PROGRESS_MARK) :] for line in lines if line.startswith(PROGRESS_MARK)]
        state = json.loads(told[-1]) if told else {}
        now = self._clock()
        if any(state.get(part) != self._state.get(part) for part in ("bytes", "note") if part in state):
            self._moved = now
        self._state = {**self._state, **state}
        if "bytes" in self._state:
            self._samples.append((now, int(self._state["bytes"])))
            while len(self._samples) > 2 and now - self._samples[0][0] > RATE_WINDOW_S:
                self._samples.popleft()
        if self._state:
            self._progress.phase(f"weights of {self._state.get('repository', 'the model')}", self.text())
        if self._stall_timeout and now - self._moved > self._stall_timeout:
            raise GpufleetError(
                f"The download of {self._state.get('repository', 'the weights')} stands still for"
                f" {now - self._moved:.0f} s (vllm_stall_timeout), at {self.text() or 'its beginning'}.",
                name="download-stalled",
                remedy="Look at the network between this host and the hub, and run again: files that are complete are"
                " kept. If the connection is only slow, raise vllm_stall_timeout.",
            )

    def text(self) -> str:
        """Return the state in a line, such as C(12/58 files, 10.3 of 104.9 GiB, 10 %, 220 MiB/s)."""
        state = self._state
        if "bytes" not in state:
            return str(state.get("note") or "")
        parts = [f"{state['files']}/{state['of']} files"]
        if state["total"]:
            done, total = format_bytes(state["bytes"]), format_bytes(state["total"])
            parts.append(f"{done.split()[0] if done.split()[1] == total.split()[1] else done} of {total}")
            parts.append(f"{100 * state['bytes'] // state['total']} %")
        else:
            parts.append(format_bytes(state["bytes"]))
        (then, before), (now, after) = self._samples[0], self._samples[-1]
        if after > before and now > then:
            parts.append(f"{(after - before) / (now - then) / MIB:.1f} MiB/s")
        return ", ".join([*parts, *([state["note"]] if state.get("note") else [])])
