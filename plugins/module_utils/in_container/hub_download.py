# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs in a throw-away container of the serving image: fetches from the hub what its vLLM will take of a model.

The image's own huggingface_hub does the work, in the cache that the server will mount, so that the server finds every
file where it looks. Its one argument is a JSON object: C(wants) (a list of C(repository), C(revision), C(weights) and
C(load_format), C(ignore)), C(fetch) (false only asks what is missing), C(retries) and C(backoff). Tokens and proxies
are in the environment, as they are for the server.

It prints lines that begin with PROGRESS_MARK (C(files), C(of), C(bytes), C(total), C(note)) and at the end one that
begins with ANSWER_MARK: C(models), or C(error) with C(name), C(repository), C(status), C(text) and the sizes.

Configuration and tokenizer come before the weights, so that a download that was broken off is not taken for a whole
model. Standard library and huggingface_hub only, Python 3.9: it runs on the image's interpreter.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import functools
import importlib
import importlib.util
import json
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, Callable

ANSWER_MARK = "gpufleet-answer:"
PROGRESS_MARK = "gpufleet-progress:"
PROGRESS_S = 1.0
INDEX = "model.safetensors.index.json"
CONSOLIDATED = "consolidated*.safetensors"
# What vLLM or transformers read besides the weights, and folders that hold copies for other programs.
SMALL = ("*.json", "*.txt", "*.model", "*.jinja", "*.py", "*.tiktoken", "*.yaml")
OTHERS_FOLDERS = ("original", "onnx", "openvino", "coreml", "metal", "gguf", "assets", "figures", "runs", "eval")
LARGEST_SMALL = 256 * 2**20
IGNORED = ("original/**/*",)
PATTERNS: dict[str, tuple[str, ...]] = {
    "auto": ("*.safetensors", "*.bin", "*.pt"),
    "hf": ("*.safetensors", "*.bin", "*.pt"),
    "mistral": (CONSOLIDATED,),
    "pt": ("*.pt",),
    "npcache": ("*.bin",),
    "bitsandbytes": ("*.safetensors", "*.bin", "*.pt"),
}
ONLY_SAFETENSORS = ("*.safetensors",)
LONGEST_TEXT = 600
LONGEST_PAUSE_S = 300.0
# A name that does not resolve or a closed port rarely recovers on its own: one more try while nothing has come yet.
BRIEF_RETRIES = 1
HUB_TIMEOUT_S = 30.0
# Seconds without a write after which nobody is taken to write a file: one that is there whole by now, one that lacks.
STALE_S = 60.0
ABANDONED_S = 600.0
STALE = re.compile(r"[0-9a-f]{40,64}\.[0-9a-f]{8}\.incomplete")
MOST_ROUNDS = 3
# What the HTTP libraries below huggingface_hub call errors of the way there.
PASSING = re.compile(r"Timeout|Protocol|Network|Connect|ReadError|Xet")


@dataclass(frozen=True)
class Remote:
    """A file at the hub: its path, size in bytes (None: not told) and the name of its blob in the cache."""

    path: str
    size: int | None
    blob: str


@dataclass
class WantedFiles:
    """The files that are wanted of one repository.

    Attributes:
        repository: its name.
        revision: branch, tag or commit.
        commit: what the revision is now.
        files: what is wanted, small files first.
        missing: those of them that are not in the cache.
        present_bytes: what there is of the wanted files, begun ones included.
    """

    repository: str
    revision: str
    commit: str
    files: list[Remote]
    missing: list[Remote] = field(default_factory=list)
    present_bytes: int = 0

    @property
    def total(self) -> int:
        """The bytes of all wanted files."""
        return sum(entry.size or 0 for entry in self.files)

    def as_result(self) -> dict[str, Any]:
        """Return it as data."""
        return {
            "repository": self.repository,
            "revision": self.revision,
            "commit": self.commit,
            "files": {entry.path: entry.size for entry in self.files},
            "bytes": self.total,
            "missing_files": [entry.path for entry in self.missing],
            "missing_bytes": max(self.total - self.present_bytes, 0) if self.missing else 0,
        }


class HubError(Exception):
    """What the hub, the network or the disk refuses.

    Attributes:
        name: the cause, by the names of diagnosis.
        transient: whether it may pass.
        brief: whether a second try is enough to tell that it does not.
        details: for the answer.
        pause: seconds that the hub asks to wait, or 0.
    """

    def __init__(
        self, name: str, text: str, *, transient: bool = False, brief: bool = False, pause: float = 0.0, **details: Any
    ) -> None:
        super().__init__(text)
        self.name = name
        self.transient = transient
        self.brief = brief
        self.pause = pause
        self.details = details


# What is taken


def small_files(paths: Iterable[str]) -> list[str]:
    """Return configuration, tokenizer, templates and code among a repository's files."""
    found = []
    for path in paths:
        folder = path.split("/")[0] if "/" in path else ""
        if folder.lower() in OTHERS_FOLDERS or folder.startswith("."):
            continue
        if any(fnmatch.fnmatch(path, pattern) for pattern in SMALL):
            found.append(path)
    return found


def weight_files(
    paths: Sequence[str],
    load_format: str,
    indexed: Sequence[str],
    traits: Mapping[str, bool],
    ignore: Sequence[str] = IGNORED,
) -> list[str]:
    """Return the files that vLLM loads weights from, as its download_weights_from_hf chooses them.

    Args:
        paths: the repository's files.
        load_format: vLLM's option load-format.
        indexed: the files that INDEX names; empty without one.
        traits: of the image's vLLM, see vllm_traits.
        ignore: patterns of files that it leaves out.
    """
    kept = [path for path in paths if not any(_matches(path, pattern) for pattern in ignore)]
    top = [path for path in kept if "/" not in path]
    patterns = PATTERNS.get(load_format, ONLY_SAFETENSORS)
    if load_format == "auto" and traits.get("prefers_consolidated") and fnmatch.filter(top, CONSOLIDATED):
        patterns = (CONSOLIDATED,)
    if indexed and "*.safetensors" in patterns and traits.get("reads_index", True):
        return sorted(set(indexed) & set(paths))
    for pattern in patterns:
        # vLLM looks at the repository's own folder; what snapshot_download then matches may lie below it.
        if fnmatch.filter(top, pattern):
            return sorted(fnmatch.filter(kept, pattern))
    return []


def _matches(path: str, pattern: str) -> bool:
    return fnmatch.fnmatch(path, pattern.replace("**/", "")) or fnmatch.fnmatch(path, pattern)


def vllm_traits() -> dict[str, bool]:
    """Return how the image's vLLM chooses files, read in its source: importing it takes long and wants a GPU."""
    with contextlib.suppress(ImportError, ValueError):
        found = importlib.util.find_spec("vllm")
        for folder in (found.submodule_search_locations if found else None) or []:
            loaders = os.path.join(folder, "model_executor", "model_loader")
            chooser = _read(os.path.join(loaders, "weight_utils.py")).partition("def download_weights_from_hf(")[2]
            default = _read(os.path.join(loaders, "default_loader.py"))
            if chooser:
                return {
                    "reads_index": "weight_map" in chooser.partition("\ndef ")[0],
                    "prefers_consolidated": f'allow_patterns=["{CONSOLIDATED}"]' in default,
                }
    return {"reads_index": True, "prefers_consolidated": True}


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read()
    except OSError:
        return ""


# The cache


def blobs_folder(cache: str, repository: str) -> str:
    """Return the folder of a repository's file contents in the cache."""
    return os.path.join(cache, "models--" + repository.replace("/", "--"), "blobs")


def used(folder: str) -> int:
    """Return the bytes below a folder of blobs, what is being written included."""
    total = 0
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                total += written(entry.path) if "." in entry.name else entry.stat().st_size
    return total


def written(path: str) -> int:
    """Return the bytes of a file without its holes: one that is written out of order has its full length early."""
    total, position = 0, 0
    descriptor = os.open(path, os.O_RDONLY)
    try:
        end = os.fstat(descriptor).st_size
        while position < end:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
            position = os.lseek(descriptor, start, os.SEEK_HOLE)
            total += position - start
    except OSError as error:
        if error.errno != errno.ENXIO:  # no data behind this place
            raise
    finally:
        os.close(descriptor)
    return total


def look(model: WantedFiles, cache: str) -> None:
    """Note what of a model's files the cache lacks, and what there is of them."""
    folder = blobs_folder(cache, model.repository)
    snapshot = os.path.join(os.path.dirname(folder), "snapshots", model.commit)
    missing, present = [], 0
    for entry in model.files:
        size = _size(os.path.join(snapshot, entry.path))
        if size is not None and entry.size in (None, size):
            present += size
            continue
        missing.append(entry)
        begun = [_size(os.path.join(folder, entry.blob + end)) or 0 for end in ("", ".incomplete")]
        present += min(max(begun), entry.size or 0)
    # Two threads look at it: what they note is whole at any time.
    model.missing, model.present_bytes = missing, present


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None


def remove_stale(cache: str, repository: str) -> None:
    """Remove what newer releases of huggingface_hub left of downloads that were killed; they cannot go on with it.

    Another process may be fetching the same: what was written lately stays, for longer while the whole file lacks.
    """
    folder = blobs_folder(cache, repository)
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            path, whole = os.path.join(folder, name), os.path.join(folder, name.partition(".")[0])
            with contextlib.suppress(OSError):
                quiet = time.time() - os.stat(path).st_mtime
                if STALE.fullmatch(name) and quiet > (STALE_S if os.path.exists(whole) else ABANDONED_S):
                    os.unlink(path)


# Errors


@dataclass(frozen=True)
class Symptoms:
    """What an exception shows, together with the exceptions that led to it.

    Attributes:
        classes: names of their classes, base classes included.
        text: class and message of each of them.
        numbers: their error numbers.
        status: HTTP status of the hub's answer; 0 if there was none.
        of_the_system: whether the exception itself is an OSError or a RuntimeError.
    """

    classes: frozenset[str]
    text: str
    numbers: frozenset[Any]
    status: int
    of_the_system: bool

    def local(self, numbers: AbstractSet[int]) -> bool:
        """Return whether it bears one of these error numbers, and is no connection's."""
        return bool(self.numbers & numbers) and not self.classes & CONNECTIONS

    def says(self, *phrases: str) -> bool:
        """Return whether one of the phrases occurs in the text."""
        return any(phrase in self.text for phrase in phrases)


@dataclass(frozen=True)
class ErrorKind:
    """A cause, by the names of diagnosis, and how it is recognised.

    Attributes:
        name: the cause.
        shows: whether the symptoms are those of this cause.
        transient: see HubError.
        brief: see HubError.
        hub_names_pause: whether the hub's answer may say how long to wait.
    """

    name: str
    shows: Callable[[Symptoms], bool]
    transient: bool = False
    brief: bool = False
    hub_names_pause: bool = False


# Errors of the disk and of the host, which trying again does not help, by their numbers in Linux.
FULL = {errno.ENOSPC, errno.EDQUOT}
FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
BROKEN = {errno.EIO, errno.ESTALE, errno.EUCLEAN, errno.EREMOTEIO, errno.ENODEV, errno.ENXIO, errno.ENOTCONN}
FILES_OPEN = {errno.EMFILE, errno.ENFILE}
# What the file system of the cache cannot do, and what lies in the place of a file or folder of it.
UNFIT = {
    *(errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EFBIG, errno.EXDEV, errno.ENAMETOOLONG, errno.EILSEQ),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.ENOTEMPTY, errno.EBUSY, errno.ETXTBSY),
    *(errno.EMLINK, errno.EDEADLK),
}
# A number in these is that of a connection.
CONNECTIONS = {"NewConnectionError", "ConnectError", "ConnectTimeout", "ConnectionError", "MaxRetryError"}
# How the texts of huggingface_hub (Python) and of hf_xet (Rust) hold a number.
NUMBERS = re.compile(r"\[Errno (\d+)\]|\(os error (\d+)\)")
# The first kind that the symptoms show counts.
ERROR_KINDS = (
    ErrorKind(
        "disk-full",
        lambda seen: (
            seen.local(FULL)
            or seen.says("No space left on device", "Not enough free disk space", "Disk quota exceeded")
        ),
    ),
    ErrorKind("permission-denied", lambda seen: seen.local(FORBIDDEN) or seen.says("I/O error: Permission denied")),
    ErrorKind(
        "storage-failed", lambda seen: seen.local(BROKEN) or seen.says("Input/output error", "Stale file handle")
    ),
    ErrorKind("too-many-open-files", lambda seen: seen.local(FILES_OPEN) or seen.says("Too many open files")),
    ErrorKind(
        "host-out-of-memory",
        lambda seen: seen.local({errno.ENOMEM}) or "MemoryError" in seen.classes or seen.says("Cannot allocate memory"),
    ),
    ErrorKind(
        "folder-not-writable",
        lambda seen: (
            seen.local(UNFIT) or seen.says("does not appear to support flock", "No locks available", "File too large")
        ),
    ),
    ErrorKind("certificate-not-trusted", lambda seen: seen.says("suitable TLS CA certificate bundle")),
    ErrorKind("model-gated", lambda seen: "GatedRepoError" in seen.classes),
    ErrorKind("revision-not-found", lambda seen: "RevisionNotFoundError" in seen.classes),
    ErrorKind("weights-missing", lambda seen: "OfflineModeIsEnabled" in seen.classes),
    ErrorKind("model-not-found", lambda seen: bool(seen.classes & {"RepositoryNotFoundError", "HFValidationError"})),
    ErrorKind("hub-refused", lambda seen: seen.status in (401, 403, 451)),
    ErrorKind("model-not-found", lambda seen: seen.status == 404),
    ErrorKind("hub-rate-limit", lambda seen: seen.status == 429, transient=True, hub_names_pause=True),
    ErrorKind(
        "hub-unreachable",
        lambda seen: seen.status >= 500 or seen.status == 408,
        transient=True,
        hub_names_pause=True,
    ),
    ErrorKind("certificate-not-trusted", lambda seen: seen.says("CERTIFICATE_VERIFY_FAILED")),
    ErrorKind(
        "name-not-resolved",
        lambda seen: seen.says(
            "name resolution", "Name or service not known", "Failed to resolve", "nodename nor servname"
        ),
        transient=True,
        brief=True,
    ),
    ErrorKind(
        "hub-unreachable",
        lambda seen: seen.says("Connection refused", "No route to host") or "unreachable" in seen.text.lower(),
        transient=True,
        brief=True,
    ),
    ErrorKind(
        "hub-unreachable",
        lambda seen: seen.of_the_system or any(PASSING.search(name) for name in seen.classes),
        transient=True,
    ),
    ErrorKind("download-failed", lambda _seen: True),
)


def hub_error(error: BaseException) -> HubError:
    """Return an exception of huggingface_hub, of the network below it or of the disk by its cause."""
    if isinstance(error, HubError):
        return error
    chain = list(_chain(error))
    responses = (getattr(entry, "response", None) for entry in chain)
    response = next((entry for entry in responses if entry is not None), None)
    text = " ".join(f"{type(entry).__name__}: {entry}" for entry in chain)
    numbers = {getattr(entry, "errno", None) for entry in chain}
    seen = Symptoms(
        classes=frozenset(kind.__name__ for entry in chain for kind in type(entry).__mro__),
        text=text,
        numbers=frozenset({*numbers, *(int(python or rust) for python, rust in NUMBERS.findall(text))}),
        status=int(getattr(response, "status_code", 0) or 0),
        of_the_system=isinstance(error, (OSError, RuntimeError)),
    )
    kind = next(kind for kind in ERROR_KINDS if kind.shows(seen))
    return HubError(
        kind.name,
        " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST_TEXT],
        transient=kind.transient,
        brief=kind.brief,
        pause=_retry_after(response) if kind.hub_names_pause else 0.0,
        status=seen.status,
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    rest: list[BaseException] = [error]
    while rest:
        entry = rest.pop(0)
        if id(entry) in seen:
            continue
        seen.add(id(entry))
        yield entry
        rest += [other for other in (entry.__cause__, entry.__context__) if other is not None]


def _retry_after(response: Any) -> float:
    """Return the seconds to wait that an answer names, as HTTP does or as the hub (C(RateLimit: "api";r=0;t=42))."""
    headers = getattr(response, "headers", None) or {}
    told = re.search(r"\bt=(\d+)", str(headers.get("RateLimit") or ""))
    after = str(headers.get("Retry-After") or "")
    return float(after) if re.fullmatch(r"\d+(\.\d+)?", after) else float(told[1]) if told else 0.0


# The work


class Download:
    """One run of this program.

    Args:
        job: see the head of this file.
        hub: the module huggingface_hub.
    """

    def __init__(self, job: Mapping[str, Any], hub: Any) -> None:
        self._job = job
        self._hub = hub
        self._cache = str(hub.constants.HF_HUB_CACHE)
        self._at: Mapping[str, Any] = {}
        self._note = ""
        self._came = 0

    def run(self) -> dict[str, Any]:
        """Return the answer."""
        started = time.monotonic()
        models: list[WantedFiles] = []
        try:
            for want in self._job["wants"]:
                self._at = want
                models.append(self._patiently(functools.partial(self._ask, want)))
            before = [model.as_result() for model in models]
            if self._job["fetch"]:
                self._check_room(models)
                for number, want in enumerate(self._job["wants"]):
                    self._at = want
                    if models[number].files:
                        came = self._fetch(models[number], want).as_result()
                        before[number].update((part, came[part]) for part in ("commit", "files", "bytes"))
        except HubError as error:
            return {
                "error": {
                    "name": error.name,
                    "text": str(error),
                    "repository": self._at["repository"],
                    "revision": self._at["revision"],
                    "missing_bytes": sum(model.as_result()["missing_bytes"] for model in models),
                    **error.details,
                }
            }
        return {"models": before, "seconds": round(time.monotonic() - started, 1)}

    def _ask(self, want: Mapping[str, Any]) -> WantedFiles:
        """Ask the hub what there is, and return what is wanted of it."""
        info = self._hub.HfApi().model_info(
            want["repository"], revision=want["revision"], files_metadata=True, timeout=HUB_TIMEOUT_S
        )
        remote = {entry.rfilename: _remote(entry) for entry in info.siblings or []}
        small = [path for path in small_files(remote) if (remote[path].size or 0) <= LARGEST_SMALL]
        chosen = list(small)
        if want["weights"]:
            weights = weight_files(
                list(remote),
                want["load_format"],
                self._indexed(want, info.sha) if INDEX in remote else [],
                vllm_traits(),
                want.get("ignore") or IGNORED,
            )
            if not weights:
                patterns = ", ".join(PATTERNS.get(want["load_format"], ONLY_SAFETENSORS))
                raise HubError("weights-missing", f"none of its {len(remote)} files matches {patterns}")
            chosen += [path for path in weights if path not in small]
        model = WantedFiles(want["repository"], want["revision"], info.sha, [remote[path] for path in chosen])
        look(model, self._cache)
        return model

    def _indexed(self, want: Mapping[str, Any], commit: str) -> list[str]:
        """Return the files that the index of the weights names."""
        with tempfile.TemporaryDirectory() as folder:
            path = self._hub.hf_hub_download(want["repository"], INDEX, revision=commit, cache_dir=folder)
            try:
                return sorted(set(json.loads(_read(path))["weight_map"].values()))
            except (ValueError, KeyError, AttributeError, TypeError):
                return []

    def _check_room(self, models: Sequence[WantedFiles]) -> None:
        """Refuse to begin what does not fit the disk."""
        for model in models:
            remove_stale(self._cache, model.repository)
        needed = sum(model.as_result()["missing_bytes"] for model in models)
        folder = self._cache
        while not os.path.isdir(folder):
            folder = os.path.dirname(folder)
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise HubError("disk-full", f"{needed} bytes are missing, {free} are free", needed=needed, free=free)

    def _fetch(self, model: WantedFiles, want: Mapping[str, Any]) -> WantedFiles:
        """Fetch every file of a model and point the revision at them; return what the model is by then."""
        for _round in range(MOST_ROUNDS):
            small = [entry for entry in model.files if _is_small(entry)]
            with self._reporting(model):
                for part in (small, [entry for entry in model.files if entry not in small]):
                    if any(entry in model.missing for entry in part):
                        self._patiently(functools.partial(self._get, model, part))
            if self._patiently(functools.partial(self._point, model)):
                remove_stale(self._cache, model.repository)
                return model
            # The revision moved on while it was fetched.
            model = self._patiently(functools.partial(self._ask, want))
        raise HubError("hub-unreachable", f"the revision {model.revision} changes again and again")

    def _get(self, model: WantedFiles, part: Sequence[Remote]) -> None:
        """Fetch some files; what huggingface_hub has already it leaves alone."""
        patterns = [_literal(entry.path) for entry in part]
        self._hub.snapshot_download(model.repository, revision=model.commit, allow_patterns=patterns)
        look(model, self._cache)
        left = [entry.path for entry in part if entry in model.missing]
        if left:
            raise HubError("hub-unreachable", f"{len(left)} files did not come, such as {left[0]}", transient=True)

    def _point(self, model: WantedFiles) -> bool:
        """Let huggingface_hub note which commit the revision is; return whether it is still the same."""
        pattern = _literal(model.files[0].path)
        folder = str(self._hub.snapshot_download(model.repository, revision=model.revision, allow_patterns=[pattern]))
        return os.path.basename(os.path.normpath(folder)) == model.commit

    def _patiently(self, step: Callable[[], Any]) -> Any:
        """Do a step, again where its failure may pass; bytes that came since the last failure begin a new count."""
        failures, before = 0, self._usage()
        while True:
            try:
                return step()
            except Exception as problem:
                error = hub_error(problem)
                came = self._usage() > before
                failures = 1 if came else failures + 1
                most = BRIEF_RETRIES if error.brief and not self._came else self._job["retries"]
                self._came += came
                if not error.transient or failures > most:
                    raise error from problem
                before = self._usage()
                pause = min(max(error.pause, self._job["backoff"] * 2 ** (failures - 1)), LONGEST_PAUSE_S)
                self._note = f"trying again in {pause:.0f} s: {error.name}"
                self._say(note=self._note)
                time.sleep(pause)
                self._note = ""

    def _usage(self) -> int:
        return sum(used(blobs_folder(self._cache, want["repository"])) for want in self._job["wants"])

    # Progress

    @contextlib.contextmanager
    def _reporting(self, model: WantedFiles) -> Iterator[None]:
        """Print how far the download is once a second inside the block."""
        folder, over = blobs_folder(self._cache, model.repository), threading.Event()
        start, had = used(folder), model.present_bytes

        def report() -> None:
            while not over.wait(PROGRESS_S):
                look(model, self._cache)
                came = had + used(folder) - start
                self._say(
                    repository=model.repository,
                    files=len(model.files) - len(model.missing),
                    of=len(model.files),
                    bytes=min(max(came, 0), model.total) if model.total else max(came, 0),
                    total=model.total,
                    note=self._note,
                )

        thread = threading.Thread(target=report, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _say(self, **state: Any) -> None:
        _print(PROGRESS_MARK + json.dumps(state))


def _is_small(entry: Remote) -> bool:
    return entry.path in small_files([entry.path])


def _literal(path: str) -> str:
    """Return a pattern that matches only this path."""
    return re.sub(r"([*?\[])", r"[\1]", path)


def _remote(entry: Any) -> Remote:
    """Return a file as huggingface_hub tells it; large ones are named by their SHA-256, others by git's id."""
    lfs = entry.lfs
    sha = (lfs.get("sha256") if isinstance(lfs, dict) else getattr(lfs, "sha256", None)) if lfs else None
    return Remote(entry.rfilename, entry.size, str(sha or entry.blob_id or ""))


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(arguments: Sequence[str]) -> None:
    """Run the program; it never fails by its exit status."""
    sys.path[:] = [entry for entry in sys.path if entry]
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    try:
        hub = importlib.import_module("huggingface_hub")
        importlib.import_module("huggingface_hub.constants")
        answer = Download(json.loads(arguments[0]), hub).run()
    except ImportError as error:
        answer = {"error": {"name": "python-package-missing", "text": f"{type(error).__name__}: {error}"}}
    _print("\n" + ANSWER_MARK + json.dumps(answer))
    # Threads of a library that still wait for the network would keep this from ending.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
