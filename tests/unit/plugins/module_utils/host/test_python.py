# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Virtual environments and pip's settings, read without running either."""

from __future__ import annotations

import sys
import venv as standard_venv
from pathlib import Path

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.host import python as host_python


def install(environment: Path, name: str, version: str) -> None:
    """Put a distribution's metadata into a virtual environment."""
    site_packages = next((environment / "lib").glob("python*")) / "site-packages"
    folder = site_packages / f"{name}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A real virtual environment, without pip."""
    path = tmp_path / "venv"
    standard_venv.create(path, symlinks=True)
    return path


def test_a_real_environment_is_read(environment: Path) -> None:
    install(environment, "docker", "7.1.0")
    install(environment, "nvidia_ml_py", "13.615.71")
    found = host_python.venv(str(environment), ["docker==7.1.0", "nvidia-ml-py>=12.560"])
    assert found["exists"] is True
    assert found["python_version"] == ".".join(str(part) for part in sys.version_info[:3])
    assert found["distributions"] == {"docker": "7.1.0", "nvidia-ml-py": "13.615.71"}
    assert (found["missing"], found["satisfied"]) == ([], True)


def test_what_is_missing_is_named(environment: Path) -> None:
    install(environment, "docker", "6.0.0")
    found = host_python.venv(str(environment), ["docker==7.1.0", "requests"])
    assert (found["missing"], found["satisfied"]) == (["docker==7.1.0", "requests"], False)


def test_a_half_installed_distribution_does_not_count(environment: Path) -> None:
    install(environment, "docker", "7.1.0")
    next(environment.glob("lib/python*/site-packages/docker-7.1.0.dist-info/METADATA")).unlink()
    assert host_python.venv(str(environment), ["docker"])["satisfied"] is False


def test_an_environment_whose_python_is_gone_must_be_made_anew(environment: Path) -> None:
    python = environment / "bin/python"
    python.unlink()
    python.symlink_to("/nowhere/python3.9")
    found = host_python.venv(str(environment), [])
    assert (found["exists"], found["satisfied"]) == (False, False)
    assert "made anew" in found["reason"]


def test_only_the_packages_of_its_own_python_count(environment: Path) -> None:
    install(environment, "docker", "7.1.0")
    # What an upgraded distribution leaves behind: the packages of the Python that was.
    old = environment / "lib/python3.1/site-packages/docker-6.0.dist-info"
    old.mkdir(parents=True)
    (old / "METADATA").write_text("Name: docker\n")
    (environment / "bin/python3.1").write_text("#!/bin/sh\n")
    (environment / "bin/python3.1").chmod(0o755)
    assert host_python.venv(str(environment), [])["distributions"] == {"docker": "7.1.0"}
    (environment / "bin/python").unlink()
    (environment / "bin/python").symlink_to("python3.1")
    assert host_python.venv(str(environment), [])["distributions"] == {"docker": "6.0"}


def test_a_missing_folder_is_said(tmp_path: Path) -> None:
    found = host_python.venv(str(tmp_path / "nothing"), ["docker"])
    assert found["reason"] == "The folder does not exist."
    assert found["missing"] == ["docker"]


@pytest.mark.parametrize(
    ("requirement", "met"),
    [
        ("docker", True),
        ("Docker==7.1.0", True),
        ("docker==7.1", True),
        ("docker[ssh]==7.1.0", True),
        ("docker>=7,<8", True),
        ("docker>=7.1.1", False),
        ("docker<7.1", False),
        ("docker!=7.1.0", False),
        ("docker==7.1.0.post1", False),
        ("docker~=7.1", False),
        ("docker==7.*", False),
        ("docker; python_version > '3'", False),
        ("https://example.org/docker.whl", False),
        ("nvidia.ml_py>=12.560", True),
        ("pre>=2.0", False),
        ("pre>=1.9", True),
        ("post>=2.0", True),
        ("absent", False),
        ("", False),
    ],
)
def test_requirements_are_met_only_when_that_is_certain(requirement: str, met: bool) -> None:
    installed = {"docker": "7.1.0", "nvidia-ml-py": "13.615.71", "pre": "2.0rc1", "post": "2.0.post1"}
    assert host_python.is_met(requirement, installed) is met


@pytest.fixture
def quiet_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variables of pip's in the environment."""
    monkeypatch.delenv("PIP_CERT", raising=False)
    monkeypatch.delenv("PIP_CONFIG_FILE", raising=False)


def configure(path: Path, bundle: Path) -> None:
    bundle.parent.mkdir(parents=True, exist_ok=True)
    bundle.write_text("a certificate")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"[global]\ncert = {bundle}\nindex-url = https://user:%40word@example.org\n")


@pytest.mark.usefixtures("quiet_pip")
def test_ca_bundle_of_the_system_and_of_the_user(tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert host_python.ca_bundle(str(tmp_path), str(home)) is None
    configure(tmp_path / "etc/pip.conf", tmp_path / "system.pem")
    found = host_python.ca_bundle(str(tmp_path), str(home))
    assert found == {"path": str(tmp_path / "system.pem"), "source": str(tmp_path / "etc/pip.conf")}
    configure(home / ".config/pip/pip.conf", tmp_path / "user.pem")
    found = host_python.ca_bundle(str(tmp_path), str(home))
    assert found == {"path": str(tmp_path / "user.pem"), "source": str(home / ".config/pip/pip.conf")}


@pytest.mark.usefixtures("quiet_pip")
def test_ca_bundle_of_the_environment_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(tmp_path / "etc/pip.conf", tmp_path / "system.pem")
    (tmp_path / "own.pem").write_text("a certificate")
    monkeypatch.setenv("PIP_CERT", str(tmp_path / "own.pem"))
    found = host_python.ca_bundle(str(tmp_path), str(tmp_path))
    assert found == {"path": str(tmp_path / "own.pem"), "source": "PIP_CERT"}


@pytest.mark.usefixtures("quiet_pip")
@pytest.mark.parametrize("text", ["[global]\ncert = /nowhere/at/all.pem\n", "not an ini file", "[install]\ncert = x\n"])
def test_ca_bundle_that_cannot_be_used_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/pip.conf").write_text(text)
    assert host_python.ca_bundle(str(tmp_path), str(tmp_path)) is None
