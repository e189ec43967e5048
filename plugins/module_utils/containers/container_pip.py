# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How pip in a container reaches what this host's pip reaches: index, proxy and certificate authorities."""

from __future__ import annotations

import ast
import os
import sys

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.programs import run_program

CA_BUNDLE_PATH = "/etc/ssl/certs/ca-certificates.crt"
# Options of the host's pip that matter in the container, where none of its files is.
PIP_OPTIONS = ("index-url", "extra-index-url", "find-links", "trusted-host", "proxy", "no-index", "timeout", "retries")
PATH_OPTIONS = ("extra-index-url", "find-links", "index-url")


def pip_settings(wheels: str, ca_bundle: str) -> tuple[dict[str, str], list[str]]:
    """Return the variables and mounts with which a container's pip does what this host's pip does."""
    if wheels:
        return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheels"}, [f"{wheels}:/wheels:ro"]
    options = host_pip_options()
    environment = {f"PIP_{name.upper().replace('-', '_')}": options[name] for name in PIP_OPTIONS if name in options}
    volumes = []
    for name in PATH_OPTIONS:
        for word in options.get(name, "").split():
            path = word.removeprefix("file://").rstrip("/")
            # The pages of an index in a folder link to files beside it.
            if os.path.basename(path) == "simple" and os.path.dirname(path) != "/":
                path = os.path.dirname(path)
            if path.startswith("/") and os.path.isdir(path):
                volumes.append(f"{path}:{path}:ro")
    bundle = ca_bundle or options.get("cert", "")
    if bundle and os.path.exists(bundle):
        environment.update(dict.fromkeys(("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"), CA_BUNDLE_PATH))
        volumes.append(f"{os.path.realpath(bundle)}:{CA_BUNDLE_PATH}:ro")
    for name in ("http_proxy", "https_proxy", "no_proxy"):
        value = os.environ.get(name) or os.environ.get(name.upper())
        if value:
            environment[name] = value
    return environment, sorted(set(volumes))


def host_pip_options() -> dict[str, str]:
    """Return the options of this host's pip by their long names; its environment wins over its files."""
    done = run_program(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False, timeout=60
    )
    options: dict[str, str] = {}
    for line in sorted(done.stdout.splitlines(), key=lambda line: line.startswith(":env:")):
        name, found, value = line.partition("=")
        section, _dot, option = name.partition(".")
        if found and section in ("global", "install", ":env:"):
            try:
                options[option] = str(ast.literal_eval(value))
            except (ValueError, SyntaxError):
                options[option] = value
    return options
