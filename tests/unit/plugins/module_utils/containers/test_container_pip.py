# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How pip in a container reaches what the host's pip reaches."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.containers import container_pip


def test_pip_in_the_container_does_what_the_hosts_pip_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bundle, index = tmp_path / "ca.crt", tmp_path / "mirror" / "simple"
    bundle.write_text("", encoding="utf-8")
    index.mkdir(parents=True)
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    options = {"index-url": "https://mirror/simple", "extra-index-url": f"file://{index}", "cert": str(bundle)}
    monkeypatch.setattr(container_pip, "host_pip_options", lambda: options)
    environment, volumes = container_pip.pip_settings("", "")
    assert environment["PIP_INDEX_URL"] == "https://mirror/simple"
    assert environment["PIP_EXTRA_INDEX_URL"] == f"file://{index}"
    assert environment["PIP_CERT"] == container_pip.CA_BUNDLE_PATH and environment["https_proxy"] == "http://proxy:3128"
    assert volumes == sorted([f"{bundle}:{container_pip.CA_BUNDLE_PATH}:ro", f"{index.parent}:{index.parent}:ro"])


def test_a_folder_of_wheels_needs_no_index() -> None:
    assert container_pip.pip_settings("/srv/wheels", "") == (
        {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheels"},
        ["/srv/wheels:/wheels:ro"],
    )
