# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A look at a virtual environment and at pip's settings, without running either."""

from __future__ import annotations

import configparser
import os
import re
from typing import TypedDict

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import list_folder, read_text

REQUIREMENT = re.compile(r"^\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[[^\]]*\])?\s*(.*?)\s*$")
CLAUSE = re.compile(r"^(==|!=|>=|<=|>|<)\s*([0-9][A-Za-z0-9.+!_-]*)$")


class BundleInfo(TypedDict):
    """The CA bundle that pip is configured to use, and where that is configured."""

    path: str
    source: str


class VenvInfo(TypedDict):
    """A virtual environment, and whether it meets the requirements."""

    path: str
    exists: bool
    reason: str
    python: str
    python_version: str | None
    distributions: dict[str, str]
    missing: list[str]
    satisfied: bool


def venv(path: str, requirements: list[str]) -> VenvInfo:
    """Return whether a virtual environment can be used and holds what is required.

    Args:
        path: its folder.
        requirements: as pip takes them, such as C(docker==7.1.0); environment markers are not understood.

    Returns:
        C(path), C(exists) (it has a Python that can be started), C(reason) (why not), C(python), C(python_version),
        C(distributions) (normalised name to version), C(missing) (requirements not met) and C(satisfied).
    """
    result: VenvInfo = {
        "path": path,
        "exists": False,
        "reason": "",
        "python": os.path.join(path, "bin/python"),
        "python_version": None,
        "distributions": {},
        "missing": list(requirements),
        "satisfied": False,
    }
    if not os.path.isdir(path):
        return {**result, "reason": "The folder does not exist."}
    if not os.access(result["python"], os.X_OK):
        # An upgrade of the distribution replaces the Python that the environment links to.
        return {**result, "reason": "It has no Python that can be started; it must be made anew."}
    found = re.search(r"^version(?:_info)?\s*=\s*(\d+\.\d+\.\d+)", read_text(path, "pyvenv.cfg"), re.MULTILINE)
    result.update({"exists": True, "python_version": found.group(1) if found else None})
    result["distributions"] = distributions(_site_packages(path))
    result["missing"] = [wish for wish in requirements if not is_met(wish, result["distributions"])]
    result["satisfied"] = not result["missing"]
    return result


def _site_packages(path: str) -> str:
    """Return the folder that this environment's Python imports from: the one of its own version."""
    real = os.path.basename(os.path.realpath(os.path.join(path, "bin/python")))
    names = [name for name in list_folder(path, "lib") if name.startswith("python")]
    chosen = real if real in names else (names[-1] if names else "")
    return os.path.join(path, "lib", chosen, "site-packages")


def distributions(site_packages: str) -> dict[str, str]:
    """Return normalised name to version of the distributions installed in a folder."""
    found = {}
    for entry in list_folder(site_packages):
        if entry.endswith(".dist-info") and os.path.exists(os.path.join(site_packages, entry, "METADATA")):
            name, _dash, version = entry[: -len(".dist-info")].rpartition("-")
            found[normalise(name)] = version
    return found


def normalise(name: str) -> str:
    """Return a distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def is_met(requirement: str, installed: dict[str, str]) -> bool:
    """Return whether a requirement is met for certain; one that is not understood is not, so that pip judges it."""
    parsed = REQUIREMENT.match(requirement)
    if not parsed:
        return False
    version = installed.get(normalise(parsed.group(1)))
    if version is None:
        return False
    clauses = [clause.strip() for clause in parsed.group(2).split(",") if clause.strip()]
    return all(_allows(clause, version) for clause in clauses)


def _allows(clause: str, version: str) -> bool:
    parsed = CLAUSE.match(clause)
    if not parsed:
        return False
    operator, wanted = parsed.groups()
    have, want = _comparable(version), _comparable(wanted)
    return {
        "==": have == want,
        "!=": have != want,
        ">=": have >= want,
        "<=": have <= want,
        ">": have > want,
        "<": have < want,
    }[operator]


def _comparable(version: str) -> tuple[list[int], bool, str]:
    """Return a release's numbers without closing zeros, then whether it is final: enough for pinned releases."""
    numbers = re.match(r"\d+(?:\.\d+)*", version)
    release = numbers.group(0) if numbers else "0"
    parts = [int(part) for part in release.split(".")]
    while len(parts) > 1 and parts[-1] == 0:
        parts.pop()
    rest = version[len(release) :].lower()
    before_final = re.match(r"[._-]?(a|b|c|rc|alpha|beta|pre|dev)", rest) is not None
    return parts, not before_final, rest


def ca_bundle(root: str = "/", home: str | None = None) -> BundleInfo | None:
    """Return C(path) and C(source) of the CA bundle that pip is configured to use on this host, or None.

    The later source wins, as in pip: system files, the user's files, the file PIP_CONFIG_FILE, the variable PIP_CERT.
    A bundle that is configured but does not exist is left out.
    """
    user = home if home is not None else os.path.expanduser("~")
    files = [
        os.path.join(root, "etc/xdg/pip/pip.conf"),
        os.path.join(root, "etc/pip.conf"),
        os.path.join(user, ".pip/pip.conf"),
        os.path.join(user, ".config/pip/pip.conf"),
        os.environ.get("PIP_CONFIG_FILE", ""),
    ]
    found: BundleInfo = {"path": "", "source": ""}
    for path in files:
        bundle = _configured_bundle(path)
        if bundle:
            found = {"path": bundle, "source": path}
    if os.environ.get("PIP_CERT"):
        found = {"path": os.environ["PIP_CERT"], "source": "PIP_CERT"}
    return found if found["path"] and os.path.isfile(found["path"]) else None


def _configured_bundle(path: str) -> str:
    settings = configparser.RawConfigParser(strict=False)
    try:
        settings.read_string(read_text(path) if path else "")
    except configparser.Error:
        return ""
    return settings.get("global", "cert", fallback="").strip()
