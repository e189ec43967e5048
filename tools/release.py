# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes a release of the collection, or checks that one could be made.

    tools/release.py check                    build, and let Galaxy's own importer check the tarball
    tools/release.py release 1.2.3            bump, changelog, build, check, install
    tools/release.py release 1.2.3 --dry-run  the same in a copy alone, and show what would change here

All of it happens in a copy of what git knows. Only when everything passed are the changed files brought back, and the
tarball with them; so a release that fails leaves this checkout as it was. Committing, tagging and publishing stay with
a person, who is told how.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
RELEASE = ROOT / ".cache" / "release"
GALAXY = ROOT / ".cache" / "galaxy"
BIN = Path(sys.executable).parent
# Where the version stands besides galaxy.yml: in the commands that name the tarball.
NAMES_THE_TARBALL = ("README.md", "docs/docsite/rst/first_deploy.rst")
# The version for code on the hosts, where galaxy.yml is not.
VERSION_ON_HOSTS = "plugins/module_utils/containers/names.py"
CHANGED_BY_A_RELEASE = (
    "galaxy.yml",
    VERSION_ON_HOSTS,
    "CHANGELOG.rst",
    "changelogs/changelog.yaml",
    *NAMES_THE_TARBALL,
)
FRAGMENTS = "changelogs/fragments"
VERSION = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)")
IMPORTER_SETTINGS = {
    "CHECK_REQUIRED_TAGS": "true",
    "CHECK_CHANGELOG": "true",
    "RUN_ANSIBLE_DOC": "true",
    "RUN_ANSIBLE_LINT": "true",
}

sys.path.insert(0, str(ROOT / ".cache" / "collections"))
from ansible_collections.gpufleet.vllm.tools import checkout  # noqa: E402


class ReleaseError(Exception):
    """What keeps a release from being made, in one sentence for a person."""


def call(*words: str, folder: Path, environment: dict[str, str] | None = None) -> str:
    """Run a command and return what it printed.

    Raises:
        ReleaseError: when it fails, with what it printed.
    """
    settings = {
        **os.environ,
        "PATH": f"{BIN}:{os.environ.get('PATH', '')}",
        "ANSIBLE_NOCOLOR": "1",
        **(environment or {}),
    }
    done = subprocess.run(
        words, cwd=folder, env=settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode != 0:
        raise ReleaseError(f"{Path(words[0]).name} failed ({done.returncode}):\n{done.stdout}")
    return done.stdout


def as_numbers(version: str) -> tuple[int, ...]:
    """Return a version's numbers.

    Raises:
        ReleaseError: when it is none, such as C(1.2) or C(v1.2.3).
    """
    if not VERSION.fullmatch(version):
        raise ReleaseError(f"VERSION is {version!r}; it must be three numbers such as 1.2.3.")
    return tuple(int(part) for part in version.split("."))


def check_version(version: str, released: list[str]) -> None:
    """Refuse a version that is not above every released one.

    Raises:
        ReleaseError: when it is not.
    """
    numbers = as_numbers(version)
    newest = max(released, key=as_numbers, default="")
    if newest and numbers <= as_numbers(newest):
        raise ReleaseError(f"VERSION is {version}, but {newest} was released already; it must be above that.")


def copy_of_checkout() -> Path:
    """Copy what git knows or would add, and return the folder.

    Raises:
        ReleaseError: when git does not tell.
    """
    copy = RELEASE / "copy"
    try:
        checkout.copy_to(copy)
    except subprocess.CalledProcessError as error:
        raise ReleaseError(f"git does not tell the files of {ROOT}: {error.stderr.strip()}") from error
    return copy


def bump(copy: Path, version: str) -> None:
    """Write the version where it stands, and turn the fragments into the changelog of this version."""
    galaxy = copy / "galaxy.yml"
    old = str(yaml.safe_load(galaxy.read_text(encoding="utf-8"))["version"])
    replace(galaxy, f"version: {old}", f"version: {version}")
    replace(copy / VERSION_ON_HOSTS, f'VERSION = "{old}"', f'VERSION = "{version}"')
    for name in NAMES_THE_TARBALL:
        replace(copy / name, f"gpufleet-vllm-{old}.tar.gz", f"gpufleet-vllm-{version}.tar.gz")
    if not list((copy / FRAGMENTS).glob("*.yml")):
        raise ReleaseError(f"{FRAGMENTS} is empty: a release without a word on what changed.")
    # antsibull-changelog reads the plugins' documentation, for which it wants the folders of an installed collection.
    tree = RELEASE / "tree" / "ansible_collections" / "gpufleet"
    shutil.rmtree(RELEASE / "tree", ignore_errors=True)
    tree.mkdir(parents=True)
    shutil.copytree(copy, tree / "vllm")
    call("antsibull-changelog", "release", "--version", version, folder=tree / "vllm")
    for name in ("CHANGELOG.rst", "changelogs/changelog.yaml"):
        shutil.copy2(tree / "vllm" / name, copy / name)
    for fragment in (copy / FRAGMENTS).glob("*.yml"):
        fragment.unlink()


def replace(path: Path, old: str, new: str) -> None:
    """Replace a text in a file.

    Raises:
        ReleaseError: when it is not there.
    """
    text = path.read_text(encoding="utf-8")
    if old not in text:
        raise ReleaseError(f"{path.name} does not hold {old!r}, which a release replaces.")
    path.write_text(text.replace(old, new), encoding="utf-8")


def build(copy: Path) -> Path:
    """Build the collection and return the tarball."""
    folder = RELEASE / "built"
    shutil.rmtree(folder, ignore_errors=True)
    call("ansible-galaxy", "collection", "build", str(copy), "--output-path", str(folder), folder=copy)
    (tarball,) = folder.glob("*.tar.gz")
    return tarball


def importer() -> Path:
    """Return the Python of the environment with Galaxy's importer, made if it is not there."""
    requirements = ROOT / "tools" / "release.txt"
    python, stamp = GALAXY / "bin" / "python", GALAXY / "requirements"
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != requirements.read_text(encoding="utf-8"):
        print("Installing Galaxy's importer in .cache/galaxy", flush=True)
        shutil.rmtree(GALAXY, ignore_errors=True)
        call(sys.executable, "-m", "venv", str(GALAXY), folder=ROOT)
        call(str(python), "-m", "pip", "install", "-qq", "-r", str(requirements), folder=ROOT)
        shutil.copy2(requirements, stamp)
    return python


def check_by_galaxy(tarball: Path) -> None:
    """Let Galaxy's importer check the tarball as Galaxy would; a warning of it counts as an error.

    Raises:
        ReleaseError: when it finds anything.
    """
    python = importer()
    settings = {f"GALAXY_IMPORTER_{name}": value for name, value in IMPORTER_SETTINGS.items()}
    settings["PATH"] = f"{python.parent}:{os.environ.get('PATH', '')}"
    # It writes importer_result.json where it runs.
    told = call(str(python), "-m", "galaxy_importer.main", str(tarball), folder=tarball.parent, environment=settings)
    found = findings(told)
    if found:
        raise ReleaseError("Galaxy's importer found:\n" + "\n".join(found))
    if "Importer processing completed successfully" not in told:
        raise ReleaseError(f"Galaxy's importer did not come to its end:\n{told}")


def findings(told: str) -> list[str]:
    """Return the lines of the importer's output that are warnings or errors."""
    return [line for line in told.splitlines() if re.match(r"(WARNING|ERROR|CRITICAL)\b", line)]


def check_installed(tarball: Path, version: str) -> None:
    """Install the tarball into an empty folder, with no network, and see that it is the version.

    Raises:
        ReleaseError: when it is not.
    """
    folder = RELEASE / "installed"
    shutil.rmtree(folder, ignore_errors=True)
    call(
        *("ansible-galaxy", "collection", "install", "--offline", str(tarball), "-p", str(folder)),
        folder=RELEASE,
        environment={"ANSIBLE_COLLECTIONS_PATH": str(folder)},
    )
    manifest = (folder / "ansible_collections" / "gpufleet" / "vllm" / "MANIFEST.json").read_text(encoding="utf-8")
    if f'"version": "{version}"' not in manifest:
        raise ReleaseError(f"The tarball {tarball.name} is not version {version}.")


def checked(copy: Path) -> Path:
    """Build a copy, check what was built, and return the tarball."""
    version = str(yaml.safe_load((copy / "galaxy.yml").read_text(encoding="utf-8"))["version"])
    tarball = build(copy)
    with tarfile.open(tarball) as tar:
        count = len(tar.getmembers())
    print(f"Built {tarball.name}: {count} files, {tarball.stat().st_size // 1024} KiB", flush=True)
    check_installed(tarball, version)
    print("Installed it with no network", flush=True)
    check_by_galaxy(tarball)
    print("Galaxy's importer found nothing", flush=True)
    return tarball


def difference(copy: Path) -> str:
    """Return what a release changes in this checkout, as git shows it."""
    lines = []
    for name in (*CHANGED_BY_A_RELEASE, FRAGMENTS):
        done = subprocess.run(
            ["git", "diff", "--no-index", "--stat", "--", str(ROOT / name), str(copy / name)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,  # 1 means that they differ
        )
        if done.stdout.strip():
            lines.append(f"  {name}: {done.stdout.strip().splitlines()[-1].strip()}")
    return "\n".join(lines)


def release(version: str, dry_run: bool) -> None:
    """Make a release in a copy; bring it back unless it is a dry run."""
    changes = yaml.safe_load((ROOT / "changelogs" / "changelog.yaml").read_text(encoding="utf-8"))
    check_version(version, list(changes["releases"]))
    uncommitted = call("git", "status", "--porcelain", folder=ROOT).strip()
    if uncommitted and not dry_run:
        raise ReleaseError(f"Commit first, so that a release is what git knows:\n{uncommitted}")
    copy = copy_of_checkout()
    bump(copy, version)
    tarball = checked(copy)
    print(f"Changes:\n{difference(copy)}")
    if dry_run:
        print(f"A dry run: nothing was changed here. The tarball: {tarball}")
        return
    for name in CHANGED_BY_A_RELEASE:
        shutil.copy2(copy / name, ROOT / name)
    for fragment in (ROOT / FRAGMENTS).glob("*.yml"):
        fragment.unlink()
    shutil.copy2(tarball, ROOT / tarball.name)
    print(
        f"Release {version} is made: {tarball.name}. Look at CHANGELOG.rst, then:\n"
        f"  git commit --all --message 'Release {version}'\n"
        f"  git tag {version}\n"
        f"  ansible-galaxy collection publish {tarball.name}"
    )


def main(words: list[str]) -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="release.py", description="Make or check a release of the collection.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check", help="build, install and let Galaxy's importer check it")
    releasing = commands.add_parser("release", help="bump, changelog, build, check")
    releasing.add_argument("version", help="such as 1.2.3")
    releasing.add_argument("--dry-run", action="store_true", help="in a copy alone")
    arguments = parser.parse_args(words)
    RELEASE.mkdir(parents=True, exist_ok=True)
    try:
        if arguments.command == "check":
            print(f"The tarball: {checked(copy_of_checkout())}")
        else:
            release(arguments.version, arguments.dry_run)
    except ReleaseError as error:
        print(f"No release: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
