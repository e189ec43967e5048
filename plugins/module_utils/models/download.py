# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Has the weights of a hub model in a host's Hugging Face cache before a server that needs them is started.

hub_download fetches them in a container of the serving image. What it fetched is recorded below the cache, in
C(gpufleet/models--<owner>--<name>.json), so that the next run knows from the host's files alone that nothing lacks.
"""

from __future__ import annotations

import collections
import contextlib
import fnmatch
import inspect
import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Callable

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import write_failed, write_file
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import list_folder, read_text
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.lock import host_lock
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.progress import Progress
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers import image_python
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.jobs import Job, run_job
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.spec import (
    CA_BUNDLE_PATH,
    CA_BUNDLE_VARIABLES,
    CACHES,
    HF_HOME,
    joined_volumes,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.deadlines import VARIABLE as DEADLINES
from ansible_collections.gpufleet.vllm.plugins.module_utils.host import probe
from ansible_collections.gpufleet.vllm.plugins.module_utils.images.ensure import format_bytes
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container import hub_download
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container.hub_download import PROGRESS_MARK
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.hub_cache import HubCache, hub_cache, hub_folder
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.server_files import cut_short, is_offline

if TYPE_CHECKING:
    from docker import DockerClient

GIB = 1024**3
MAIN = "main"
# Formats that need none of the repository's weights, or choose them in ways of their own.
WITHOUT_WEIGHTS = ("dummy", "tensorizer", "sharded_state", "runai_streamer_sharded", "ipc_cache", "gguf")
SAFETENSORS_FIRST = ("auto", "hf", "safetensors", "fastsafetensors", "instanttensor", "runai_streamer", "bitsandbytes")
CONFIG, TOKENIZER, GGUF = "configuration", "tokenizer", "GGUF file"
# What is one of these, by patterns of file names; for a repository that something else has brought.
SIGNS = {
    CONFIG: ("config.json", "params.json"),
    TOKENIZER: ("tokenizer*", "tekken.json", "vocab.*", "merges.txt", "*.tiktoken", "*.model"),
    GGUF: ("*.gguf",),
}
# The index of the weights of a pattern.
INDEXES = {
    "*.safetensors": hub_download.INDEX,
    "*.bin": "pytorch_model.bin.index.json",
    hub_download.CONSOLIDATED: "consolidated.safetensors.index.json",
}
# A name as huggingface_hub takes it.
HUB_NAME = re.compile(r"([\w.-]+/)?[\w.-]{1,96}")
NO_DEADLINE_S = 10.0 * 365 * 86400
RATE_WINDOW_S = 10.0
MOST_NAMED = 3
TRUE = ("1", "true", "yes", "on")
# The server's own variables, without what it alone wants; nothing of NVIDIA's runtime is needed here.
LEFT_OUT = ("VLLM_API_KEY", "PYTHONPATH")
QUIET = {"NVIDIA_VISIBLE_DEVICES": "void", "PYTHONUNBUFFERED": "1"}


@dataclass(frozen=True)
class Want:
    """What a server will take of one repository.

    Attributes:
        repository: its name at the hub.
        revision: branch, tag or commit.
        weights: whether weights are wanted, beside configuration and tokenizer.
        load_format: vLLM's option.
        ignore: patterns of weights to leave out; none for vLLM's own.
        needs: what the server cannot do without beside the weights, of CONFIG, TOKENIZER and GGUF.
    """

    repository: str
    revision: str = MAIN
    weights: bool = True
    load_format: str = "auto"
    ignore: tuple[str, ...] = ()
    needs: tuple[str, ...] = (CONFIG, TOKENIZER)

    def __str__(self) -> str:
        return self.repository if self.revision == MAIN else f"{self.repository} (revision {self.revision})"


@dataclass(frozen=True)
class Surroundings:
    """How the server will go to the hub, and how long the download may take.

    Attributes:
        image: reference or id of the serving image.
        hf_home: host folder of the Hugging Face cache.
        environment: variables of the server.
        secrets: those of them that nobody shall see.
        volumes: further mounts of the server.
        ca_bundle: host file with certificate authorities; empty for none.
        network_mode: of the server.
        prefix: what the container's name begins with.
        offline: whether nobody may be asked.
        timeout: seconds for the whole download; 0 for no deadline.
        stall_timeout: seconds without a further byte after which it is given up; 0 for never.
        retries: further attempts after a failure that may pass, counted anew whenever bytes came.
        backoff: seconds before the first of them; doubled before each next one.
        lock_timeout: seconds to wait for another run that fetches into the same cache.
    """

    image: str
    hf_home: str
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    volumes: Sequence[str] = ()
    ca_bundle: str = ""
    network_mode: str = "bridge"
    prefix: str = "vllm"
    offline: bool = False
    timeout: float = 14400
    stall_timeout: float = 900
    retries: int = 5
    backoff: float = 5
    lock_timeout: float = 0

    @property
    def cache(self) -> HubCache:
        """Where the server's repositories lie on the host."""
        return hub_cache(self.hf_home, {**self.environment, **self.secrets}, self.volumes)

    @property
    def is_offline(self) -> bool:
        """Whether nobody may be asked, by the option or by a variable of the server."""
        return self.offline or is_offline(self.environment)


# What is wanted


def wants_of(model: str, config: Mapping[str, Any]) -> list[Want]:
    """Return what a server of this model and configuration takes from the hub.

    Args:
        model: name of the model at the hub.
        config: options of C(vllm serve), as the plan's replicas have them.
    """
    revision = str(config.get("revision") or MAIN)
    load_format = str(config.get("load-format") or "auto")
    given = config.get("ignore-patterns") or ()
    ignore = (given,) if isinstance(given, str) else tuple(str(pattern) for pattern in given)
    repository, _colon, quantization = model.partition(":")
    weights = load_format not in WITHOUT_WEIGHTS and not quantization
    tokenizer = str(config.get("tokenizer") or model).partition(":")[0]
    tokenizer_revision = str(config.get("tokenizer-revision") or revision)
    another_tokenizer = (tokenizer, tokenizer_revision) != (repository, revision)
    another_config = str(config.get("hf-config-path") or "")
    if quantization or load_format == "gguf":
        needs: tuple[str, ...] = (GGUF,)
    else:
        no_tokenizer = another_tokenizer or str(config.get("skip-tokenizer-init", "")).lower() in TRUE
        needs = (*([] if another_config else [CONFIG]), *([] if no_tokenizer else [TOKENIZER]))
    wants = [Want(repository, revision, weights, load_format, ignore, needs)]
    if another_tokenizer and not tokenizer.startswith((".", "/")):
        wants.append(Want(tokenizer, tokenizer_revision, weights=False, needs=(TOKENIZER,)))
    if another_config and not another_config.startswith((".", "/")):
        wants.append(Want(another_config, revision, weights=False, needs=(CONFIG,)))
    draft = _mapping(config.get("speculative-config"))
    if draft.get("model") and not str(draft["model"]).startswith((".", "/")):
        # vLLM loads a draft as it loads the model, and gives it the model's tokenizer.
        draft_revision = str(draft.get("revision") or MAIN)
        wants.append(Want(str(draft["model"]), draft_revision, weights, load_format, ignore, (CONFIG,)))
    return _joined(wants)


def _joined(wants: Sequence[Want]) -> list[Want]:
    """Return every repository once for each kind of fetching it, with all that is needed of it."""
    joined: dict[Want, tuple[str, ...]] = {}
    for want in wants:
        kind = replace(want, needs=())
        joined[kind] = tuple(dict.fromkeys((*joined.get(kind, ()), *want.needs)))
    return [replace(kind, needs=needs) for kind, needs in joined.items()]


def _mapping(value: Any) -> dict[str, Any]:
    """Return an option that is a mapping, or the text of one."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return {}
    return dict(value) if isinstance(value, Mapping) else {}


def left_to_the_server(config: Mapping[str, Any], environment: Mapping[str, str], cache: HubCache) -> str:
    """Return why this module cannot fetch what the server will take; empty when it can."""
    if config.get("download-dir"):
        return "download-dir in vllm_extra_config keeps the weights outside vllm_hf_home"
    if str(environment.get("VLLM_USE_MODELSCOPE", "")).lower() in TRUE:
        return "VLLM_USE_MODELSCOPE in vllm_environment has the server ask another hub"
    return cache.elsewhere


# What is there


def lacks(want: Want, around: Surroundings) -> str:
    """Return what the host's cache lacks of a repository, for people; empty when nothing is missing.

    Only the host's own files are read, and of the weights no more than their headers. Where nobody may be asked, what
    somebody has brought is taken for whole unless it is seen not to be; otherwise the hub tells.
    """
    commit = _commit(around.cache.folder, want)
    if not commit:
        return "it is not in the cache"
    snapshot = os.path.join(hub_folder(around.cache.folder, want.repository), "snapshots", commit)
    recorded = _recorded(around.hf_home, want, commit)
    if recorded is not None:
        missing = [name for name, size in recorded.items() if not _is_there(os.path.join(snapshot, name), size)]
        return f"{_named(missing)} not there" if missing else ""
    if around.is_offline:
        return _brought_lacks(want, snapshot)
    found = probe.model(snapshot)
    whole = found["complete"] and (found["tokenizer"] or TOKENIZER not in want.needs)
    if whole and GGUF not in want.needs and (not want.weights or want.load_format in SAFETENSORS_FIRST):
        return ""
    if not want.weights or want.load_format not in SAFETENSORS_FIRST:
        return "it was not fetched for this load-format"
    if found["missing_files"] or found["cut_files"]:
        return f"{_named(found['missing_files'] + found['cut_files'])} not there or cut short"
    return "its configuration, tokenizer or weights are not there"


def _brought_lacks(want: Want, snapshot: str) -> str:
    """Return what a snapshot lacks that this module has not fetched."""
    names = list_folder(snapshot)
    there = [name for name in names if os.path.isfile(os.path.join(snapshot, name))]
    for need in want.needs:
        if not any(fnmatch.filter(there, sign) for sign in SIGNS[need]):
            return f"its {need} ({' or '.join(SIGNS[need])}) is not there{_dangling(snapshot, names)}"
    lack = _weights_lack(want, snapshot, there) if want.weights else ""
    return lack + _dangling(snapshot, names) if lack else ""


def _dangling(snapshot: str, names: Sequence[str]) -> str:
    """Return a word on links that lead nowhere, as a copy without the folder blobs has them."""
    lost = [name for name in names if not os.path.exists(os.path.join(snapshot, name))]
    return f" ({_named(lost)} in the snapshot as a link to what is not in blobs)" if lost else ""


def _weights_lack(want: Want, snapshot: str, there: Sequence[str]) -> str:
    """Return which weights a snapshot lacks; the first pattern of the format that something matches is vLLM's choice.

    Args:
        want: what is wanted.
        snapshot: the folder.
        there: the files in it.
    """
    patterns = hub_download.PATTERNS.get(want.load_format, hub_download.ONLY_SAFETENSORS)
    if want.load_format == "auto":
        patterns = (hub_download.CONSOLIDATED, *patterns)
    ignored = [name for pattern in want.ignore for name in fnmatch.filter(there, pattern)]
    for pattern in patterns:
        files = [name for name in fnmatch.filter(there, pattern) if name not in ignored]
        missing = sorted(set(_indexed(snapshot, INDEXES.get(pattern, ""))) - set(files) - set(ignored))
        # Consolidated weights of a repository that has the others too need not have been brought.
        if not files and (not missing or pattern == hub_download.CONSOLIDATED):
            continue
        if pattern == "*.safetensors":
            missing = missing or probe.model(snapshot)["missing_files"]
        cut = [name for name in files if name.endswith(".safetensors") and cut_short(os.path.join(snapshot, name))]
        return f"{_named(missing + cut)} not there or cut short" if missing or cut else ""
    return f"it has no weights for load-format {want.load_format} ({', '.join(patterns)})"


def _indexed(snapshot: str, index: str) -> list[str]:
    """Return the files that an index of weights names; empty without one."""
    try:
        return sorted({str(name) for name in json.loads(read_text(snapshot, index) or "{}")["weight_map"].values()})
    except (ValueError, KeyError, AttributeError, TypeError):
        return []


def _commit(hub: str, want: Want) -> str:
    """Return the commit that a revision is in the cache; empty when the cache does not know it."""
    folder = hub_folder(hub, want.repository)
    commit = read_text(folder, "refs", want.revision).strip() or want.revision
    is_name = os.path.basename(commit) == commit and not commit.startswith(".")
    return commit if is_name and os.path.isdir(os.path.join(folder, "snapshots", commit)) else ""


def _is_there(path: str, size: int | None) -> bool:
    try:
        return os.path.getsize(path) == size or size is None
    except OSError:
        return False


def _record_path(hf_home: str, want: Want) -> str:
    return os.path.join(hf_home, "gpufleet", "models--" + want.repository.replace("/", "--") + ".json")


def _records(hf_home: str, want: Want) -> dict[str, Any]:
    try:
        found = json.loads(read_text(_record_path(hf_home, want)))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _recorded(hf_home: str, want: Want, commit: str) -> dict[str, Any] | None:
    """Return the files (name to size) with which this commit was complete; None when nothing is known of it."""
    entry = _records(hf_home, want).get(_key(want))
    files = entry.get("files") if isinstance(entry, dict) and entry.get("commit") == commit else None
    return files if isinstance(files, dict) else None


def _key(want: Want) -> str:
    return json.dumps([want.revision, want.load_format if want.weights else "", *want.ignore])


def _record(hf_home: str, want: Want, model: Mapping[str, Any]) -> None:
    """Note which files of which commit a repository's revision was complete with."""
    path = _record_path(hf_home, want)
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    entries = {**_records(hf_home, want), _key(want): {"commit": model["commit"], "files": model["files"]}}
    write_file(path, json.dumps(entries, indent=1, sort_keys=True) + "\n", 0o644)


def _named(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (
        f" and {more} more are" if more > 0 else " is" if len(names) == 1 else " are"
    )


# The download


def have(
    client: Callable[[], DockerClient | None],
    wants: Sequence[Want],
    around: Surroundings,
    *,
    check: bool,
    progress: Progress,
) -> dict[str, Any]:
    """Have everything that is wanted in the cache.

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
        raise _not_here(missing, around)
    engine = client() if missing else None
    if engine is None or check:
        asked = [want for want, _lack in missing]
        models = _run(engine, asked, around, fetch=False, progress=progress) if engine else []
        return _result(_told(wants, missing, models, around))
    with _alone(missing[0][0], around, progress):
        # Whoever was waited for may have fetched all of it.
        missing = _missing(wants, around)
        asked = [want for want, _lack in missing]
        models = _run(engine, asked, around, fetch=True, progress=progress) if asked else []
        for want, model in zip(asked, models):
            _record(around.hf_home, want, model)
    return _result(_told(wants, missing, models, around))


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


@contextlib.contextmanager
def _alone(want: Want, around: Surroundings, progress: Progress) -> Iterator[None]:
    """Keep other runs from fetching into the cache inside the block, which begins when those before are done."""
    folder = os.path.join(around.hf_home, "gpufleet")
    try:
        os.makedirs(folder, mode=0o755, exist_ok=True)
    except OSError as error:
        raise write_failed(folder, error, "vllm_hf_home") from error
    blobs = hub_download.blobs_folder(around.cache.folder, want.repository)

    def wait(holder: str) -> None:
        there = format_bytes(hub_download.used(blobs))
        progress.phase(f"weights of {want.repository}", f"waiting for another run ({holder}); {there} are there")

    with host_lock(
        os.path.join(folder, ".lock"),
        f"download of {want.repository}",
        timeout=around.lock_timeout,
        on_wait=wait,
        variable="vllm_hf_home",
    ):
        yield


def _told(
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
        "commit": _commit(hub, want),
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
        raise refusal(answer["error"], around)
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
            parts.append(f"{(after - before) / (now - then) / 2**20:.1f} MiB/s")
        return ", ".join([*parts, *([state["note"]] if state.get("note") else [])])


# What the hub refuses


def without_secrets(text: str, secrets: Mapping[str, str]) -> str:
    """Return a text without the values of secrets and without passwords in addresses."""
    for value in sorted(filter(None, secrets.values()), key=len, reverse=True):
        text = text.replace(value, "***")
    return re.sub(r"://[^/@\s]+@", "://***@", text)


WAY_OUT = (
    "Give the servers a way there: HTTPS_PROXY in vllm_environment (this host's own variables do not reach into"
    " containers), a mirror as HF_ENDPOINT, vllm_network_mode: host where only the host's own network gets out, or the"
    " weights on the host (vllm_model: /path). Files that are complete are kept."
)
ANOTHER_NAME = (
    "Correct vllm_model; for a private or gated model set vllm_hf_token to a token of an account that may read it."
)
# What is said of a token that is there.
ACCESS = {"hub-refused": "vllm_hf_token is set", "model-not-found": "the token in vllm_hf_token does not open it"}
# Name of the cause: what it means for {model} and what to do.
REFUSALS: dict[str, tuple[str, str]] = {
    "model-gated": (
        "The hub gives {model} only to accounts that accepted its licence; {access}.",
        "Accept the licence at the model's page and set vllm_hf_token to a token of that account.",
    ),
    "model-not-found": (
        "The hub has no model {model}, or not for everybody; {access}.",
        ANOTHER_NAME,
    ),
    "revision-not-found": (
        "The hub has no revision {revision} of {model}.",
        "Correct revision or tokenizer-revision in vllm_extra_config: a branch, a tag or a whole commit.",
    ),
    "hub-refused": (
        "The hub refuses to give {model} (status {status}); {access}.",
        "Set vllm_hf_token to a valid token of an account that may read the model.",
    ),
    "hub-rate-limit": (
        "The hub limits the rate of requests from here (429), and still did after {retries} further attempts.",
        "Set vllm_hf_token, or start fewer hosts at a time; the download goes on where it stopped.",
    ),
    "hub-unreachable": ("The hub does not give {model}: it cannot be reached, or breaks the connection.", WAY_OUT),
    "name-not-resolved": (
        "The hub's name cannot be resolved from a container.",
        "Mend the host's DNS, or set vllm_network_mode to host.",
    ),
    "certificate-not-trusted": (
        "The hub's TLS certificate is not trusted, as behind an inspecting proxy.",
        "Set vllm_ca_bundle to a file with the proxy's certificate authority.",
    ),
    "disk-full": (
        "The disk of {cache} has no room for {model}: {needed} are missing and {free} are free.",
        "Free room there (models that are not served any more are below {hub}), or set {variable} to a folder on a"
        " larger disk.",
    ),
    "permission-denied": (
        "The container may not write to {cache}.",
        "Give its user access to the folder (a mount in vllm_volumes: without :ro, with SELinux with :z).",
    ),
    "weights-missing": (
        "{model} has no weights that vLLM would load.",
        "Correct vllm_model, or load-format in vllm_extra_config.",
    ),
    "python-package-missing": (
        "The image has no huggingface_hub, which vLLM itself needs to fetch a model.",
        "Use another image (vllm_image), or put the model on the host and set vllm_model to its folder.",
    ),
}


def refusal(error: Mapping[str, Any], around: Surroundings) -> GpufleetError:
    """Return what hub_download answered as an error.

    Args:
        error: its C(error).
        around: how it went about it.
    """
    name = str(error["name"])
    meaning, remedy = REFUSALS.get(
        name,
        ("The download of {model} failed.", "Run the play again, which goes on with the files that are complete."),
    )
    revision = str(error.get("revision") or MAIN)
    model = Want(str(error.get("repository") or "the model"), revision)
    known = any("TOKEN" in secret for secret in around.secrets)
    values = {
        "model": model.repository if name == "revision-not-found" else model,
        "revision": revision,
        "status": error.get("status") or "unknown",
        "retries": around.retries,
        "cache": around.cache,
        "hub": around.cache.folder,
        "variable": around.cache.variable,
        "needed": f"{float(error.get('needed') or error.get('missing_bytes') or 0) / GIB:.1f} GiB",
        "free": f"{float(error['free']) / GIB:.1f} GiB" if "free" in error else "too few",
        "access": ACCESS.get(name, "the token in vllm_hf_token is not of such an account")
        if known
        else "vllm_hf_token is not set",
    }
    return GpufleetError(
        f"{meaning.format(**values)} No server was touched.",
        name=name,
        remedy=remedy.format(**values),
        evidence=without_secrets(str(error.get("text") or ""), around.secrets),
        details={key: error[key] for key in ("repository", "revision", "status", "needed", "free") if error.get(key)},
    )


def _not_here(missing: Sequence[tuple[Want, str]], around: Surroundings) -> GpufleetError:
    why = "vllm_offline is true" if around.offline else "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is in vllm_environment"
    told = "; ".join(f"{want}: {lack}" for want, lack in missing)
    return GpufleetError(
        f"{why}, so nobody is asked, and {around.cache} lacks what the server needs: {told}.",
        name="weights-missing",
        remedy=f"Copy the model's folder models--<owner>--<name> into {around.cache.folder} from a host that has it,"
        " whole (rsync -a, tar), or set vllm_model to a folder that holds the model.",
        details={"missing": {want.repository: lack for want, lack in missing}},
    )
