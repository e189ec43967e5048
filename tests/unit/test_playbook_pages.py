# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The site's page of each playbook says what the playbook does, and the site looks like the report."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ansible_collections.gpufleet.vllm.tools.docsite import build, playbook_pages
from ansible_collections.gpufleet.vllm.tools.docsite.playbook_pages import PLAYBOOKS, hosts_in_words, load, names, page

NAMES = names()


@pytest.mark.parametrize("name", NAMES)
def test_a_page_has_every_play_and_every_role_of_its_playbook(name: str) -> None:
    text = page(name)
    source = (PLAYBOOKS / f"{name}.yml").read_text(encoding="utf-8")
    assert [play["name"] for play in load(name)[1] if f"#. **{play['name']}**" not in text] == []
    roles = re.findall(r"name: gpufleet\.vllm\.(\w+)\n(?: +tasks_from: (.+)\n)?", source)
    # An entry point that a loop names is in a test of its own.
    plain = [(role, entry) for role, entry in roles if not entry.startswith('"')]
    assert [role for role, entry in plain if f"vllm.{role}_role__entrypoint-{entry or 'main'}>" not in text] == []
    imported = re.findall(r"import_playbook: (\w+)\.yml", source)
    assert [other for other in imported if f"vllm.playbook.{other}>" not in text] == []


@pytest.mark.parametrize("name", NAMES)
def test_what_a_head_says_of_variables_and_options_is_code(name: str) -> None:
    prose = re.sub(r"``[^`]*``|:ref:`[^`]*`|\.\. .*|   \$ .*", "", page(name))
    assert re.findall(r"(?:--\w+|\b(?:vllm|router|monitoring)_\w+)", prose) == []


def test_a_page_says_how_to_run_a_playbook_and_no_part_of_one() -> None:
    alone = [name for name in NAMES if f"$ ansible-playbook gpufleet.vllm.{name} -i fleet" in page(name)]
    assert sorted(set(NAMES) - set(alone)) == ["rollout", "watch"]
    deploy = page("deploy")
    assert "* Groups: vllm has servers, or else all hosts but those of router, the router's.\n" in deploy
    assert "* ``--check --diff`` shows what would change" in deploy
    assert "``-e vllm_purge_caches=true``, which" in page("teardown")


def test_a_page_names_the_variables_of_the_playbooks_that_it_imports_too() -> None:
    assert "router_role__parameter-main__router_port>" in page("deploy")
    assert "router_role__parameter-main__router_port>" not in page("verify")


def test_tags_and_the_steps_of_a_loop_are_shown() -> None:
    assert "(tags ``tables``)" in page("tune")
    teardown = page("teardown")
    assert "entrypoint-reload>" in teardown and "entrypoint-undrain>" in teardown


def test_hosts_without_words_are_an_error() -> None:
    with pytest.raises(ValueError, match="no words for the hosts 'gpu-01'"):
        hosts_in_words("gpu-01")


def test_a_playbook_without_a_head_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "new.yml").write_text("---\n- name: Something\n  hosts: all\n", encoding="utf-8")
    monkeypatch.setattr(playbook_pages, "PLAYBOOKS", tmp_path)
    with pytest.raises(ValueError, match=r"playbooks/new\.yml does not begin with a comment"):
        load("new")


def test_the_pages_are_in_the_index_and_in_the_table_of_the_guide(tmp_path: Path) -> None:
    mark = ".. _plugin_index_for_gpufleet.vllm:\n"
    (tmp_path / "index.rst").write_text(f"Guides\n------\n\n{mark}", encoding="utf-8")
    (tmp_path / "docsite").mkdir()
    guide = tmp_path / "docsite" / "playbooks.rst"
    guide.write_text("   * - ``plan``\n     - Shows it.\n", encoding="utf-8")
    playbook_pages.write(tmp_path)
    index = (tmp_path / "index.rst").read_text(encoding="utf-8")
    assert index.index("    plan <playbooks/plan>\n") < index.index(mark)
    assert (tmp_path / "playbooks" / "plan.rst").read_text(encoding="utf-8") == page("plan")
    assert ":ref:`plan <ansible_collections.gpufleet.vllm.playbook.plan>`" in guide.read_text(encoding="utf-8")


def test_the_site_has_every_colour_and_font_that_it_takes_from_the_report() -> None:
    look = build.look(build.STYLE.read_text(encoding="utf-8"))
    site = (build.HERE / "static" / "site.css").read_text(encoding="utf-8")
    used = set(re.findall(r"var\(--([\w-]+)\)", site))
    assert used and sorted(used - set(re.findall(r"--([\w-]+):", look))) == []
    assert '--text-font: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;' in look
    assert look.count("--paper: #14171a") == 2 and look.count("--paper: #f7f7f5") == 1
