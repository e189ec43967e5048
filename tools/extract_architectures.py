# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read which architectures each vLLM release implements itself, and which families' configurations it knows.

    python3 tools/extract_architectures.py 0.12.0 0.26.0

The sources come from the release's wheel, as in extract_parsers.py. An architecture is what a model's config.json calls
so; the names are the keys of the tables in vLLM's registry of models. The families are the keys of its registry of
configurations: those that it reads without the repository's own code, besides what Transformers knows. The result is
plugins/plugin_utils/knowledge/architectures.json: for each name the spans of releases that have it, each from a release
to the last one, or to null where the newest has it. Only the standard library is needed.
"""

from __future__ import annotations

import argparse
import ast
import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from extract_parsers import by_line, sources_of, version_key  # type: ignore[import-not-found]

OUTPUT = Path(__file__).resolve().parents[1] / "plugins" / "plugin_utils" / "knowledge" / "architectures.json"
REGISTRY = Path("vllm", "model_executor", "models", "registry.py")
CONFIGURATIONS = Path("vllm", "transformers_utils", "config.py")
# What the release's own registry says of models that it has no longer.
GONE = ("_PREVIOUSLY_SUPPORTED_MODELS", "_OOT_SUPPORTED_MODELS")


def assigned(path: Path) -> dict[str, ast.expr]:
    """Return what a module assigns to names at its top level."""
    found: dict[str, ast.expr] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            found[node.target.id] = node.value
    return found


def keys(value: ast.expr) -> list[str]:
    """Return the texts that are keys of a dictionary or of what is built of keywords and dictionaries."""
    if isinstance(value, ast.Dict):
        return [str(key.value) for key in value.keys if isinstance(key, ast.Constant)]
    if isinstance(value, ast.Call):
        return [name for word in value.keywords for name in ([word.arg] if word.arg else keys(word.value))]
    return []


def read_release(sources: Path) -> tuple[list[str], list[str]]:
    """Return the architectures and the families of one release.

    Raises:
        ValueError: one of the tables was not found.
    """
    tables = assigned(sources / REGISTRY)
    models = [
        name
        for table, value in tables.items()
        if table.endswith("_MODELS") and table not in GONE
        for name in keys(value)
    ]
    families = keys(assigned(sources / CONFIGURATIONS)["_CONFIG_REGISTRY"])
    if len(models) < 100 or len(families) < 10:
        raise ValueError(f"{len(models)} architectures and {len(families)} families in {sources}")
    return sorted(set(models)), sorted(set(families))


def spans(found: Mapping[str, Iterable[str]], releases: list[str]) -> dict[str, list[list[str | None]]]:
    """Return for each name the spans of releases, in their order, that have it."""
    known = {release: set(names) for release, names in found.items()}
    result: dict[str, list[list[str | None]]] = {}
    for name in sorted(set().union(*known.values())):
        mine: list[list[str | None]] = []
        for before, release in zip([None, *releases], releases):
            if name in known[release] and (before is None or name not in known[before]):
                mine.append([release, None])
            elif name not in known[release] and before is not None and name in known[before]:
                mine[-1][1] = before
        result[name] = mine
    return result


def main() -> None:
    """Read the releases named on the command line into the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="+", help="vLLM releases, such as 0.12.0: all that the table is to have")
    parser.add_argument("--sources", type=Path, help="keep the unpacked sources here, and use those already there")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    releases = sorted(options.versions, key=version_key)
    models: dict[str, list[str]] = {}
    families: dict[str, list[str]] = {}
    wheels: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="vllm-sources-") as scratch:
        for version in releases:
            sources = sources_of(version, options.sources or Path(scratch))
            models[version], families[version] = read_release(sources)
            wheels[version] = json.loads((sources / "wheel.json").read_text(encoding="utf-8"))
    document = {
        "made_by": "tools/extract_architectures.py",
        "releases": releases,
        "wheels": wheels,
        "architectures": spans(models, releases),
        "families": spans(families, releases),
    }
    options.output.write_text(by_line(document) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
