# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The names of the variables that the collection's roles document."""

from __future__ import annotations

from pathlib import Path

import yaml

ROLES = Path(__file__).resolve().parents[3] / "roles"


def documented_variables(roles: Path) -> frozenset[str]:
    """Return every option in C(*/meta/argument_specs.yml) below C(roles), of every entry point."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    names: set[str] = set()
    for path in sorted(roles.glob("*/meta/argument_specs.yml")):
        with path.open("rb") as stream:
            specs = yaml.load(stream, Loader=loader)  # noqa: S506  a safe loader, in C where there is one
        for entry_point in ((specs or {}).get("argument_specs") or {}).values():
            names.update(entry_point.get("options") or {})
    return frozenset(names)


# Read on import: Ansible imports an action plugin once and then forks a worker for every host, which would read the
# files again. For 500 hosts that made up most of the time of planning.
KNOWN_VARIABLES = documented_variables(ROLES)
