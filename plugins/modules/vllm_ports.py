# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Let only routers and monitoring hosts reach the servers' ports of a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_ports
short_description: Let only routers and monitoring hosts reach the servers' ports of a host
version_added: 0.2.0
author: gpufleet contributors (@gpufleet)
description:
  - Has iptables and ip6tables refuse connections to the ports of O(replicas) but from O(sources) and from the host
    itself. A port that Docker publishes goes by ufw and the like, so the rules are in a chain of their own to which
    C(DOCKER-USER), C(FORWARD) and C(INPUT) lead. What is connected stays so.
  - Where iptables is missing, a warning names the ports that are open.
  - The rules are kept in C(/etc/gpufleet-ports). Where there is systemd its unit C(gpufleet-close-ports) puts them back
    before Docker starts. A restart of Docker leaves them alone.
  - Servers that only their own host reaches need no rules.
  - Of two runs on a host the second one waits, as all deployments there have one script and one unit.
options:
  state:
    description:
      - V(absent) removes the rules of the deployment.
    type: str
    choices: [present, absent]
    default: present
  deployment:
    description:
      - What tells the deployment from others of its host, the prefix of its containers.
    type: str
    default: vllm
  replicas:
    description:
      - Servers of the host, each with the C(host) and C(port) at which it listens.
    type: list
    elements: dict
    default: []
  sources:
    description:
      - Addresses and networks that may reach the ports.
    type: list
    elements: str
    default: []
  keep_sources:
    description:
      - Leave in what was let in before, for when the addresses of a router could not be asked for.
    type: bool
    default: false
  keep_replicas:
    description:
      - Leave closed what was closed before, for when those servers may still run.
    type: bool
    default: false
extends_documentation_fragment:
  - gpufleet.vllm.common.changes
requirements:
  - iptables with iptables-restore
"""

EXAMPLES = r"""
- name: Let two routers and a network reach the server
  gpufleet.vllm.vllm_ports:
    replicas:
      - {host: 0.0.0.0, port: 8000}
    sources: [10.0.0.5, fd00::5, 10.1.0.0/24]

- name: Let everyone in again
  gpufleet.vllm.vllm_ports:
    state: absent
"""

RETURN = r"""
closed:
  description: Ports that are closed to others than RV(sources).
  returned: success
  type: list
  elements: int
  sample: [8000, 8001]
sources:
  description: Addresses and networks that may reach them.
  returned: success
  type: list
  elements: str
  sample: ["10.0.0.5/32", "fd00::5/128"]
error:
  description:
    - The failure in parts, C(name), C(message), C(remedy), C(evidence) and C(details).
    - Names are V(invalid-source), V(ports-not-closed), V(write-failed) and V(busy).
  returned: failure
  type: dict
"""

import contextlib
import os
import subprocess
import time
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import remove_file, write_file
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import list_folder, program_path, read_text
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.lock import host_lock
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.module import GpufleetModule
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.programs import run_command, run_program
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.systemd import Unit, on_systemd
from ansible_collections.gpufleet.vllm.plugins.module_utils.host import closed_ports
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.closed_ports import FAMILIES, HOOKS, chain_name

ARGUMENTS: dict[str, Any] = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "deployment": {"type": "str", "default": "vllm"},
    "replicas": {"type": "list", "elements": "dict", "default": []},
    "sources": {"type": "list", "elements": "str", "default": []},
    "keep_sources": {"type": "bool", "default": False},
    "keep_replicas": {"type": "bool", "default": False},
}
NO_IPTABLES = (
    "The ports {ports} are open to other machines: this host has no iptables to close them. Install it, or set"
    " vllm_restrict_ports: false and close them by a firewall of your own."
)
ATTEMPTS = 10
PAUSE_S = 0.5
LOCK = "/run/gpufleet-ports.lock"
LOCK_S = 60
UNIT = Unit(closed_ports.UNIT, "ports-not-closed")


def wanted_rules(params: dict[str, Any]) -> tuple[dict[str, str], list[closed_ports.Listener], list[str]]:
    """Return the text of each file of rules, empty where there is to be none, what is closed, and to whom not."""
    paths = {family: closed_ports.rules_path(params["deployment"], family) for family in families()}
    if params["state"] == "absent":
        return dict.fromkeys(paths.values(), ""), [], []
    before = {family: read_text(path) for family, path in paths.items()}
    kept = [source for text in before.values() for source in closed_ports.kept_sources(text)]
    sources = closed_ports.sources_of([*params["sources"], *(kept if params["keep_sources"] else [])])
    listeners = closed_ports.reachable_listeners(params["replicas"])
    if params["keep_replicas"]:
        listeners += [one for text in before.values() for one in closed_ports.kept_listeners(text)]
    listeners = sorted(set(listeners), key=lambda listener: (listener.port, listener.host))
    texts = {
        path: closed_ports.rules(params["deployment"], listeners, sources[family], family)
        for family, path in paths.items()
    }
    return texts, listeners, [source for family in paths for source in sources[family]] if listeners else []


def families() -> list[int]:
    """Return the families of addresses that this host has."""
    return [family for family in FAMILIES if family == 4 or os.path.exists(closed_ports.IPV6)]


def ask(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Return what iptables says; again while it fails for another reason than that there is no such rule or chain.

    Docker may change rules at the same time, as it does while it starts.
    """
    for _attempt in range(ATTEMPTS):
        said = run_program(command, capture_output=True)
        if said.returncode in (0, 1):
            break
        time.sleep(PAUSE_S)
    return said


def in_kernel(deployment: str, family: int, text: str) -> bool:
    """Return whether the kernel has a chain as it is wanted, or, without a text, does not have it."""
    program, chain = program_path(FAMILIES[family]) or "", chain_name(deployment)
    listed = ask([program, "--wait", "-S", chain])
    if not text:
        return listed.returncode != 0
    hooks = {hook: ask([program, "--wait", "-C", hook, "-j", chain]).returncode == 0 for hook in HOOKS}
    return closed_ports.is_in_place(text, chain, listed.stdout, hooks)


def remove_chain(deployment: str, family: int) -> None:
    """Take a deployment's chain away, and what leads there."""
    program, chain = program_path(FAMILIES[family]) or "", chain_name(deployment)
    for hook in HOOKS:
        while run_program([program, "--wait", "-D", hook, "-j", chain], capture_output=True).returncode == 0:
            pass
    for action in ("-F", "-X"):
        run_program([program, "--wait", action, chain], capture_output=True)


def differences(texts: dict[str, str], out_of_place: list[str]) -> list[dict[str, str]]:
    """Return what changes, file by file; a chain that the kernel lost is told as one that was empty."""
    found = []
    for path, text in texts.items():
        before = read_text(path)
        if before != text or path in out_of_place:
            found.append(
                {"before_header": path, "after_header": path, "before": before * (before != text), "after": text}
            )
    return found


def apply(deployment: str, texts: dict[str, str]) -> None:
    """Write the files and have the kernel take the rules.

    Raises:
        GpufleetError: C(write-failed) or C(ports-not-closed).
    """
    for path, text in texts.items():
        if text:
            write_file(path, text, 0o644)
        else:
            remove_file(path)
    for family in families():
        if not texts[closed_ports.rules_path(deployment, family)] and program_path(FAMILIES[family]):
            remove_chain(deployment, family)
    if any(texts.values()):
        run_command(
            [closed_ports.SCRIPT],
            name="ports-not-closed",
            doing="Closing the servers' ports",
            remedy="Evidence is what iptables says; the kernel's modules xt_conntrack, xt_addrtype and ipt_REJECT are"
            " needed. Set vllm_restrict_ports: false to leave the ports to a firewall of your own.",
        )


def ensure_own_files(check: bool) -> bool:
    """Have the script and the unit where there are rules, and not where there are none; return whether that changes."""
    needed = bool(list_folder(closed_ports.FOLDER))
    script = closed_ports.SCRIPT_TEXT if needed else ""
    unit = closed_ports.UNIT_TEXT if needed and on_systemd() else ""
    if read_text(closed_ports.SCRIPT) == script and read_text(UNIT.path) == unit:
        return False
    if check:
        return True
    if script:
        write_file(closed_ports.SCRIPT, script, 0o755)
    else:
        remove_file(closed_ports.SCRIPT)
    if unit:
        UNIT.write(unit)
        UNIT.systemctl("enable")
    else:
        UNIT.remove()
    return True


def work(module: GpufleetModule) -> dict[str, Any]:
    """Bring the rules to the wanted state, one run at a time; return the task's result."""
    if module.check_mode:
        return ensure_rules(module)
    with host_lock(LOCK, "vllm_ports", timeout=LOCK_S):
        return ensure_rules(module)


def ensure_rules(module: GpufleetModule) -> dict[str, Any]:
    """Bring the rules to the wanted state; return the task's result."""
    params, check = module.params, module.check_mode
    deployment = params["deployment"]
    texts, listeners, sources = wanted_rules(params)
    programs = {family: program_path(FAMILIES[family]) for family in families()}
    if any(texts.values()) and not all(programs.values()):
        listed = ", ".join(str(listener.port) for listener in listeners)
        told = {"warnings": [NO_IPTABLES.format(ports=listed)]}
        return {"changed": False, "closed": [], "sources": [], "diff": [], **told}
    out_of_place = [
        path
        for family, path in zip(programs, texts)
        if programs[family] and not in_kernel(deployment, family, texts[path])
    ]
    diff = differences(texts, out_of_place)
    if diff and not check:
        for path, text in texts.items():
            if text:
                write_file(path, text, 0o644)
        ensure_own_files(check)
        apply(deployment, texts)
    changed = ensure_own_files(check) or bool(diff)
    if not check:
        with contextlib.suppress(OSError):
            os.rmdir(closed_ports.FOLDER)
    return {
        "changed": changed,
        "closed": sorted({listener.port for listener in listeners}),
        "sources": sources,
        "diff": diff,
    }


def main() -> None:
    """Run the module."""
    module = GpufleetModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    module.run(lambda: work(module))


if __name__ == "__main__":
    main()
