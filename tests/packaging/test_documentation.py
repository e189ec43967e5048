# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands and settings of the README and the guides are such as this collection has.

Those that need no host are run. Of those that would change one, or need a GPU, the programs' own parsers read every
word, and playbooks, tags and variables are looked up.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.known_variables import KNOWN_VARIABLES
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.variable_names import GONE
from ansible_collections.gpufleet.vllm.tests.packaging.away import BIN, PLAYBOOKS, ROOT, ansible
from ansible_collections.gpufleet.vllm.tools.checkout import copy_to

GUIDES = sorted((ROOT / "docs" / "docsite" / "rst").glob("*.rst"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *GUIDES]
REFERENCES = sorted(ROOT.glob("roles/*/README.md"))
# Programs that come from elsewhere: that they are called with sense is not for this test to say.
OTHERS = {
    "ansible-builder",
    "podman",
    *("apt-get", "cat", "cd", "cp", "curl", "docker", "export", "hf", "mkdir", "nvidia-smi", "openssl", "pip", "rsync"),
    *("scp", "sh", "sha256sum", "ssh", "systemctl"),
}
# Files and folders of the controller that are read: a relative path is not looked for beside the inventory.
READ_ON_THE_CONTROLLER = {
    *("router_certificate", "router_ca", "vllm_accuracy_tasks_dir", "nvidia_container_toolkit_packages_dir"),
}
PREFIXES = ("vllm_", "router_", "docker_", "cpu_image_", "nvidia_container_toolkit_")
# What begins like a variable and is none: modules, facts that the collection sets, lm_eval's task of an example.
NO_VARIABLES = {
    *(path.stem for path in (ROOT / "plugins" / "modules").glob("*.py")),
    *("vllm_plan", "router_backends"),
    "vllm_max_modellen",  # the guide to faults shows what a misspelt one does
}
PARSE = """
import json, sys
from ansible.cli.adhoc import AdHocCLI
from ansible.cli.playbook import PlaybookCLI
for words in json.load(sys.stdin):
    try:
        {"ansible": AdHocCLI, "ansible-playbook": PlaybookCLI}[words[0]](words).parse()
    except (Exception, SystemExit) as error:
        print(" ".join(words), "-", error)
"""


def blocks(path: Path) -> Iterator[tuple[str, str]]:
    """Return the code blocks of a document: language and text."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        yield from re.findall(r"^```(\w+)\n(.*?)^```", text, re.M | re.S)
        return
    for language, body in re.findall(r"^\.\. code-block:: (\S+)\n\n((?:(?:   .*)?\n)+)", text, re.M):
        yield language, "".join(line[3:] for line in body.splitlines(keepends=True))


def commands(path: Path) -> list[list[str]]:
    """Return the words of every command that a document shows after a prompt, without comments."""
    lines = [line for language, text in blocks(path) if language == "console" for line in text.splitlines()]
    return [shlex.split(line[2:], comments=True) for line in lines if line.startswith("$ ")]


EVERY = [(path, words) for path in DOCUMENTS for words in commands(path)]


def of_program(*programs: str) -> list[list[str]]:
    """Return the documented commands of these programs, each once."""
    found = {tuple(words) for _path, words in EVERY if Path(words[0]).name in programs}
    return [[Path(words[0]).name, *words[1:]] for words in sorted(found)]


def playbook_of(words: list[str]) -> str:
    """Return the name of the playbook in the words of a command."""
    (name,) = (word for word in words if re.search(r"^gpufleet\.vllm\.|\.yml$", word))
    return name.removeprefix("gpufleet.vllm.").removeprefix("playbooks/").removesuffix(".yml")


def every_tag(node: Any) -> Iterator[str]:
    """Return the tags in a playbook or file of tasks."""
    if isinstance(node, list):
        for item in node:
            yield from every_tag(item)
    elif isinstance(node, dict):
        tags = node.get("tags", [])
        yield from [tags] if isinstance(tags, str) else tags
        for value in node.values():
            yield from every_tag(value)


def test_the_documents_show_commands() -> None:
    assert len(EVERY) > 40
    assert {words[0] for _path, words in EVERY} >= {"make", "ansible-playbook", "ansible-galaxy", "ansible-doc"}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_program_is_one_that_is_checked(path: Path) -> None:
    ours = {"make", "python3", "ansible", "ansible-doc", "ansible-galaxy", "ansible-inventory", "ansible-playbook"}
    ours |= {"ansible-vault", "python"}
    unknown = [words for words in commands(path) if Path(words[0]).name not in ours | OTHERS]
    assert unknown == [], "say above how such a command is checked"


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    asked = {word for words in of_program("make") for word in words[1:] if "=" not in word}
    text = "".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    asked |= set(re.findall(r"`make ([a-z-]+)[^`]*`", text))
    assert sorted(asked - targets) == []


def test_the_parsers_understand_every_command_for_hosts() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PARSE],
        # Asked for its version, a program ends while it parses.
        input=json.dumps([words for words in of_program("ansible", "ansible-playbook") if "--version" not in words]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_every_playbook_and_tag_exists() -> None:
    files = [path for folder in ("playbooks", "roles") for path in (ROOT / folder).rglob("*.yml")]
    tags = {tag for path in files for tag in every_tag(yaml.safe_load(path.read_text(encoding="utf-8")))}
    for words in of_program("ansible-playbook"):
        assert playbook_of(words) in PLAYBOOKS, words
        if "--tags" in words:
            assert set(words[words.index("--tags") + 1].split(",")) <= tags, words


def test_every_playbook_is_in_the_readme() -> None:
    """But for those that are only parts of others."""
    texts = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "playbooks").glob("*.yml"))
    parts = set(re.findall(r"import_playbook: (?:gpufleet\.vllm\.)?(\w+)", texts))
    shown = {playbook_of(words) for words in commands(ROOT / "README.md") if words[0] == "ansible-playbook"}
    assert set(PLAYBOOKS) - parts <= shown <= set(PLAYBOOKS)


def test_every_variable_given_to_a_command_exists() -> None:
    given = set()
    for words in of_program("ansible-playbook"):
        for flag, value in zip(words, words[1:]):
            if flag in ("-e", "--extra-vars"):
                given |= set(json.loads(value)) if value.startswith("{") else {value.partition("=")[0]}
    assert given and sorted(given - KNOWN_VARIABLES) == []


def in_words(path: Path) -> str:
    """Return where a document is, for the name of a test case."""
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [*DOCUMENTS, *REFERENCES], ids=in_words)
def test_every_variable_named_exists(path: Path) -> None:
    """Wherever it stands: in text, in commands, in YAML; but not in C(vllm_*) and C(vllm_image*), which name many."""
    text = path.read_text(encoding="utf-8")
    found = set(re.findall(rf"(?<![\w./-])(?:{'|'.join(PREFIXES)})\w*\b(?![*.]\w|\*)", text))
    # What became of those that are gone is told where one reads about upgrading.
    gone = set(GONE) if path.name == "upgrading.rst" else set()
    assert sorted(name for name in found - KNOWN_VARIABLES - NO_VARIABLES - gone if not name.endswith("_")) == []


@pytest.mark.parametrize("path", [*DOCUMENTS, *REFERENCES], ids=in_words)
def test_every_module_role_and_playbook_named_exists(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    lookups = {path.stem for path in (ROOT / "plugins" / "lookup").glob("*.py")}
    things = {*NO_VARIABLES, *PLAYBOOKS, *(path.name for path in (ROOT / "roles").iterdir()), *lookups, "docsite"}
    assert sorted(set(re.findall(r"gpufleet\.vllm\.([a-z_]+)", text)) - things - {"all"}) == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=in_words)
def test_every_file_of_this_checkout_that_is_named_exists(path: Path) -> None:
    folders = "docs|inventories|meta|molecule|playbooks|plugins|roles|tests|tools"
    named = re.findall(rf"`((?:{folders})/[\w./-]+)`", path.read_text(encoding="utf-8"))
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


def settings(node: Any) -> Iterator[tuple[str, Any]]:
    """Return the variables with one of our prefixes that a YAML document sets, with their values."""
    if isinstance(node, list):
        for item in node:
            yield from settings(item)
    elif isinstance(node, dict):
        for name, value in node.items():
            if str(name).startswith(PREFIXES):
                yield name, value
            else:
                yield from settings(value)


def settings_shown(path: Path) -> Iterator[tuple[str, Any]]:
    """Return the variables that a document sets in YAML or in a command, with their values."""
    for language, text in blocks(path):
        if language == "yaml":
            yield from settings(yaml.safe_load(text))
    for words in commands(path):
        for flag, value in zip(words, words[1:]):
            if flag in ("-e", "--extra-vars"):
                given = json.loads(value) if value.startswith("{") else [value.partition("=")[::2]]
                yield from dict(given).items()


@pytest.mark.parametrize("path", DOCUMENTS, ids=in_words)
def test_every_value_shown_is_one_that_the_variable_takes(path: Path) -> None:
    """By its type and its choices; what a template makes is not known here."""
    specifications = {
        name: option
        for role in ROOT.glob("roles/*/meta/argument_specs.yml")
        for entry in yaml.safe_load(role.read_text(encoding="utf-8"))["argument_specs"].values()
        for name, option in (entry.get("options") or {}).items()
    }
    for name, value in settings_shown(path):
        if name in NO_VARIABLES or "{{" in str(value):
            continue
        known = {key: part for key, part in specifications[name].items() if key not in ("description", "required")}
        errors = ArgumentSpecValidator({name: known}).validate({name: value}).error_messages
        assert errors == [], name


@pytest.mark.parametrize("path", DOCUMENTS, ids=in_words)
def test_files_of_the_controller_are_found_where_the_documents_put_them(path: Path) -> None:
    for name, value in settings_shown(path):
        assert name not in READ_ON_THE_CONTROLLER or str(value).startswith(("{{ inventory_dir }}/", "/")), name


def test_ansible_for_the_other_controller_is_the_one_of_the_checks() -> None:
    """The guide to air-gapped sites installs it from the bundle's folder, which has the version in its name."""
    pinned = (ROOT / "tests" / "requirements-ansible.txt").read_text(encoding="utf-8").splitlines()
    (core,) = (line for line in pinned if line.startswith("ansible-core=="))
    shown = [word for words in of_program("pip") for word in words if word.startswith("/media/bundle/controller/")]
    assert shown == [f"/media/bundle/controller/{core.replace('==', '-')}"]


def test_the_guide_to_sites_shows_the_inventory_that_make_sites_deploys_with() -> None:
    """But for its first line, a comment."""
    used = (ROOT / "molecule/sites/inventory/hosts.yml").read_text(encoding="utf-8").partition("\n")[2]
    guide = ROOT / "docs" / "docsite" / "rst" / "sites.rst"
    assert used.strip() in [text.strip() for language, text in blocks(guide) if language == "yaml"]
    assert len(used.splitlines()) < 30


def test_links_of_the_readme_lead_somewhere() -> None:
    for name in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / name).read_text(encoding="utf-8")):
            assert target.startswith("https://") or (ROOT / target).exists(), f"{name}: {target}"


# What needs no host is run


def test_the_tarball_has_the_name_that_is_installed(tarball: Path) -> None:
    for words in of_program("ansible-galaxy"):
        if "install" in words:
            (archive,) = [word for word in words if word.endswith(".tar.gz")]
            assert fnmatch.fnmatch(tarball.name, Path(archive).name), words


def test_links_of_the_readme_are_in_the_tarball(tarball: Path) -> None:
    with tarfile.open(tarball) as tar:
        inside = set(tar.getnames())
    targets = re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert sorted(target for target in targets if not target.startswith("https://") and target not in inside) == []


def test_what_a_user_keeps_in_the_checkout_stays_out_of_the_tarball(tmp_path: Path) -> None:
    copy = tmp_path / "checkout"
    copy_to(copy)
    for name in ("fleet/group_vars/all.yml", "files/llm.example.com.pem", "plans/gpu-01.json", "reports/report.json"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("vault_replica_key: secret\n", encoding="utf-8")
    ansible("ansible-galaxy", "collection", "build", str(copy), "--output-path", str(tmp_path), folder=tmp_path)
    (built,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(built) as tar:
        assert [name for name in tar.getnames() if name.startswith(("fleet", "files", "plans", "reports"))] == []


def installing(path: Path) -> str:
    """Return the commands of the document's block that makes and installs the tarball, as one script."""
    (block,) = (
        text
        for language, text in blocks(path)
        if language == "console" and "make tarball" in text and "ansible-galaxy collection install" in text
    )
    return "\n".join(line[2:] for line in block.splitlines() if line.startswith("$ "))


@pytest.mark.parametrize("path", [ROOT / "README.md", ROOT / "docs/docsite/rst/first_deploy.rst"], ids=in_words)
def test_the_tarball_is_installed_as_the_documents_say(path: Path, tarball: Path, tmp_path: Path) -> None:
    """Word for word, in a checkout with its ansible.cfg and its link; C(make tarball) is what made the tarball."""
    checkout = tmp_path / "gpufleet.vllm"
    checkout.mkdir()
    for file in (ROOT / "ansible.cfg", ROOT / "galaxy.yml", tarball):
        shutil.copy(file, checkout)
    link = checkout / ".cache" / "collections" / "ansible_collections" / "gpufleet" / "vllm"
    link.parent.mkdir(parents=True)
    link.symlink_to("../../../..")
    (checkout / ".venv").symlink_to(BIN.parent)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "PYTHONPATH"))}
    done = subprocess.run(
        ["bash", "-euc", f"make() {{ :; }}\n{installing(path)}"],
        cwd=checkout,
        env={**kept, "HOME": str(tmp_path / "home"), "ANSIBLE_NOCOLOR": "1", "PAGER": "cat"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    installed = tmp_path / "home" / ".ansible" / "collections" / "ansible_collections" / "gpufleet" / "vllm"
    assert (installed / "MANIFEST.json").is_file(), done.stdout


def test_every_page_asked_for_is_there(installed: Path) -> None:
    for words in of_program("ansible-doc"):
        assert ansible(*words, folder=installed, collections=installed).strip()


def test_the_example_of_a_fleet_is_planned(installed: Path) -> None:
    example = installed / "ansible_collections" / "gpufleet" / "vllm" / "inventories" / "fleet"
    told = ansible(
        "ansible-playbook", "gpufleet.vllm.plan", "-i", str(example), folder=installed, collections=installed
    )
    assert "22 hosts: 3 kinds of plan" in told and "h200-[01:16]" in told


@pytest.mark.parametrize("path", [ROOT / "README.md", *GUIDES], ids=lambda path: path.name)
def test_the_inventories_shown_are_ones(path: Path, tmp_path: Path) -> None:
    """The blocks of a document whose first line is a comment with their file make up an inventory."""
    for language, text in blocks(path):
        place = re.match(r"# (fleet/\S+)\n", text)
        if language == "yaml" and place:
            (tmp_path / place.group(1)).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / place.group(1)).write_text(text, encoding="utf-8")
    if not (tmp_path / "fleet" / "hosts.yml").exists():
        pytest.skip("it shows no whole inventory")
    told = json.loads(ansible("ansible-inventory", "-i", "fleet", "--list", folder=tmp_path))
    settings = {name for values in told["_meta"]["hostvars"].values() for name in values}
    assert settings & KNOWN_VARIABLES
