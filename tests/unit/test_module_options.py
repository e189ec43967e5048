# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is documented of each module's options is what the module, or the action plugin in its place, takes."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

PLUGINS = "ansible_collections.gpufleet.vllm.plugins"
MODULES = sorted(path.stem for path in (Path(__file__).resolve().parents[2] / "plugins" / "modules").glob("*.py"))


def documented(module: ModuleType) -> dict[str, Any]:
    """Return the options in a module's documentation and in the fragments that it extends."""
    documentation = yaml.safe_load(module.DOCUMENTATION)
    options = dict(documentation.get("options") or {})
    for name in documentation.get("extends_documentation_fragment") or []:
        file, _dot, part = name.removeprefix("gpufleet.vllm.").partition(".")
        fragment = importlib.import_module(f"{PLUGINS}.doc_fragments.{file}").ModuleDocFragment
        options.update(yaml.safe_load(getattr(fragment, (part or "documentation").upper()))["options"])
    return options


def taken(name: str, module: ModuleType) -> dict[str, Any]:
    """Return the argument specification of a module, or of the action plugin where the module is documentation only."""
    if hasattr(module, "ARGUMENTS"):
        return dict(module.ARGUMENTS)
    return dict(importlib.import_module(f"{PLUGINS}.action.{name}").ActionModule.specification())


def compared(options: dict[str, Any], inside: str) -> dict[str, Any]:
    """Return what documentation and specification say alike of options; C(inside) names the options within one."""
    return {
        name: {
            "type": about.get("type", "str"),
            "default": about.get("default"),
            "required": bool(about.get("required")),
            **{part: about.get(part) or [] for part in ("elements", "choices", "aliases")},
            "options": compared(about.get(inside) or {}, inside),
        }
        for name, about in options.items()
    }


@pytest.mark.parametrize("name", MODULES)
def test_the_documented_options_are_those_it_takes(name: str) -> None:
    module = importlib.import_module(f"{PLUGINS}.modules.{name}")
    assert compared(documented(module), "suboptions") == compared(taken(name, module), "options")
