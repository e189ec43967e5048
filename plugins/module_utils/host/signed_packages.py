# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Packages of a vendor: from its repository, whose key is known by fingerprint, or from a folder.

Both families work the same way: see which of the wanted packages lack, have key and source, refresh that source alone
(another broken source of the host is no reason to fail), install. Each failure is told by its one cause.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import write_file
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import program_path, read_text
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.programs import run_program
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.text import MIB
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.openpgp import dearmor, read_keys

FETCH_TIMEOUT = 30  # seconds
COMMAND_TIMEOUT = 1800
LARGEST_KEY = MIB
LOCK_TIMEOUT = 300
KEPT_LINES = 12
FILE_MODE = 0o644  # of keys and sources, which the package manager reads as a user of its own


@dataclass(frozen=True)
class Source:
    """A vendor's repository.

    Attributes:
        name: names its files on the host.
        url: its address.
        suite: of an apt repository; C(/) for a flat one.
        components: of an apt repository that is not flat.
        key: address, or path on the host, of its signing key.
        fingerprints: those of the keys that may sign it.
        signed: what of a dnf repository is signed, C(metadata) or C(packages). apt repositories sign their metadata.
        proxy: for this work only, it is written nowhere; empty for the environment's own.
        variables: the variables a user sets: C(url), C(key), C(fingerprints), C(version) to their names.
    """

    name: str
    url: str
    suite: str
    components: tuple[str, ...]
    key: str
    fingerprints: tuple[str, ...]
    signed: str
    proxy: str
    variables: dict[str, str]

    def variable(self, what: str) -> str:
        """Return how messages call one of this source's settings."""
        return self.variables.get(what) or what


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

    def __init__(self, root: str = "/", proxy: str = "") -> None:
        self.root = root
        self.proxy = proxy

    def path(self, *parts: str) -> str:
        """Return a path of the host."""
        return os.path.join(self.root, *parts)

    def installed(self, names: Sequence[str]) -> dict[str, str]:
        """Return the version of each of the packages that is installed."""
        raise NotImplementedError

    def is_newer(self, version: str, than: str) -> bool:
        """Tell whether a version comes after another, by the family's own order."""
        raise NotImplementedError

    def key_path(self, source: Source) -> str:
        """Return where the key of a source is kept."""
        raise NotImplementedError

    def source_path(self, source: Source) -> str:
        """Return the file that describes a source."""
        raise NotImplementedError

    def source_text(self, source: Source) -> str:
        """Return the content of that file."""
        raise NotImplementedError

    def other_sources(self, source: Source) -> list[str]:
        """Return other files of the host that name the same repository in a way that excludes ours."""
        raise NotImplementedError

    def refresh(self, source: Source) -> subprocess.CompletedProcess[str]:
        """Fetch the lists of one source."""
        raise NotImplementedError

    def refresh_all(self) -> subprocess.CompletedProcess[str]:
        """Fetch the lists of every source."""
        raise NotImplementedError

    def available(self, names: Sequence[str], source: Source) -> dict[str, list[str]]:
        """Return the versions of packages that the source has."""
        raise NotImplementedError

    def install(self, wanted: Sequence[str], *, downgrade: bool) -> subprocess.CompletedProcess[str]:
        """Install packages, given as this family's specifications or as files."""
        raise NotImplementedError

    def specification(self, package: Package) -> str:
        """Return how the family's installer calls one version of a package."""
        raise NotImplementedError

    def describe_file(self, path: str) -> Package:
        """Return the package in a file."""
        raise NotImplementedError

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the package manager, both outputs in C(stdout)."""
        environment = {
            **os.environ,
            "LC_ALL": "C.UTF-8",
            "DEBIAN_FRONTEND": "noninteractive",
            # Ubuntu's needrestart would restart the engine, and what it serves, behind our back.
            "NEEDRESTART_SUSPEND": "1",
        }
        if self.proxy:
            environment.update(dict.fromkeys(("http_proxy", "https_proxy"), self.proxy))
        try:
            return run_program(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment,
                text=True,
                errors="replace",
                timeout=COMMAND_TIMEOUT,
                check=False,
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

    def key_path(self, source: Source) -> str:
        return self.path("usr/share/keyrings", f"{source.name}-keyring.gpg")

    def source_path(self, source: Source) -> str:
        # The one-line format and these names are those of the vendors' own instructions: a host that was set up by
        # hand has no second source, which apt refuses when the two name different keyrings.
        return self.path("etc/apt/sources.list.d", f"{source.name}.list")

    def source_text(self, source: Source) -> str:
        components = "".join(f" {component}" for component in source.components)
        return f"deb [signed-by={self.key_path(source)}] {source.url} {source.suite}{components}\n"

    def other_sources(self, source: Source) -> list[str]:
        ours = self.source_path(source)
        paths = [self.path("etc/apt/sources.list"), *sorted(glob.glob(self.path("etc/apt/sources.list.d/*")))]
        wanted = re.compile(rf"^\s*(?:deb\s|URIs:).*{re.escape(source.url.rstrip('/'))}/?(?:\s|$)", re.MULTILINE)
        return [
            path
            for path in paths
            if path != ours
            and path.endswith((".list", ".sources"))
            and any(self.key_path(source) not in match for match in _lines_with(wanted, read_text(path)))
        ]

    def refresh(self, source: Source) -> subprocess.CompletedProcess[str]:
        return self.run(
            "apt-get",
            "update",
            "-o",
            f"Dir::Etc::sourcelist={self.source_path(source)}",
            "-o",
            "Dir::Etc::sourceparts=/dev/null",
            "-o",
            "APT::Get::List-Cleanup=0",
            "-o",
            "APT::Update::Error-Mode=any",
            "-o",
            f"DPkg::Lock::Timeout={LOCK_TIMEOUT}",
        )

    def refresh_all(self) -> subprocess.CompletedProcess[str]:
        return self.run("apt-get", "update", "-o", f"DPkg::Lock::Timeout={LOCK_TIMEOUT}")

    def available(self, names: Sequence[str], source: Source) -> dict[str, list[str]]:
        rows = (line.split("|") for line in self.run("apt-cache", "madison", *names).stdout.splitlines())
        return _grouped(
            (row[0].strip(), row[1].strip()) for row in rows if len(row) == 3 and source.url.rstrip("/") in row[2]
        )

    def install(self, wanted: Sequence[str], *, downgrade: bool) -> subprocess.CompletedProcess[str]:
        return self.run(
            "apt-get",
            "install",
            "--yes",
            "--no-install-recommends",
            *(["--allow-downgrades"] if downgrade else []),
            "-o",
            f"DPkg::Lock::Timeout={LOCK_TIMEOUT}",
            "-o",
            "Dpkg::Options::=--force-confold",
            *wanted,
        )

    def specification(self, package: Package) -> str:
        return str(package)

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

    def key_path(self, source: Source) -> str:
        return self.path("etc/pki/rpm-gpg", f"RPM-GPG-KEY-{source.name}")

    def source_path(self, source: Source) -> str:
        return self.path("etc/yum.repos.d", f"{source.name}.repo")

    def source_text(self, source: Source) -> str:
        return (
            f"[{source.name}]\nname={source.name}\nbaseurl={source.url}\nenabled=1\n"
            f"gpgcheck={int(source.signed == 'packages')}\nrepo_gpgcheck={int(source.signed == 'metadata')}\n"
            f"gpgkey=file://{self.key_path(source)}\n"
        )

    def other_sources(self, source: Source) -> list[str]:
        return []  # dnf takes a repository that is there twice

    def refresh(self, source: Source) -> subprocess.CompletedProcess[str]:
        return self.run("dnf", "--assumeyes", *self._only(source), "makecache", "--refresh")

    @staticmethod
    def _only(source: Source) -> list[str]:
        # dnf may be set to go on without a repository that does not work, and then reports success.
        return ["--disablerepo=*", f"--enablerepo={source.name}", f"--setopt={source.name}.skip_if_unavailable=0"]

    def refresh_all(self) -> subprocess.CompletedProcess[str]:
        return self.run("dnf", "--assumeyes", "makecache")

    def available(self, names: Sequence[str], source: Source) -> dict[str, list[str]]:
        query = "--queryformat=%{name} %{version}-%{release}"
        done = self.run("dnf", "--assumeyes", "--quiet", *self._only(source), "repoquery", query, *names)
        lines = (line.split() for line in done.stdout.splitlines())
        return _grouped((words[0], words[1]) for words in lines if len(words) == 2 and words[0] in names)

    def install(self, wanted: Sequence[str], *, downgrade: bool) -> subprocess.CompletedProcess[str]:
        # Without --allowerasing dnf4 takes an older version that is named; --best tells why one cannot be had.
        return self.run("dnf", "--assumeyes", "--best", "--setopt=install_weak_deps=False", "install", *wanted)

    def specification(self, package: Package) -> str:
        return f"{package.name}-{package.version}" if package.version else package.name

    def describe_file(self, path: str) -> Package:
        done = self.run("rpm", "--query", "--nosignature", "--queryformat", "%{NAME} %{VERSION}-%{RELEASE}", "-p", path)
        words = done.stdout.split()
        if done.returncode or len(words) < 2:
            raise bad_file(path, done.stdout)
        return Package(*words[-2:])


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, version in pairs:
        found.setdefault(name, []).append(version)
    return found


def bad_file(path: str, output: str) -> GpufleetError:
    """Return the error for a file that is no package."""
    return GpufleetError(
        f"{path} is not a package that this host can read.",
        name="packages-failed",
        remedy="Copy it again, whole, or take it out of the folder.",
        evidence=_tail(output),
    )


def _lines_with(pattern: re.Pattern[str], text: str) -> list[str]:
    """Return the stanzas or lines of an apt source file in which a pattern matches."""
    deb822 = re.search(r"^URIs:", text, re.MULTILINE)
    parts = re.split(r"\n\s*\n", text) if deb822 else text.splitlines()
    return [part for part in parts if pattern.search(part)]


def family_of(manager: str, root: str = "/", proxy: str = "") -> Family:
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
    return {"apt": Apt, "dnf": Dnf}[manager](root, proxy)


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


# The key


def fetch_key(source: Source) -> bytes:
    """Return the source's key in binary form, once it is known to be the expected one and to be in force.

    Raises:
        GpufleetError: C(key-unreachable), C(key-invalid), C(key-mismatch) or C(key-expired).
    """
    try:
        data = dearmor(_read(source))
        keys = read_keys(data)
    except (OSError, urllib.error.URLError) as error:
        raise GpufleetError(
            f"The signing key {source.key} cannot be fetched.",
            name="key-unreachable",
            remedy=f"Check the network and the proxy of the host, or set {source.variable('key')} to a mirror or to a"
            " file on the host.",
            evidence=str(getattr(error, "reason", "") or error),
        ) from error
    except ValueError as error:
        raise GpufleetError(
            f"{source.key} is no signing key: {error}.",
            name="key-invalid",
            remedy=f"Set {source.variable('key')} to the address of the repository's public key.",
        ) from error
    accepted = {_plain(fingerprint) for fingerprint in source.fingerprints}
    for key in keys:
        if key.fingerprint not in accepted:
            raise GpufleetError(
                f"The key at {source.key} is not the expected one: it has the fingerprint {key.fingerprint}"
                f" ({', '.join(key.owners) or 'no owner'}), expected is {' or '.join(sorted(accepted))}.",
                name="key-mismatch",
                remedy="Nothing was installed. Find out from the vendor whether its key changed; only then add the new"
                f" fingerprint to {source.variable('fingerprints')}.",
                details={"found": key.fingerprint, "expected": sorted(accepted)},
            )
        if key.revoked or (key.expires is not None and key.expires <= time.time()):
            ended = "was revoked" if key.revoked else f"expired on {_day(key.expires or 0)}"
            raise GpufleetError(
                f"The key {key.fingerprint} at {source.key} {ended}.",
                name="key-expired",
                remedy=f"Set {source.variable('key')} to where the vendor publishes the renewed key, and"
                f" {source.variable('fingerprints')} to its fingerprint if that is another. If the key is in force, set"
                " the host's clock.",
                details={"fingerprint": key.fingerprint, "expires": key.expires},
            )
    return data


def _read(source: Source) -> bytes:
    if "://" not in source.key:
        with open(source.key, "rb") as stream:
            return stream.read(LARGEST_KEY)
    handlers = []
    if source.proxy:
        handlers.append(urllib.request.ProxyHandler(dict.fromkeys(("http", "https"), source.proxy)))
    if not source.key.startswith(("https://", "http://", "file://")):
        raise ValueError("it is neither a path nor an address that begins with https://, http:// or file://")
    request = urllib.request.Request(source.key, headers={"User-Agent": "gpufleet.vllm"})  # noqa: S310 - checked above
    with urllib.request.build_opener(*handlers).open(request, timeout=FETCH_TIMEOUT) as answer:
        content: bytes = answer.read(LARGEST_KEY)
        return content


def _plain(fingerprint: str) -> str:
    return re.sub(r"[\s:]|^0x", "", fingerprint).upper()


def _day(epoch: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(epoch))


# The work


def install_from_source(family: Family, source: Source, lacking: Lacking, key: bytes) -> None:
    """Have key and source on the host, and the packages from it.

    A source that did not work is taken away again, so that a wrong address does not break the host's package manager.

    Raises:
        GpufleetError: C(source-conflict), C(repository-untrusted), C(repository-unreachable), C(package-missing),
            C(packages-failed) or C(write-failed).
    """
    others = family.other_sources(source)
    if others:
        raise GpufleetError(
            f"{', '.join(others)} names {source.url} already, with another key than {family.key_path(source)};"
            f" {family.name} refuses that.",
            name="source-conflict",
            remedy="Remove that file (and its key), then run the play again.",
        )
    paths = (family.key_path(source), family.source_path(source))
    kept = [(path, _content(path)) for path in paths]
    write_file(paths[0], key, FILE_MODE)
    write_file(paths[1], family.source_text(source), FILE_MODE)
    try:
        refreshed = family.refresh(source)
        if refreshed.returncode:
            raise refresh_failed(family, source, refreshed.stdout)
        check_available(family, source, lacking.packages)
    except GpufleetError:
        for path, content in kept:
            _restore(path, content)
        raise
    install(family, [family.specification(package) for package in lacking.packages], lacking.downgrade)


def install_from_folder(family: Family, folder: str, lacking: Lacking, variable: str) -> None:
    """Install the packages, and what else is there for them, from files.

    Raises:
        GpufleetError: C(package-missing) or C(packages-failed).
    """
    files = [
        (path, family.describe_file(path)) for path in sorted(glob.glob(os.path.join(folder, f"*{family.suffix}")))
    ]
    wanted = {package.name: package for package in lacking.packages}
    missing = [
        package
        for package in lacking.packages
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
    chosen = [
        path for path, found in files if found.name not in wanted or wanted[found.name].version in ("", found.version)
    ]
    install(family, chosen, lacking.downgrade)


def install(family: Family, specifications: Sequence[str], downgrade: bool) -> None:
    """Install, with the lists of all sources refreshed once if the first attempt lacks something.

    Raises:
        GpufleetError: C(packages-failed).
    """
    done = family.install(specifications, downgrade=downgrade)
    if done.returncode and re.search(r"unmet dependencies|Unable to (?:locate|fetch)|nothing provides", done.stdout):
        family.refresh_all()
        done = family.install(specifications, downgrade=downgrade)
    if done.returncode:
        raise GpufleetError(
            f"{family.name} could not install {', '.join(os.path.basename(entry) for entry in specifications)}.",
            name="packages-failed",
            remedy="Mend what it says on the host, then run the play again.",
            evidence=_tail(done.stdout),
        )


def check_available(family: Family, source: Source, packages: Sequence[Package]) -> None:
    """Raise C(package-missing), with the versions there are, unless the source has every package."""
    available = family.available([package.name for package in packages], source)
    for package in packages:
        versions = available.get(package.name, [])
        if not versions or (package.version and package.version not in versions):
            there = f"it has {', '.join(versions)}" if versions else "it has no version of it for this architecture"
            raise GpufleetError(
                f"{source.url} has no {package}; {there}.",
                name="package-missing",
                remedy=f"Set {source.variable('version')} to a version that is there, or {source.variable('url')} to a"
                " repository that has it.",
                details={"package": str(package), "available": versions},
            )


UNTRUSTED = (
    r"NO_PUBKEY|EXPKEYSIG|KEYEXPIRED|BADSIG|REVKEYSIG|is not signed|not signed by|Missing key|Bad GPG signature"
    r"|GPG verification is enabled|repomd\.xml\.asc|No working signature|Signing key on proxy"
)


def refresh_failed(family: Family, source: Source, output: str) -> GpufleetError:
    """Return the error for a repository whose lists could not be fetched: not to be trusted, or not to be reached."""
    unsigned = re.search(r"404 .*repomd\.xml\.asc|Status code: 404.*repomd\.xml\.asc", output)
    if re.search(UNTRUSTED, output) or unsigned:
        return GpufleetError(
            f"The repository {source.url} is not signed by the expected key ({', '.join(source.fingerprints)}), or that"
            " key has expired.",
            name="repository-untrusted",
            remedy=f"Nothing was installed. Check {source.variable('url')}: a mirror has to carry the vendor's own"
            f" signatures; and {source.variable('key')}, should the vendor sign with another key now.",
            evidence=_proof(output, UNTRUSTED),
        )
    return GpufleetError(
        f"The repository {source.url} cannot be read.",
        name="repository-unreachable",
        remedy=f"Check the network and the proxy of the host, or set {source.variable('url')} to a mirror.",
        evidence=_proof(output, r"^(?:E|Err|W|Error|Errors|Curl)\b|Could not|Failed|404|Cannot download"),
    )


def _proof(output: str, pattern: str) -> str:
    lines = [line.strip() for line in output.splitlines() if re.search(pattern, line)]
    return "\n".join(lines[:3]) or _tail(output)


def _tail(output: str) -> str:
    return "\n".join(line.rstrip() for line in output.strip().splitlines()[-KEPT_LINES:])


def _content(path: str) -> bytes | None:
    try:
        with open(path, "rb") as stream:
            return stream.read()
    except OSError:
        return None


def _restore(path: str, content: bytes | None) -> None:
    if content is not None:
        write_file(path, content, FILE_MODE)
    elif os.path.exists(path):
        with contextlib.suppress(OSError):
            os.unlink(path)


def difference(family: Family, lacking: Lacking, source: Source | None) -> list[dict[str, Any]]:
    """Return what changes on the host, as Ansible shows it."""
    before = [f"{name} {version}\n" for name, version in sorted(lacking.before.items())]
    changed = {package.name: package.version or "newest" for package in lacking.packages}
    after = [f"{name} {version}\n" for name, version in sorted({**lacking.before, **changed}.items())]
    shown: list[dict[str, Any]] = []
    if source:
        path = family.source_path(source)
        text = family.source_text(source)
        if read_text(path) != text:
            shown.append({"before": read_text(path), "after": text, "before_header": path, "after_header": path})
    header = "installed packages"
    return [
        *shown,
        {"before": "".join(before), "after": "".join(after), "before_header": header, "after_header": header},
    ]
