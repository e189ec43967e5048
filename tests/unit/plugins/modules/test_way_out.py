# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""way_out as a module: files that only root reads, which leave again, and what programs are told by them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable

import yaml

from ansible_collections.gpufleet.vllm.plugins.module_utils.host import package_settings
from ansible_collections.gpufleet.vllm.plugins.modules import way_out

RunModule = Callable[..., dict[str, Any]]
PROXY = "http://me:my-marker@proxy:3128"


def test_the_files_hold_the_password_and_nothing_else_does(run_module: RunModule, tmp_path: Path) -> None:
    folder = tmp_path / "way"
    arguments = {
        "apt": f'Acquire::http::Proxy "{PROXY}";\n',
        "dnf": f"proxy={PROXY}\n",
        "pip": f"[global]\nproxy = {PROXY}\n",
        "no_proxy": "localhost",
        "folder": str(folder),
    }
    result = run_module(way_out.main, arguments)
    assert result["changed"] is False
    assert result["environment"] == {
        "APT_CONFIG": f"{folder}/apt.conf",
        "PIP_CONFIG_FILE": f"{folder}/pip.conf",
        "no_proxy": "localhost",
        "NO_PROXY": "localhost",
    }
    assert result["dnf_config"] == f"{folder}/dnf.conf"
    result.pop("invocation", None)
    assert "my-marker" not in json.dumps(result)
    assert folder.stat().st_mode & 0o777 == 0o700
    for path in folder.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600 and "my-marker" in path.read_text()
    run_module(way_out.main, {"state": "absent", "folder": str(folder)})
    assert not folder.exists()
    assert run_module(way_out.main, {"state": "absent", "folder": str(folder)})["failed"] is False


def test_without_a_way_out_and_in_check_mode_nothing_is_written(run_module: RunModule, tmp_path: Path) -> None:
    folder = tmp_path / "way"
    for result in (
        run_module(way_out.main, {"folder": str(folder)}),
        run_module(way_out.main, {"folder": str(folder), "apt": "x"}, check=True),
    ):
        assert (result["environment"], result["dnf_config"]) == ({}, "/etc/dnf/dnf.conf")
    assert not folder.exists()


def test_dnf_keeps_what_the_host_has_but_for_its_proxy() -> None:
    own = "[main]\ngpgcheck=1\nproxy = http://old\nbest=True\n[repo]\nname=x\n"
    assert package_settings.with_own("proxy=http://new\n", own) == (
        "[main]\nproxy=http://new\ngpgcheck=1\nbest=True\n[repo]\nname=x\n"
    )


def test_documentation_names_every_key_of_the_result(run_module: RunModule, tmp_path: Path) -> None:
    result = run_module(way_out.main, {"folder": str(tmp_path / "way")})
    returned = set(yaml.safe_load(way_out.RETURN)) - {"error"}
    assert returned == set(result) - {"changed", "failed", "invocation", "warnings"}
