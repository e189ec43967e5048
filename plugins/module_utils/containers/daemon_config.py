# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Docker's daemon.json: read, merged and never overwritten."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import program_path
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.programs import run_command
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.secret_names import is_secret
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.daemon_options import CONFIG

CONFIG_MODE = 0o644  # of a new one, as Docker's is
RUNTIME = "nvidia"


@dataclass
class DaemonWish:
    """What the daemon of a host should be.

    Attributes:
        docker_host: where it answers.
        config: keys of daemon.json and their values; inside mappings key by key.
        nvidia_runtime: whether containers can have GPUs, by NVIDIA's container toolkit.
        cdi: whether they can have them by CDI.
        allow_restart: whether it may be restarted while containers run.
        path: its daemon.json.
        variable: the variable that allows the restart, for messages.
        proxies: variables that name the proxies by which it pulls; None leaves them as they are.
    """

    docker_host: str
    config: dict[str, Any] = field(default_factory=dict)
    nvidia_runtime: bool = False
    cdi: bool = False
    allow_restart: bool = False
    path: str = CONFIG
    variable: str = "docker_allow_restart"
    proxies: dict[str, str] | None = field(default=None, repr=False)


def read_config(path: str) -> tuple[str, dict[str, Any]]:
    """Return the text and the content of a daemon.json; empty when there is no such file.

    Raises:
        GpufleetError: C(daemon-config-invalid) when it is not what Docker reads.
    """
    try:
        with open(path, encoding="utf-8") as stream:
            text = stream.read()
    except FileNotFoundError:
        return "", {}
    except (OSError, UnicodeDecodeError) as error:
        raise _invalid(path, str(error)) from error
    if not text.strip():
        return text, {}
    try:
        content = json.loads(text)
    except ValueError as error:
        raise _invalid(path, f"{error}: {_line_of(text, error)}") from error
    if not isinstance(content, dict):
        raise _invalid(path, f"it holds a {type(content).__name__}, not an object")
    return text, content


def _invalid(path: str, evidence: str) -> GpufleetError:
    return GpufleetError(
        f"{path} is not valid JSON, so nothing can be added to it. It was left as it is.",
        name="daemon-config-invalid",
        remedy=f"Correct it by hand (dockerd --validate --config-file={path}, or python3 -m json.tool {path}, shows"
        " where), or remove it.",
        evidence=evidence,
        details={"path": path},
    )


def _line_of(text: str, error: ValueError) -> str:
    lines = text.splitlines()
    number = getattr(error, "lineno", 1)
    return lines[number - 1].strip()[:120] if 0 < number <= len(lines) else ""


def merge(content: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with the wanted keys in it: mappings are merged, anything else is replaced."""
    merged = dict(content)
    for key, value in wanted.items():
        inner = merged.get(key)
        merged[key] = merge(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


def render(content: Mapping[str, Any]) -> str:
    """Return the text of a daemon.json, as C(nvidia-ctk) indents it."""
    return json.dumps(content, indent=4) + "\n"


def shown(text: str) -> str:
    """Return a daemon.json as it may be shown: without passwords, which proxies and logging options can hold."""
    return render(_masked(json.loads(text))) if text.strip() else text


def _masked(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _masked(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [_masked(inner, key) for inner in value]
    return "(hidden)" if isinstance(value, str) and is_secret(key, value) else value


def with_nvidia_runtime(path: str, text: str, cdi: bool) -> str:
    """Return what C(nvidia-ctk runtime configure) makes of a daemon.json, which itself stays as it is.

    Raises:
        GpufleetError: C(toolkit-missing) or C(toolkit-failed).
    """
    program = program_path("nvidia-ctk")
    if not program:
        raise GpufleetError(
            "NVIDIA's container toolkit is not installed: there is no nvidia-ctk.",
            name="toolkit-missing",
            remedy="Let the role gpufleet.vllm.nvidia_container_toolkit install it, or set vllm_gpu_access: devices.",
        )
    with tempfile.TemporaryDirectory(prefix="gpufleet-") as folder:
        copy = os.path.join(folder, os.path.basename(path))
        if text.strip():
            with open(copy, "w", encoding="utf-8") as stream:
                stream.write(text)
        run_command(
            [program, "runtime", "configure", "--runtime=docker", f"--config={copy}", *(["--cdi.enabled"] * cdi)],
            name="toolkit-failed",
            doing="Making Docker know NVIDIA's runtime",
            remedy="Run the command by hand on the host to see more.",
        )
        configured, content = read_config(copy)
    lost = sorted(key for key, value in json.loads(text or "{}").items() if key not in content)
    if lost or RUNTIME not in content.get("runtimes", {}):
        what = f"dropped {', '.join(lost)}" if lost else f"added no runtime {RUNTIME}"
        raise GpufleetError(
            f"nvidia-ctk {what} in its version of {path}, which was left as it is.",
            name="toolkit-failed",
            remedy="Update the toolkit (nvidia_container_toolkit_version), or add the runtime to daemon.json by hand.",
        )
    return configured


def wanted_config(wish: DaemonWish) -> tuple[str, str, list[str]]:
    """Return the text of daemon.json now, as it has to be, and the keys at its top that differ.

    The text stays what it is when its content is what is wanted.

    Raises:
        GpufleetError: as C(read_config) and C(with_nvidia_runtime) do.
    """
    before, content = read_config(wish.path)
    wanted = merge(content, wish.config)
    after = before if wanted == content else render(wanted)
    if wish.nvidia_runtime and not has_nvidia(wanted, wish.cdi):
        after = with_nvidia_runtime(wish.path, after, wish.cdi)
        wanted = json.loads(after)
    keys = sorted(key for key in {*content, *wanted} if content.get(key) != wanted.get(key))
    return before, after, keys


def has_nvidia(content: Mapping[str, Any], cdi: bool) -> bool:
    """Tell whether a daemon.json names NVIDIA's runtime, and CDI if that is wanted."""
    runtimes, features = content.get("runtimes"), content.get("features")
    known = isinstance(runtimes, dict) and RUNTIME in runtimes
    return known and (not cdi or (isinstance(features, dict) and features.get("cdi") is True))
