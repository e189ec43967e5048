# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""signed_packages without a package manager: what is written, what is refused, and how its failures are told.

The outputs of apt and dnf are recorded from Debian 12 and 13 (apt 2.6 and 3.0, dnf 4.14). Installing for real is tested
by the Molecule scenario hosts.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.host import signed_packages
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.signed_packages import Apt, Dnf, Package, Source

KEYS = Path(__file__).resolve().parents[3] / "data" / "keys"
RSA = "E1E3 9BD8 D85D 6869 34AB  3C75 B89C 6E4E 4133 D588"
SOURCE = Source(
    name="toolkit",
    url="https://example.com/stable/deb/amd64",
    suite="/",
    components=(),
    key=str(KEYS / "rsa.asc"),
    fingerprints=(RSA,),
    signed="metadata",
    proxy="",
    variables={"key": "the_key", "version": "the_version", "url": "the_url", "fingerprints": "the_fingerprints"},
)
APT_OTHER_KEY = """\
Err:1 https://example.com/stable/deb/amd64  InRelease
  The following signatures couldn't be verified because the public key is not available: NO_PUBKEY B89C6E4E4133D588
W: GPG error: https://example.com/stable/deb/amd64  InRelease: The following signatures couldn't be verified because \
the public key is not available: NO_PUBKEY B89C6E4E4133D588
E: The repository 'https://example.com/stable/deb/amd64  InRelease' is not signed.
"""
APT_OTHER_KEY_SQV = """\
Err:1 https://example.com/stable/deb/amd64  InRelease
  Sub-process /usr/bin/sqv returned an error code (1), error message is: Missing key AB2C, which is needed to verify it.
W: OpenPGP signature verification failed: https://example.com/stable/deb/amd64  InRelease: Sub-process /usr/bin/sqv \
returned an error code (1), error message is: Missing key AB2C, which is needed to verify signature.
E: The repository 'https://example.com/stable/deb/amd64  InRelease' is not signed.
"""
DNF_OTHER_KEY = """\
Importing GPG key 0x0175AEEC:
Error: Failed to download metadata for repo 'toolkit': repomd.xml GPG signature verification error: Bad GPG signature
"""
APT_UNREACHABLE = """\
Err:1 https://example.com/stable/deb/amd64  InRelease
  Could not connect to example.com:443 (192.0.2.1). - connect (111: Connection refused)
E: Failed to fetch https://example.com/stable/deb/amd64/InRelease  Could not connect to example.com:443
"""


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


def name_of(raised: pytest.ExceptionInfo[GpufleetError]) -> str:
    return raised.value.name


# The key


def test_a_key_with_the_expected_fingerprint_comes_in_binary_form() -> None:
    data = signed_packages.fetch_key(SOURCE)
    assert data[0] & 0x80
    assert b"BEGIN PGP" not in data


def test_another_key_is_refused_and_both_fingerprints_are_named() -> None:
    with pytest.raises(GpufleetError) as raised:
        signed_packages.fetch_key(replace(SOURCE, key=str(KEYS / "ed25519.asc")))
    assert name_of(raised) == "key-mismatch"
    assert "40C09FC53A360013DE9A3D76E6C57C3B1E053A88 (ed25519 <ed25519@example.com>)" in raised.value.message
    assert "E1E39BD8D85D686934AB3C75B89C6E4E4133D588" in raised.value.message
    assert "the_fingerprints" in raised.value.remedy


def test_a_further_key_beside_the_expected_one_is_refused_too() -> None:
    with pytest.raises(GpufleetError) as raised:
        signed_packages.fetch_key(replace(SOURCE, key=str(KEYS / "two.gpg")))
    assert name_of(raised) == "key-mismatch"


@pytest.mark.parametrize(
    ("name", "fingerprint", "says"),
    [
        ("expired", "E79F1406DEAF08E9E94B0339E70C95108D2EFEA5", "expired on 2024-01-01"),
        ("revoked", "0x9EA30B27A7C222311514C73F531C2157252D4CBE", "was revoked"),
    ],
)
def test_a_key_out_of_force_is_refused(name: str, fingerprint: str, says: str) -> None:
    with pytest.raises(GpufleetError, match=says) as raised:
        signed_packages.fetch_key(replace(SOURCE, key=str(KEYS / f"{name}.asc"), fingerprints=(fingerprint,)))
    assert name_of(raised) == "key-expired"


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("/nowhere/key", "key-unreachable"),
        ("http://127.0.0.1:9/key", "key-unreachable"),
        (str(Path(__file__)), "key-invalid"),
        ("ftp://example.com/key", "key-invalid"),
    ],
)
def test_a_key_that_is_not_there_is_told_with_its_variable(key: str, name: str) -> None:
    with pytest.raises(GpufleetError) as raised:
        signed_packages.fetch_key(replace(SOURCE, key=key))
    assert name_of(raised) == name
    assert "the_key" in raised.value.remedy


# The source


def test_the_source_is_written_as_the_vendors_instructions_have_it(tmp_path: Path) -> None:
    apt, dnf = Apt(), Dnf()
    assert apt.source_path(SOURCE) == "/etc/apt/sources.list.d/toolkit.list"
    assert apt.source_text(SOURCE) == (
        "deb [signed-by=/usr/share/keyrings/toolkit-keyring.gpg] https://example.com/stable/deb/amd64 /\n"
    )
    docker = replace(SOURCE, suite="bookworm", components=("stable",))
    assert apt.source_text(docker).endswith("amd64 bookworm stable\n")
    assert dnf.source_text(SOURCE).splitlines()[-3:] == [
        "gpgcheck=0",
        "repo_gpgcheck=1",
        "gpgkey=file:///etc/pki/rpm-gpg/RPM-GPG-KEY-toolkit",
    ]
    assert "gpgcheck=1\nrepo_gpgcheck=0" in dnf.source_text(replace(SOURCE, signed="packages"))


@pytest.mark.parametrize(
    ("name", "text", "conflicts"),
    [
        ("hand.list", "deb [signed-by=/etc/other.gpg] https://example.com/stable/deb/amd64/ /\n", True),
        ("hand.sources", "Types: deb\nURIs: https://example.com/stable/deb/amd64\nSuites: /\n", True),
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
    assert Apt(str(tmp_path)).other_sources(SOURCE) == ([str(folder / name)] if conflicts else [])


# What lacks


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
    lacking = signed_packages.lacking_packages(apt, [Package("toolkit", "1.19.1-1")], downgrade)
    assert bool(lacking.packages) is lacks
    assert lacking.downgrade is back


def test_rpm_tells_versions_in_its_own_words(tmp_path: Path) -> None:
    answer = "toolkit 1.17.8-1\npackage nope is not installed\n"
    dnf = RecordedDnf(tmp_path, {"rpm --query": (1, answer)})
    assert Dnf.installed(dnf, ["toolkit", "nope"]) == {"toolkit": "1.17.8-1"}


# Installing


def install(family: Recorded, wanted: Sequence[Package]) -> None:
    lacking = signed_packages.Lacking(list(wanted), {}, downgrade=False)
    signed_packages.install_from_source(family, SOURCE, lacking, signed_packages.fetch_key(SOURCE))


MADISON = (
    "toolkit | 1.19.1-1 | https://example.com/stable/deb/amd64  Packages\n"
    "toolkit | 1.17.8-1 | https://example.com/stable/deb/amd64  Packages\n"
    "toolkit | 1.18.0-1 | https://elsewhere.example.com  Packages\n"
)


def test_only_its_own_lists_are_refreshed_and_the_version_is_named(tmp_path: Path) -> None:
    apt = Recorded(tmp_path, {"apt-cache madison": (0, MADISON)})
    install(apt, [Package("toolkit", "1.19.1-1")])
    refresh, *_rest, last = apt.commands
    assert f"sourcelist={tmp_path}/etc/apt/sources.list.d/toolkit.list" in refresh
    assert "sourceparts=/dev/null" in refresh
    assert last.startswith("apt-get install") and last.endswith("toolkit=1.19.1-1")
    assert "--allow-downgrades" not in last
    assert (tmp_path / "usr/share/keyrings/toolkit-keyring.gpg").read_bytes()[0] & 0x80
    assert oct((tmp_path / "usr/share/keyrings/toolkit-keyring.gpg").stat().st_mode)[-3:] == "644"


@pytest.mark.parametrize(
    ("output", "name", "proof"),
    [
        (APT_OTHER_KEY, "repository-untrusted", "NO_PUBKEY B89C6E4E4133D588"),
        (APT_OTHER_KEY_SQV, "repository-untrusted", "Missing key AB2C"),
        (APT_UNREACHABLE, "repository-unreachable", "Connection refused"),
    ],
)
def test_a_source_that_does_not_work_is_told_and_taken_away(tmp_path: Path, output: str, name: str, proof: str) -> None:
    apt = Recorded(tmp_path, {"apt-get update": (100, output)})
    with pytest.raises(GpufleetError) as raised:
        install(apt, [Package("toolkit")])
    assert name_of(raised) == name
    assert proof in raised.value.evidence
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_source_that_was_there_before_is_put_back(tmp_path: Path) -> None:
    folder = tmp_path / "etc/apt/sources.list.d"
    folder.mkdir(parents=True)
    (folder / "toolkit.list").write_text("deb https://old.example.com /\n")
    apt = Recorded(tmp_path, {"apt-get update": (100, APT_UNREACHABLE)})
    with pytest.raises(GpufleetError):
        install(apt, [Package("toolkit")])
    assert (folder / "toolkit.list").read_text() == "deb https://old.example.com /\n"


def test_dnf_says_it_in_its_own_words() -> None:
    error = signed_packages.refresh_failed(Dnf(), SOURCE, DNF_OTHER_KEY)
    assert error.name == "repository-untrusted"
    assert "Bad GPG signature" in error.evidence


@pytest.mark.parametrize(
    ("package", "says"),
    [
        (Package("toolkit", "9.9"), "has no toolkit=9.9; it has 1.19.1-1, 1.17.8-1"),
        (Package("nope"), "has no nope; it has no version of it"),
    ],
)
def test_a_missing_package_is_told_with_the_versions_there_are(tmp_path: Path, package: Package, says: str) -> None:
    apt = Recorded(tmp_path, {"apt-cache madison": (0, MADISON)})
    with pytest.raises(GpufleetError) as raised:
        install(apt, [package])
    assert name_of(raised) == "package-missing"
    assert says in raised.value.message
    assert "the_version" in raised.value.remedy
    assert not any(command.startswith("apt-get install") for command in apt.commands)


def test_what_lacks_a_dependency_is_tried_again_with_every_list(tmp_path: Path) -> None:
    apt = Recorded(tmp_path, {"apt-cache madison": (0, MADISON), "apt-get install": (100, "E: unmet dependencies")})
    with pytest.raises(GpufleetError, match=r"could not install toolkit=1\.19\.1-1") as raised:
        install(apt, [Package("toolkit", "1.19.1-1")])
    assert name_of(raised) == "packages-failed"
    assert [command.split()[1] for command in apt.commands[-3:]] == ["install", "update", "install"]


def test_files_of_the_wanted_version_are_taken_and_what_lies_beside_them(tmp_path: Path) -> None:
    for name in ("toolkit_1.17", "toolkit_1.19", "libseccomp2_2.5"):
        (tmp_path / f"{name}.deb").touch()

    class Folder(Recorded):
        def describe_file(self, path: str) -> Package:
            return Package(*Path(path).stem.split("_"))

    apt = Folder(tmp_path, {})
    lacking = signed_packages.Lacking([Package("toolkit", "1.19")], {}, downgrade=False)
    signed_packages.install_from_folder(apt, str(tmp_path), lacking, "the_folder")
    assert apt.commands[-1].split()[-2:] == [str(tmp_path / "libseccomp2_2.5.deb"), str(tmp_path / "toolkit_1.19.deb")]
    lacking = signed_packages.Lacking([Package("toolkit", "1.20"), Package("base")], {}, downgrade=False)
    with pytest.raises(GpufleetError, match=r"lacks toolkit=1\.20, base; it has libseccomp2=2\.5") as raised:
        signed_packages.install_from_folder(apt, str(tmp_path), lacking, "the_folder")
    assert name_of(raised) == "package-missing"
    assert "the_folder" in raised.value.remedy


# The family


def test_the_family_is_the_one_that_installed_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signed_packages, "program_path", lambda name: f"/usr/bin/{name}")
    assert signed_packages.family_of("auto", str(tmp_path)).name == "dnf"
    (tmp_path / "var/lib/dpkg").mkdir(parents=True)
    (tmp_path / "var/lib/dpkg/status").touch()
    assert signed_packages.family_of("auto", str(tmp_path)).name == "apt"
    monkeypatch.setattr(signed_packages, "program_path", lambda _name: None)
    with pytest.raises(GpufleetError, match="has no dnf"):
        signed_packages.family_of("dnf")
