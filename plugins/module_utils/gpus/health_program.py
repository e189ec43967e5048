# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A program on a GPU host: reads how the GPUs are, and writes it down for monitoring, for C(status) and for the router.

systemd's timer runs it every half minute, so it has to be cheap: the system's Python without any package, few modules,
one call for the kernel's log. Importing json and re takes longer than a look at eight GPUs, so what it reads of JSON is
kept until the file changes, and what it writes of it is put together here. XID events come from the kernel's log. NVML
tells them only to who listens at the moment that they occur, and a program that listens keeps the GPUs open, so that
they cannot be reset.

A reading that the driver or card does not support is no sickness and no failure. One that fails is told as such, so
that a GPU that cannot be read is not taken for a healthy one. C(settings.json) in the program's folder says what is
wanted.
"""

from __future__ import annotations

import ctypes
import marshal
import os
import sys
import time

from ansible_collections.gpufleet.vllm.plugins.module_utils.gpus.health_findings import SICK, WORDS, Findings
from ansible_collections.gpufleet.vllm.plugins.module_utils.gpus.light_nvml import NO_GPU, Gpu, Nvml, pci_key

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing takes a tenth of a run
    from collections.abc import Mapping, Sequence
    from typing import Any, Callable

REPORT, STATE, METRICS = "report.json", "state", "gpufleet_gpu_health.prom"
CONTROL_FILE = "gpu-health.json"
SETTINGS = "settings.json"
XID = b"NVRM: Xid ("
READ_ALL, SIZE = 3, 10
JOURNAL = ["journalctl", "--dmesg", "--boot", "--no-pager", "--output=short-monotonic", "--grep=NVRM: Xid"]
JOURNAL_S = 20
REPAIRED = "--repaired"
# How JSON writes what may not stand in a text; metrics know the last three.
ESCAPES = {**{code: f"\\u{code:04x}" for code in range(32)}, 10: "\\n", 34: '\\"', 92: "\\\\"}


def kernel_log() -> bytes | None:
    """Return what the kernel's buffer holds; None where it cannot be read."""
    libc = ctypes.CDLL(None, use_errno=True)
    size = libc.klogctl(SIZE, None, 0)
    if size <= 0:
        return None
    buffer = ctypes.create_string_buffer(size)
    length = libc.klogctl(READ_ALL, buffer, size)
    return ctypes.string_at(buffer, length) if length >= 0 else None


def journal() -> bytes:
    """Return the lines of XID events since boot that systemd has kept; nothing where it keeps none."""
    import subprocess  # of the first run alone

    try:
        return subprocess.run(JOURNAL, capture_output=True, timeout=JOURNAL_S, check=False).stdout  # pylint: disable=ansible-bad-function
    except (OSError, subprocess.SubprocessError):
        return b""


def xid_in(line: bytes) -> tuple[float, str, str, str] | None:
    """Return the time, the GPU's place on the bus, the number and the words of an XID event; None for another line."""
    head, mark, event = line.partition(XID)
    place, _end, rest = event.partition(b"): ")
    number, _comma, words = rest.partition(b",")
    try:
        at = float(head.partition(b"[")[2].partition(b"]")[0])
    except ValueError:
        return None
    if not mark or not number.isdigit():
        return None
    told = words.decode(errors="replace").strip()[:WORDS]
    return at, pci_key(place.decode(errors="replace").replace("PCI:", "")), number.decode(), told


def read_xids(state: dict[str, Any], text: bytes | None) -> bool:
    """Add the events of the kernel's log that are new to the state; return whether the log could be read.

    The buffer forgets what is old, so the first run since boot asks the journal, too.
    """
    xids = state.setdefault("xids", {})
    first = "log_at" not in state
    after = float(state.get("log_at", -1.0))
    earlier = journal() if first else b""
    lines = earlier + b"\n" + (text or b"")
    seen = set()
    for line in lines.split(b"\n") if XID in lines else ():
        found = xid_in(line)
        # The journal and the buffer have the same line.
        if not found or found[0] <= after or found[:3] in seen:
            continue
        at, place, number, words = found
        seen.add(found[:3])
        event = xids.setdefault(place, {}).setdefault(number, {"count": 0, "at": at, "text": ""})
        event.update(count=event["count"] + 1, at=at, text=words)
        state["log_at"] = max(at, float(state.get("log_at", -1.0)))
    state.setdefault("log_at", -1.0)
    return text is not None or bool(earlier)


# What the host is to have


def plans_of(
    deployments: Sequence[Mapping[str, Any]], state: dict[str, Any]
) -> list[tuple[Mapping[str, Any], list[Any]]]:
    """Return each deployment with the replicas of what serves there; one without a plan has none."""
    paths = (os.path.join(deployment["directory"], "plan.json") for deployment in deployments)
    return [(deployment, read_json(path, state, replicas_in) or []) for deployment, path in zip(deployments, paths)]


def replicas_in(plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what is needed of a plan's replicas."""
    return [{key: replica.get(key) for key in ("name", "gpus", "gpu_uuids")} for replica in plan.get("replicas") or []]


def missing(replicas: Sequence[Mapping[str, Any]], there: set[str]) -> list[str]:
    """Return the UUIDs of GPUs that replicas have, and the driver does not list."""
    wanted = [uuid for replica in replicas for uuid in replica.get("gpu_uuids") or []]
    return [uuid for uuid in dict.fromkeys(wanted) if uuid not in there]


def concerns(replica: Mapping[str, Any], finding: Mapping[str, str]) -> bool:
    """Return whether a finding is of a GPU that a replica has; one whose GPU is not known concerns all."""
    uuids = replica.get("gpu_uuids") or []
    if uuids and finding["uuid"]:
        return finding["uuid"] in uuids
    indexes = [str(index) for index in replica.get("gpus") or []]
    return finding["gpu"] in indexes if indexes and finding["gpu"].isdigit() else bool(indexes or uuids)


# Files


def read_json(path: str, state: dict[str, Any], take: Callable[[Any], Any]) -> Any:
    """Return what is taken of a file of JSON, which is read again only when it has changed; None where it cannot be."""
    kept = state.setdefault("files", {})
    try:
        about = os.stat(path)
        mark = (about.st_mtime_ns, about.st_size, about.st_ino)
        if kept.get(path, (None,))[0] != mark:
            import json

            with open(path, encoding="utf-8") as stream:
                kept[path] = mark, take(json.load(stream))
        return kept[path][1]
    except (OSError, ValueError, AttributeError):
        return None


def read_state(path: str) -> dict[str, Any]:
    """Return what earlier runs since boot have left; nothing at the first one."""
    try:
        with open(path, "rb") as stream:
            state: dict[str, Any] = marshal.load(stream)  # noqa: S302  only root writes it
            return state
    except (OSError, EOFError, ValueError, TypeError):
        return {}


def escaped(text: str) -> str:
    """Return a text as it stands between the quotes of JSON and of metrics' labels."""
    return text.translate(ESCAPES)


def as_json(value: Any) -> str:
    """Return a value as JSON."""
    if isinstance(value, str):
        return f'"{escaped(value)}"'
    if isinstance(value, dict):
        return "{" + ", ".join(f"{as_json(str(key))}: {as_json(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(as_json, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value)


def replace(path: str, content: bytes) -> None:
    """Write a file as a whole, for all to read."""
    folder = os.path.dirname(path)
    os.makedirs(folder, mode=0o755, exist_ok=True)
    temporary = os.path.join(folder, f".new-{os.getpid()}")
    with open(temporary, "wb") as stream:
        stream.write(content)
        os.fchmod(stream.fileno(), 0o644)
    os.replace(temporary, path)


def write_json(path: str, value: Any) -> None:
    """Write a value as JSON, for all to read."""
    replace(path, f"{as_json(value)}\n".encode())


def labelled(name: str, value: float, **labels: str) -> str:
    """Return one line of metrics."""
    words = (f'{label}="{escaped(text)}"' for label, text in labels.items())
    return f"{name}{{{','.join(words)}}} {value:g}\n" if labels else f"{name} {value:.17g}\n"


HELP = {
    "gpufleet_gpu_count": "GPUs that the driver lists.",
    "gpufleet_gpu_sick": "1 for each reason why a GPU should get no work.",
    "gpufleet_gpu_warning": "1 for each reason to look after a GPU that may work on.",
    "gpufleet_gpu_reading_failed": "1 for each reading that could not be taken.",
    "gpufleet_gpu_xid_total": "XID events since the host booted.",
    "gpufleet_gpu_nvlink_errors_total": "Errors of NVLinks since the driver was loaded.",
    "gpufleet_gpu_health_time_seconds": "When the GPUs were last looked at, in seconds since the epoch.",
    "gpufleet_gpu_health_cpu_seconds": "Processor time that the last look took.",
}


def metrics(report: Mapping[str, Any]) -> str:
    """Return a report as metrics for node_exporter's textfile collector."""
    samples: dict[str, list[str]] = {name: [] for name in HELP}
    samples["gpufleet_gpu_count"].append(labelled("gpufleet_gpu_count", len(report["gpus"])))
    for finding in report["findings"]:
        name = f"gpufleet_gpu_{finding['severity']}"
        samples[name].append(labelled(name, 1, gpu=finding["gpu"], reason=finding["reason"]))
    for entry in report["unread"]:
        samples["gpufleet_gpu_reading_failed"].append(labelled("gpufleet_gpu_reading_failed", 1, **entry))
    for gpu, events in report["xids"].items():
        for number, count in events.items():
            samples["gpufleet_gpu_xid_total"].append(labelled("gpufleet_gpu_xid_total", count, gpu=gpu, xid=number))
    for gpu, counts in report["nvlink_errors"].items():
        for kind, count in counts.items():
            line = labelled("gpufleet_gpu_nvlink_errors_total", count, gpu=gpu, kind=kind)
            samples["gpufleet_gpu_nvlink_errors_total"].append(line)
    for name in ("time", "cpu"):
        full = f"gpufleet_gpu_health_{name}_seconds"
        samples[full].append(labelled(full, report[name]))
    kinds = {name: "counter" if name.endswith("_total") else "gauge" for name in HELP}
    return "".join(
        f"# HELP {name} {HELP[name]}\n# TYPE {name} {kinds[name]}\n{''.join(dict.fromkeys(lines))}"
        for name, lines in samples.items()
        if lines
    )


# The run


def gpus_of(found: Findings) -> list[Gpu]:
    """Return the GPUs that the driver lists; that it cannot be asked is noted."""
    try:
        nvml = Nvml()
    except OSError:
        found.unread.append({"gpu": "all", "reading": "nvml-library"})
        return []
    error = nvml.call("nvmlInitWithFlags", ctypes.c_uint(1)) and nvml.call("nvmlInit_v2")
    count = ctypes.c_uint()
    error = error or nvml.call("nvmlDeviceGetCount_v2", ctypes.byref(count))
    if error and error not in NO_GPU:
        found.unread.append({"gpu": "all", "reading": f"nvml-error-{error}"})
    return [] if error else [Gpu(nvml, index) for index in range(count.value)]


def examine(interval: int, replicas: Sequence[Mapping[str, Any]], state: dict[str, Any]) -> dict[str, Any]:
    """Look at the GPUs, among them those that replicas have, and return the report."""
    found = Findings(state)
    gpus = gpus_of(found)
    for gpu in gpus:
        found.look(gpu)
    if gpus or not found.unread:
        for uuid in missing(replicas, {gpu.uuid for gpu in gpus}):
            found.add(uuid, uuid, "missing", SICK, "a server has it, and the driver does not list it")
    places = state.setdefault("places", {})
    places.update({gpu.pci: [str(gpu.index), gpu.uuid] for gpu in gpus if gpu.pci})
    if not read_xids(state, kernel_log()):
        found.unread.append({"gpu": "all", "reading": "kernel-log"})
    names = {place: (names[0], names[1]) for place, names in places.items()}
    found.judge_xids(state["xids"], names)
    return {
        "time": time.time(),
        "cpu": time.process_time(),
        "interval": interval,
        "gpus": [{"index": gpu.index, "uuid": gpu.uuid} for gpu in gpus],
        "findings": found.found,
        "unread": found.unread,
        "nvlink_errors": found.link_errors,
        "xids": {
            names.get(place, (place, ""))[0]: {number: event["count"] for number, event in events.items()}
            for place, events in state["xids"].items()
        },
    }


def tell_servers(
    deployment: Mapping[str, Any], replicas: Sequence[Mapping[str, Any]], report: Mapping[str, Any]
) -> None:
    """Write for each server what is wrong with its own GPUs, where its door tells it to the router."""
    for replica in replicas:
        folder = os.path.join(deployment["directory"], "control", str(replica["name"]))
        if not os.path.isdir(folder):
            continue
        own = [finding for finding in report["findings"] if concerns(replica, finding)]
        told = {
            "at": round(report["time"]),
            "action": deployment["action"],
            "sick": sorted({f"GPU {entry['gpu']}: {entry['reason']}" for entry in own if entry["severity"] == SICK}),
            "unread": len(report["unread"]),
        }
        write_json(os.path.join(folder, CONTROL_FILE), told)


def main(folder: str) -> None:
    """Look once; with REPAIRED, take the XID events so far for dealt with.

    The folder to write to is this program's first argument.

    Args:
        folder: that of the program, which has its settings.
    """
    run_dir = sys.argv[1]
    state = read_state(os.path.join(run_dir, STATE))
    settings = read_json(os.path.join(folder, SETTINGS), state, dict)
    plans = plans_of(settings["deployments"], state)
    if REPAIRED in sys.argv[2:]:
        state["repaired"] = time.clock_gettime(time.CLOCK_MONOTONIC)
    report = examine(settings["interval"], [replica for _deployment, there in plans for replica in there], state)
    replace(os.path.join(run_dir, STATE), marshal.dumps(state))
    write_json(os.path.join(run_dir, REPORT), report)
    for deployment, replicas in plans:
        tell_servers(deployment, replicas, report)
    if settings["textfile_dir"]:
        replace(os.path.join(settings["textfile_dir"], METRICS), metrics(report).encode())
