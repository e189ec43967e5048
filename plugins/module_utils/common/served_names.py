# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The names by which requests ask a server for its model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

# In a list of names: that of the model itself, whatever it is on a host.
OWN_NAME = "auto"
# White space would end a name in the router's files, and quotes its error.
MODEL_NAME = re.compile(r"[^\s\"'\\\x00-\x1f\x7f#][^\s\"'\\\x00-\x1f\x7f]{0,199}")


def names_of(value: Any) -> list[str]:
    """Return the names in a value of vllm_served_model_name: one, several with commas, or a list.

    Raises:
        ValueError: for anything else.
    """
    entries = value.split(",") if isinstance(value, str) else value
    if not isinstance(entries, (list, tuple)) or any(isinstance(name, (bool, dict, list)) for name in entries):
        raise ValueError("it must be a name, or a list of names")
    return [str(name).strip() for name in entries]


def first_name(value: Any) -> str:
    """Return the first name in a value of vllm_served_model_name that says one; empty if none does."""
    return next((name for name in names_of(value or "") if name != OWN_NAME), "")


def served_names(config: Mapping[str, Any], model: str) -> list[str]:
    """Return the names by which a server is asked for its model, the one that it answers with first.

    Args:
        config: the server's options.
        model: what stands after C(vllm serve).
    """
    names = config.get("served-model-name")
    found = [str(name) for name in names] if isinstance(names, (list, tuple)) else str(names or "").split()
    return found or [model]


def adapter_names(config: Mapping[str, Any]) -> list[str]:
    """Return the names of the adapters (LoRA) that a server has from its start."""
    modules = config.get("lora-modules") or []
    entries = modules if isinstance(modules, (list, tuple)) else [modules]
    return [name for entry in entries if (name := _adapter_name(entry))]


def _adapter_name(entry: Any) -> str:
    """Return the name in an entry of lora-modules: C(name=path), or JSON with C(name)."""
    text = entry if isinstance(entry, str) else json.dumps(entry)
    if not text.startswith("{"):
        return text.partition("=")[0] if "=" in text else ""
    try:
        return str(json.loads(text).get("name") or "")
    except ValueError:
        return ""
