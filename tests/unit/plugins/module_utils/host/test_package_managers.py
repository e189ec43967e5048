# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is missing, which files have it, and which sources of apt exclude each other, without a package manager.

Installing for real is tested by the Molecule scenario hosts.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.host import package_managers
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.package_managers import Apt, Dnf, Package

URL = "https://example.com/stable/deb/amd64"
KEYRING = "/usr/share/keyrings/toolkit-keyring.gpg"


class Recorded(Apt):
    """apt whose commands are answered from a table by their first words; what is not there succeeds silently."""

    def __init__(self, root: Path, answers: dict[str, tuple[int, str]]) -> None:
        super().__init__(str(root))
        self.answers = answers
        self.commands: list[str] = []

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        line = " ".join(command)
        self.commands.append(line)
        code, output = next((answer for start, answer in self.answers.items() if line.startswith(start)), (0, ""))
        return subprocess.CompletedProcess(command, code, stdout=output)


class RecordedDnf(Recorded, Dnf):
    """dnf in the same way."""


@pytest.mark.parametrize(
    ("name", "text", "conflicts"),
    [
        ("hand.list", "deb [signed-by=/etc/other.gpg] https://example.com/stable/deb/amd64/ /\n", True),
        ("hand.sources", "Types: deb\nURIs: https://example.com/stable/deb/amd64\nSuites: /\n", True),
        ("hand.list", f"deb [signed-by={KEYRING}] https://example.com/stable/deb/amd64 /\n", False),
        ("hand.list", "# deb https://example.com/stable/deb/amd64 /\n", False),
        ("hand.list", "deb https://example.com/stable/deb/amd64-other /\n", False),
        ("hand.list.save", "deb https://example.com/stable/deb/amd64 /\n", False),
        ("toolkit.list", "deb https://example.com/stable/deb/amd64 /\n", False),
    ],
)
def test_a_second_source_that_apt_would_refuse_is_named(tmp_path: Path, name: str, text: str, conflicts: bool) -> None:
    folder = tmp_path / "etc/apt/sources.list.d"
    folder.mkdir(parents=True)
    (folder / name).write_text(text)
    found = Apt(str(tmp_path)).other_sources(URL, str(folder / "toolkit.list"), KEYRING)
    assert found == ([str(folder / name)] if conflicts else [])


# What is missing


@pytest.mark.parametrize(
    ("installed", "downgrade", "lacks", "back"),
    [
        ("", False, True, False),
        ("toolkit 1.19.1-1 installed", False, False, False),
        ("toolkit 1.17.8-1 installed", False, True, False),
        ("toolkit 1.20.0-1 installed", False, False, False),
        ("toolkit 1.20.0-1 installed", True, True, True),
        ("toolkit 1.19.1-1 config-files", False, True, False),
    ],
)
def test_an_older_version_lacks_and_a_newer_one_only_on_demand(
    tmp_path: Path, installed: str, downgrade: bool, lacks: bool, back: bool
) -> None:
    newer = 0 if "1.20" in installed else 1
    apt = Recorded(tmp_path, {"dpkg-query": (0, installed + "\n"), "dpkg --compare": (newer, "")})
    lacking = package_managers.lacking_packages(apt, [Package("toolkit", "1.19.1-1")], downgrade)
    assert bool(lacking.packages) is lacks
    assert lacking.downgrade is back


def test_rpm_tells_versions_in_its_own_words(tmp_path: Path) -> None:
    answer = "toolkit 1.17.8-1\npackage nope is not installed\n"
    dnf = RecordedDnf(tmp_path, {"rpm --query": (1, answer)})
    assert Dnf.installed(dnf, ["toolkit", "nope"]) == {"toolkit": "1.17.8-1"}


# Files


def test_files_of_the_wanted_version_are_taken_and_what_lies_beside_them(tmp_path: Path) -> None:
    for name in ("toolkit_1.17", "toolkit_1.19", "libseccomp2_2.5"):
        (tmp_path / f"{name}.deb").touch()

    class Folder(Recorded):
        def describe_file(self, path: str) -> Package:
            return Package(*Path(path).stem.split("_"))

    apt = Folder(tmp_path, {})
    found = package_managers.files_with(apt, str(tmp_path), [Package("toolkit", "1.19")], "the_folder")
    assert found == [str(tmp_path / "libseccomp2_2.5.deb"), str(tmp_path / "toolkit_1.19.deb")]
    wanted = [Package("toolkit", "1.20"), Package("base")]
    with pytest.raises(GpufleetError, match=r"lacks toolkit=1\.20, base; it has libseccomp2=2\.5") as raised:
        package_managers.files_with(apt, str(tmp_path), wanted, "the_folder")
    assert raised.value.name == "package-missing"
    assert "the_folder" in raised.value.remedy


# The family


def test_the_family_is_the_one_that_installed_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package_managers, "program_path", lambda name: f"/usr/bin/{name}")
    assert package_managers.family_of("auto", str(tmp_path)).name == "dnf"
    (tmp_path / "var/lib/dpkg").mkdir(parents=True)
    (tmp_path / "var/lib/dpkg/status").touch()
    assert package_managers.family_of("auto", str(tmp_path)).name == "apt"
    monkeypatch.setattr(package_managers, "program_path", lambda _name: None)
    with pytest.raises(GpufleetError, match="has no dnf"):
        package_managers.family_of("dnf")
