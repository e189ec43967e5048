# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Extract which metrics each vLLM release has, from the release's own wheel, or record those of a running server.

    python3 tools/extract_metrics.py 0.12.0 0.33.0
    python3 tools/extract_metrics.py --server http://127.0.0.1:8000

Of a wheel (250 to 500 MB) only the list of its files and the Python sources that name metrics are downloaded. In them,
each call with a name that begins with ``vllm:`` makes a metric: its kind is in the name of what is called, and a
counter's samples end with ``_total``. The result is written to tests/unit/data/vllm_metrics.json, by version.

With --server, the page of metrics is written to tests/unit/data/vllm_scrape.txt as the server gives it.

Only the standard library is needed.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import re
import sys
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DATA = Path(__file__).resolve().parent.parent / "tests" / "unit" / "data"
SIMPLE = "https://pypi.org/simple/vllm/"
PREFIX = "vllm:"
SOURCES = re.compile(r"vllm/.*(metric|stats|logger|prometheus|admission|middleware|api_server).*\.py")
KINDS = ("gauge", "counter", "histogram")
# What hides a metric, unless vLLM is told to show those of an earlier version.
HIDDEN = "show_hidden"
BLOCK = 1 << 20


class RemoteFile(io.RawIOBase):
    """A file at a web server that is read in parts."""

    def __init__(self, url: str, size: int) -> None:
        self._url, self._size, self._at = url, size, 0
        self._blocks: dict[int, bytes] = {}

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        number, begin = divmod(self._at, BLOCK)
        part = self._block(number)[begin : begin + len(buffer)]
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)

    def _block(self, number: int) -> bytes:
        first, last = number * BLOCK, min((number + 1) * BLOCK, self._size) - 1
        if first > last:
            return b""
        if number not in self._blocks:
            self._blocks[number] = fetched(self._url, Range=f"bytes={first}-{last}")
            if len(self._blocks[number]) != last - first + 1:
                raise SystemExit(f"{self._url}: the server gives no parts of a file")
        return self._blocks[number]


def fetched(url: str, **headers: str) -> bytes:
    """Return what is at an address."""
    request = urllib.request.Request(url, headers=headers)  # noqa: S310
    with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
        content: bytes = answer.read()
    return content


def wheels() -> dict[str, tuple[str, int]]:
    """Return the address and size of each release's wheel for x86_64, by version."""
    files = json.loads(fetched(SIMPLE, Accept="application/vnd.pypi.simple.v1+json"))["files"]
    named = [(re.fullmatch(r"vllm-([\d.]+)-.*x86_64\.whl", file["filename"]), file) for file in files]
    return {match[1]: (file["url"], file["size"]) for match, file in named if match}


def sources_of(url: str, size: int) -> Iterator[str]:
    """Yield the sources in a wheel that may name metrics."""
    with zipfile.ZipFile(io.BufferedReader(RemoteFile(url, size), BLOCK)) as archive:
        for name in archive.namelist():
            if SOURCES.fullmatch(name):
                yield archive.read(name).decode()


def metrics_in(source: str) -> dict[str, dict[str, Any]]:
    """Return the metrics that a source makes, by the name of their samples; a histogram's without its endings."""
    found: dict[str, dict[str, Any]] = {}
    for call, hidden in calls(ast.parse(source), hidden=False):
        name, kind = name_in(call), kind_of(call)
        if name and kind:
            sample = f"{name.removesuffix('_total')}_total" if kind == "counter" else name
            found[sample] = {"kind": kind, "hidden": hidden}
    return found


def calls(tree: ast.AST, *, hidden: bool) -> Iterator[tuple[ast.Call, bool]]:
    """Yield each call in a tree, and whether it stands where hidden metrics are made."""
    if isinstance(tree, ast.Call):
        yield tree, hidden
    if isinstance(tree, ast.If):
        inside = hidden or HIDDEN in ast.unparse(tree.test)
        for part in tree.body:
            yield from calls(part, hidden=inside)
        for other in [tree.test, *tree.orelse]:
            yield from calls(other, hidden=hidden)
        return
    for child in ast.iter_child_nodes(tree):
        yield from calls(child, hidden=hidden)


def name_in(call: ast.Call) -> str:
    """Return the metric's name in a call; empty for none."""
    given = [*call.args[:1], *(keyword.value for keyword in call.keywords if keyword.arg == "name")]
    values = [str(node.value) for node in given if isinstance(node, ast.Constant)]
    return next((value for value in values if value.startswith(PREFIX)), "")


def kind_of(call: ast.Call) -> str:
    """Return the kind of metric that a call makes; empty if it makes none."""
    called = ast.unparse(call.func).lower()
    return next((kind for kind in KINDS if kind in called), "")


def main() -> int:
    """Extract the releases named on the command line, or record a server."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="*", help="vLLM releases, such as 0.12.0")
    parser.add_argument("--server", default="", help="address of a running server")
    parser.add_argument("--output", type=Path, default=DATA)
    options = parser.parse_args()
    if options.server:
        (options.output / "vllm_scrape.txt").write_bytes(fetched(f"{options.server}/metrics"))
    known = wheels() if options.versions else {}
    path = options.output / "vllm_metrics.json"
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for version in options.versions:
        metrics: dict[str, dict[str, Any]] = {}
        for source in sources_of(*known[version]):
            for name, about in metrics_in(source).items():
                # One that is made in two places is hidden if both hide it.
                metrics[name] = {**about, "hidden": about["hidden"] and metrics.get(name, about)["hidden"]}
        document[version] = dict(sorted(metrics.items()))
        print(f"{version}: {len(metrics)} metrics")
        ordered = sorted(document, key=lambda text: [int(part) for part in text.split(".")])
        lines = [f' "{version}": {one_a_line(document[version])}' for version in ordered]
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    return 0


def one_a_line(metrics: dict[str, Any]) -> str:
    """Return JSON with one metric a line, so that differences can be read."""
    return "{\n" + ",\n".join(f"  {json.dumps(name)}: {json.dumps(about)}" for name, about in metrics.items()) + "\n }"


if __name__ == "__main__":
    sys.exit(main())
