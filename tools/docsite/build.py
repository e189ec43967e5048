# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds the documentation site: .cache/docs/html.

.venv/bin/python tools/docsite/build.py

The reference comes from the modules and roles themselves, by antsibull-docs; the guides are docs/docsite/rst. A page
for each playbook is made by playbook_pages.py, and colours and fonts are those of the report. A warning is an error,
nothing is fetched from anywhere, and the pages load nothing from elsewhere.
"""

from __future__ import annotations

import html.parser
import os
import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
CACHE = ROOT / ".cache"
SITE = CACHE / "docs"
BIN = Path(sys.executable).parent
STYLE = ROOT / "plugins" / "plugin_utils" / "report" / "page.css"

sys.path.insert(0, str(CACHE / "collections"))
from ansible_collections.gpufleet.vllm.tools.docsite import playbook_pages  # noqa: E402

# What antsibull-docs links to in Ansible's own documentation: label to page and title.
ANSIBLE = "https://docs.ansible.com/projects/ansible/latest/"
ANSIBLE_LABELS = {
    "action_plugins": ("plugins/action.html#action-plugins", "Action plugins"),
    "ansible_configuration_settings": (
        "reference_appendices/config.html#ansible-configuration-settings",
        "Ansible Configuration Settings",
    ),
    "common_return_values": ("reference_appendices/common_return_values.html#common-return-values", "Return Values"),
}


class Loads(html.parser.HTMLParser):
    """Collects what a page loads when it is opened (links that a reader follows are no matter)."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take the addresses of scripts, style sheets, pictures and frames."""
        values = dict(attrs)
        if tag == "link" and values.get("rel") in ("stylesheet", "preload", "icon", "shortcut icon"):
            self.addresses.append(values.get("href") or "")
        if tag in ("script", "img", "iframe", "source"):
            self.addresses.append(values.get("src") or "")


def write_inventory(path: Path) -> None:
    """Write the labels of Ansible's documentation in Sphinx's own format, so that none has to be fetched."""
    head = (
        "# Sphinx inventory version 2\n# Project: Ansible\n# Version: latest\n"
        "# The remainder of this file is compressed using zlib.\n"
    )
    lines = "".join(f"{label} std:label -1 {page} {title}\n" for label, (page, title) in ANSIBLE_LABELS.items())
    path.write_bytes(head.encode() + zlib.compress(lines.encode()))


def shorten(sources: Path) -> None:
    """Fit the pages to the theme, which has its own list of a page's sections and shows the index's parts beside it.

    Lists of contents are left out; in the index the parts get captions, and modules and roles their short names.
    """
    for path in sources.rglob("*.rst"):
        text = re.sub(r"^\.\. contents::\n(?: +.*\n)*\n?", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        path.write_text(text, encoding="utf-8")
    index = sources / "index.rst"
    text = index.read_text(encoding="utf-8").replace("Gpufleet.Vllm\n", "gpufleet.vllm\n")
    text = re.sub(r"^    (\w+)_(module|role)$", r"    \1 <\1_\2>", text, flags=re.MULTILINE)
    parts = re.split(r"^(\.\. toctree::\n)", text, flags=re.MULTILINE)
    for number in range(1, len(parts), 2):
        titles = re.findall(r"^(.+)\n(?:-+|~+)$", "".join(parts[:number]), flags=re.MULTILINE)
        caption = titles[-1].replace("Role Index", "Roles")
        parts[number] += f"    :caption: {caption}\n"
    index.write_text("".join(parts), encoding="utf-8")


def look(style: str) -> str:
    """Return the colours and fonts of the report's style sheet as variables, in the theme's ways to go dark."""
    light, dark = re.findall(r":root \{(.*?)\}", style, flags=re.DOTALL)
    text, code = (
        re.findall(rf"^{what} \{{[^}}]*\bfont: [^;]*?([a-z-]+,[^;]*);", style, flags=re.M)
        for what in ("body", "pre, code")
    )
    return (
        "/* Made by build.py from the report's style sheet. */\n"
        f"body {{{light} --text-font: {text[0]}; --code-font: {code[0]}; }}\n"
        f'@media (prefers-color-scheme: dark) {{ body:not([data-theme="light"]) {{{dark}}} }}\n'
        f'body[data-theme="dark"] {{{dark}}}\n'
    )


def run(*words: str) -> None:
    """Run a program of the virtual environment on this checkout; its failure ends the build."""
    environment = {
        **os.environ,
        "PATH": f"{BIN}:{os.environ.get('PATH', '')}",
        "ANSIBLE_COLLECTIONS_PATH": str(CACHE / "collections"),
        "ANSIBLE_LOCALHOST_WARNING": "false",
        "GPUFLEET_ANSIBLE_DOCS": ANSIBLE,
    }
    done = subprocess.run([str(BIN / words[0]), *words[1:]], cwd=SITE, env=environment, check=False)
    if done.returncode != 0:
        sys.exit(f"{words[0]} failed ({done.returncode})")


def loaded_from_elsewhere(site: Path) -> list[str]:
    """Return what pages of the site load from another place, as 'page: address'."""
    found = []
    for page in sorted(site.rglob("*.html")):
        parser = Loads()
        parser.feed(page.read_text(encoding="utf-8"))
        found += [f"{page.name}: {address}" for address in parser.addresses if address.startswith(("http", "//"))]
    return found


def main() -> int:
    """Build the site and say where it is."""
    sources, site = SITE / "rst", SITE / "html"
    for folder in (sources, site):
        shutil.rmtree(folder, ignore_errors=True)
    sources.mkdir(parents=True, mode=0o755)
    collection = str(CACHE / "collections" / "ansible_collections" / "gpufleet" / "vllm")
    write_inventory(SITE / "ansible.inv")
    run("antsibull-docs", "lint-collection-docs", "--plugin-docs", "--validate-collection-refs=self", collection)
    run(
        "antsibull-docs",
        *("--config-file", str(HERE / "antsibull-docs.cfg"), "collection", "--use-current", "--squash-hierarchy"),
        *("--fail-on-error", "--dest-dir", str(sources), "gpufleet.vllm"),
    )
    playbook_pages.write(sources)
    shorten(sources)
    (SITE / "static").mkdir(mode=0o755, exist_ok=True)
    (SITE / "static" / "look.css").write_text(look(STYLE.read_text(encoding="utf-8")), encoding="utf-8")
    shutil.copytree(ROOT / "docs" / "docsite" / "rst" / "images", sources / "docsite" / "images")
    run("sphinx-build", "-q", "-W", "--keep-going", "-b", "html", "-c", str(HERE), str(sources), str(site))
    elsewhere = loaded_from_elsewhere(site)
    if elsewhere:
        sys.exit("Pages load from elsewhere:\n" + "\n".join(elsewhere))
    print(f"The documentation: {site / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
