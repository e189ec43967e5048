# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host's package manager knows of packages: which are installed, which lack, which files have them."""

from __future__ import annotations

import glob
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import program_path, read_text
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.programs import run_program

COMMAND_TIMEOUT = 300  # seconds
KEPT_LINES = 12


@dataclass(frozen=True)
class Package:
    """A package, and the version it must have; any if empty."""

    name: str
    version: str = ""

    @classmethod
    def parse(cls, text: str) -> Package:
        """Return the package that C(name) or C(name=version) means."""
        name, _equals, version = text.partition("=")
        return cls(name.strip(), version.strip())

    def __str__(self) -> str:
        return f"{self.name}={self.version}" if self.version else self.name


class Family:
    """What one family of package managers does. Paths are below C(root)."""

    name = ""
    suffix = ""

    def __init__(self, root: str = "/") -> None:
        self.root = root

    def path(self, *parts: str) -> str:
        """Return a path of the host."""
        return os.path.join(self.root, *parts)

    def installed(self, names: Sequence[str]) -> dict[str, str]:
        """Return the version of each of the packages that is installed."""
        raise NotImplementedError

    def is_newer(self, version: str, than: str) -> bool:
        """Tell whether a version comes after another, by the family's own order."""
        raise NotImplementedError

    def other_sources(self, url: str, own: str, key: str) -> list[str]:
        """Return files of the host, beside C(own), that name a repository with another key than the one at C(key)."""
        raise NotImplementedError

    def describe_file(self, path: str) -> Package:
        """Return the package in a file."""
        raise NotImplementedError

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the package manager, both outputs in C(stdout)."""
        try:
            return run_program(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**os.environ, "LC_ALL": "C.UTF-8"},
                errors="replace",
                timeout=COMMAND_TIMEOUT,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise GpufleetError(
                f"{command[0]} could not do its work.", name="packages-failed", evidence=str(error)
            ) from error


class Apt(Family):
    """Debian, Ubuntu and their kin."""

    name = "apt"
    suffix = ".deb"

    def installed(self, names: Sequence[str]) -> dict[str, str]:
        done = self.run("dpkg-query", "--show", "--showformat=${Package} ${Version} ${db:Status-Status}\n", *names)
        lines = (line.split() for line in done.stdout.splitlines())
        return {words[0]: words[1] for words in lines if len(words) == 3 and words[2] == "installed"}

    def is_newer(self, version: str, than: str) -> bool:
        return self.run("dpkg", "--compare-versions", version, "gt", than).returncode == 0

    def other_sources(self, url: str, own: str, key: str) -> list[str]:
        paths = [self.path("etc/apt/sources.list"), *sorted(glob.glob(self.path("etc/apt/sources.list.d/*")))]
        wanted = re.compile(rf"^\s*(?:deb\s|URIs:).*{re.escape(url.rstrip('/'))}/?(?:\s|$)", re.MULTILINE)
        return [
            path
            for path in paths
            if path != own
            and path.endswith((".list", ".sources"))
            and any(key not in match for match in _lines_with(wanted, read_text(path)))
        ]

    def describe_file(self, path: str) -> Package:
        done = self.run("dpkg-deb", "--show", "--showformat=${Package} ${Version}", path)
        words = done.stdout.split()
        if done.returncode or len(words) != 2:
            raise bad_file(path, done.stdout)
        return Package(*words)


class Dnf(Family):
    """RHEL and its kin, Fedora, Amazon Linux."""

    name = "dnf"
    suffix = ".rpm"

    def installed(self, names: Sequence[str]) -> dict[str, str]:
        done = self.run("rpm", "--query", "--queryformat", "%{NAME} %{VERSION}-%{RELEASE}\n", *names)
        lines = (line.split() for line in done.stdout.splitlines())
        return {words[0]: words[1] for words in lines if len(words) == 2 and words[0] in names}

    def is_newer(self, version: str, than: str) -> bool:
        script = f'%{{lua:print(rpm.vercmp("{version}", "{than}"))}}'
        return self.run("rpm", "--eval", script).stdout.strip() == "1"

    def other_sources(self, url: str, own: str, key: str) -> list[str]:
        return []  # dnf takes a repository that is there twice

    def describe_file(self, path: str) -> Package:
        done = self.run("rpm", "--query", "--nosignature", "--queryformat", "%{NAME} %{VERSION}-%{RELEASE}", "-p", path)
        words = done.stdout.split()
        if done.returncode or len(words) < 2:
            raise bad_file(path, done.stdout)
        return Package(*words[-2:])


def bad_file(path: str, output: str) -> GpufleetError:
    """Return the error for a file that is no package."""
    return GpufleetError(
        f"{path} is not a package that this host can read.",
        name="packages-failed",
        remedy="Copy it again, whole, or take it out of the folder.",
        evidence=last_lines(output),
    )


def _lines_with(pattern: re.Pattern[str], text: str) -> list[str]:
    """Return the stanzas or lines of an apt source file in which a pattern matches."""
    deb822 = re.search(r"^URIs:", text, re.MULTILINE)
    parts = re.split(r"\n\s*\n", text) if deb822 else text.splitlines()
    return [part for part in parts if pattern.search(part)]


def family_of(manager: str, root: str = "/") -> Family:
    """Return the family C(apt) or C(dnf), or for C(auto) the one whose programs the host has.

    Raises:
        GpufleetError: C(no-package-manager).
    """
    if manager == "auto":
        # A Debian host may have dnf, for building images: what installed the host itself counts.
        manager = "apt" if os.path.exists(os.path.join(root, "var/lib/dpkg/status")) else "dnf"
    needed = {"apt": "apt-get", "dnf": "dnf"}[manager]
    if not program_path(needed):
        raise GpufleetError(
            f"This host has no {needed}, so its packages cannot be installed.",
            name="no-package-manager",
            remedy="Install them there by other means; the roles take what they find installed.",
        )
    return {"apt": Apt, "dnf": Dnf}[manager](root)


@dataclass
class Lacking:
    """What has to be installed: the packages, what is there instead, and whether some of it goes back in version."""

    packages: list[Package]
    before: dict[str, str]
    downgrade: bool


def lacking_packages(family: Family, wanted: Sequence[Package], allow_downgrade: bool) -> Lacking:
    """Return which packages lack. A newer version than the wanted one will do, unless it may be brought back."""
    before = family.installed([package.name for package in wanted])
    lacking, downgrade = [], False
    for package in wanted:
        version = before.get(package.name)
        if version is None:
            lacking.append(package)
        elif package.version and version != package.version:
            newer = family.is_newer(version, package.version)
            if not newer or allow_downgrade:
                lacking.append(package)
                downgrade = downgrade or newer
    return Lacking(lacking, before, downgrade)


def files_with(family: Family, folder: str, packages: Sequence[Package], variable: str) -> list[str]:
    """Return the files of a folder that have the packages, and those beside them of what they may depend on.

    Raises:
        GpufleetError: C(package-missing), or C(packages-failed) for a file that is no package.
    """
    files = [
        (path, family.describe_file(path)) for path in sorted(glob.glob(os.path.join(folder, f"*{family.suffix}")))
    ]
    wanted = {package.name: package for package in packages}
    missing = [
        package
        for package in packages
        if not any(found.name == package.name and package.version in ("", found.version) for _path, found in files)
    ]
    if missing:
        there = ", ".join(str(found) for _path, found in files) or f"no {family.suffix} file"
        raise GpufleetError(
            f"{folder} lacks {', '.join(map(str, missing))}; it has {there}.",
            name="package-missing",
            remedy=f"Put the files there ({variable}), or set the version to one that is there.",
            details={"missing": [str(package) for package in missing]},
        )
    return [
        path for path, found in files if found.name not in wanted or wanted[found.name].version in ("", found.version)
    ]


def difference(lacking: Lacking) -> dict[str, Any]:
    """Return what changes of the installed packages, as Ansible shows it."""
    before = [f"{name} {version}\n" for name, version in sorted(lacking.before.items())]
    changed = {package.name: package.version or "newest" for package in lacking.packages}
    after = [f"{name} {version}\n" for name, version in sorted({**lacking.before, **changed}.items())]
    header = "installed packages"
    return {"before": "".join(before), "after": "".join(after), "before_header": header, "after_header": header}


def last_lines(output: str) -> str:
    """Return the last lines of what a program said."""
    return "\n".join(line.rstrip() for line in output.strip().splitlines()[-KEPT_LINES:])
