# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read which parsers of tool calls and of reasoning each vLLM release has.

    python3 tools/extract_answer_parsers.py 0.12.0 0.26.0

The sources come from the release's wheel, as in extract_parsers.py; the names are the keys of the tables in which vLLM
registers its parsers. The result is tests/unit/data/vllm_answer_parsers.json. Only the standard library is needed.
"""

from __future__ import annotations

import argparse
import ast
import json
import tempfile
from pathlib import Path
from typing import Any

from extract_parsers import by_line, sources_of, version_key  # type: ignore[import-not-found]

OUTPUT = Path(__file__).resolve().parent.parent / "tests" / "unit" / "data" / "vllm_answer_parsers.json"
# Where the tables are, the first that is there counts.
PLACES = {
    "tools": ("vllm/tool_parsers/__init__.py", "vllm/entrypoints/openai/tool_parsers/__init__.py"),
    "reasoning": ("vllm/reasoning/__init__.py",),
}


def names(path: Path) -> list[str]:
    """Return the keys of the dictionaries whose name ends in TO_REGISTER."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, (ast.Assign, ast.AnnAssign)) or not isinstance(node.value, ast.Dict):
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        if isinstance(target, ast.Name) and target.id.endswith("TO_REGISTER"):
            found.update(str(key.value) for key in node.value.keys if isinstance(key, ast.Constant))
    if not found:
        raise ValueError(f"no table of parsers in {path}")
    return sorted(found)


def read_release(sources: Path) -> dict[str, Any]:
    """Return the names of one release's parsers, with its wheel's name and SHA-256."""
    found = {
        kind: names(next(sources / place for place in places if (sources / place).exists()))
        for kind, places in PLACES.items()
    }
    return {**json.loads((sources / "wheel.json").read_text(encoding="utf-8")), **found}


def main() -> None:
    """Read the releases named on the command line into the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="+", help="vLLM releases, such as 0.12.0")
    parser.add_argument("--sources", type=Path, help="keep the unpacked sources here, and use those already there")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    releases: dict[str, Any] = {}
    if options.output.exists():
        releases = json.loads(options.output.read_text(encoding="utf-8"))["releases"]
    with tempfile.TemporaryDirectory(prefix="vllm-sources-") as scratch:
        for version in options.versions:
            sources = sources_of(version, options.sources or Path(scratch))
            releases[version] = read_release(sources)
    releases = dict(sorted(releases.items(), key=lambda entry: version_key(entry[0])))
    options.output.write_text(by_line({"schema_version": 1, "releases": releases}, deep=3) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
