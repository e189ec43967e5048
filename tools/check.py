# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs stages of the project's checks, shows where the time went and counts the tests.

    tools/check.py STAGE...      stages: lint, units, ansible-units, docs, packaging, sanity, monitoring, engine,
                                 stand-ins, molecule, hosts, faults, fleet, tune, many, two-routers, closed-ports,
                                 air-gap, sites, secrets, takeover

A stage is a list of commands; all of them run even after one failed, so that one look shows everything. What they print
is kept in .cache/logs/<stage>.log and shown: as it comes, but for stages that run beside those with servers, whose
commands are shown when they have ended. The last line is 'N passed, N failed': the test cases that pytest
reported, summed, and one failure more for each other command that failed.
"""

from __future__ import annotations

import concurrent.futures
import configparser
import contextlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Callable, TextIO
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
COLLECTIONS = CACHE / "collections"
LOGS = CACHE / "logs"
BIN = Path(sys.executable).parent
INTERRUPT_PATIENCE = 30.0  # seconds
PACKAGE = Path("ansible_collections/gpufleet/vllm")
FLEET = "fleet"
TUNE = "tune"
# The scenario of bare hosts, which shares nothing but the engine with other tests, and the stage that it is.
HOSTS = "hosts"
# The scenario of a host without network, which has everything from a bundle.
AIR_GAP = "bundle"
# The scenario of a site with a proxy and a registry, which is a stage of the same name.
SITES = "sites"
# How a failed task of Ansible, a failed case of pytest and a finding of ansible-test begin.
COMPLAINT = re.compile(r"\[ERROR\]: |FAILED |ERROR:? \S|.*\bERROR\b: ")
MOST_COMPLAINTS = 3
LONGEST_COMPLAINT = 600  # characters
# Behind the servers that tests with an engine wait for.
BEHIND = ["nice", "-n", "10"]

sys.path.insert(0, str(COLLECTIONS))
from ansible_collections.gpufleet.vllm.tools import checkout, test_engine, unpacked  # noqa: E402


@dataclass
class Command:
    """One command of a stage.

    Attributes:
        name: what the table calls it.
        words: the command line.
        folder: where it runs.
        environment: variables added to the caller's.
        junit: where pytest writes its results, if the command is pytest: its cases are then counted.
    """

    name: str
    words: list[str]
    folder: Path = ROOT
    environment: dict[str, str] = field(default_factory=dict)
    junit: Path | None = None


@dataclass
class Outcome:
    """What became of one command: seconds it took, exit status, test cases (of pytest alone), what it complained of."""

    stage: str
    name: str
    seconds: float
    status: int
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    complaints: list[str] = field(default_factory=list)


# The stages


def lint() -> list[Command]:
    """Return the linters: style, types, YAML, playbooks and roles, changelog fragments."""
    package = [str(PACKAGE / part) for part in ("plugins", "tests", "tools")]
    ruff_cache = {"RUFF_CACHE_DIR": str(CACHE / "ruff")}
    return [
        Command("ruff check", [tool("ruff"), "check", "--no-fix", "."], environment=ruff_cache),
        Command("ruff format", [tool("ruff"), "format", "--check", "."], environment=ruff_cache),
        Command(
            "mypy",
            [tool("mypy"), "--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(CACHE / "mypy"), *package],
            folder=COLLECTIONS,  # so that modules have their full names, by which they import each other
            environment={"MYPYPATH": str(COLLECTIONS)},
        ),
        Command("yamllint", [tool("yamllint"), "--strict", "."]),
        Command("ansible-lint", [tool("ansible-lint"), "--offline", "-q"]),
        Command("changelog", [tool("antsibull-changelog"), "lint"]),
    ]


def units() -> list[Command]:
    """Return the unit tests, by pytest in this checkout."""
    return [pytest("pytest", "units", ["--numprocesses=auto", "tests/unit"])]


def ansible_units() -> list[Command]:
    """Return the unit tests by ansible-test, as other collections run theirs: the same ones, three times as long."""
    return [Command("ansible-test", ["ansible-test", "units", "--python", python_version()], folder=copied_checkout())]


def docs() -> list[Command]:
    """Return the build of the documentation site, in which a warning is an error."""
    return [Command("site", [tool("python"), "tools/docsite/build.py"])]


def packaging() -> list[Command]:
    """Return the tests of the built collection, away from here, and of whole plays that need no server."""
    return [
        pytest("pytest", "packaging", ["tests/packaging"]),
        pytest("plays", "plays", ["--numprocesses=2", "tests/plays"]),
    ]


def sanity() -> list[Command]:
    """Return ansible-test's own checks of modules, documentation and licences."""
    return [
        Command("ansible-test", ["ansible-test", "sanity", "--python", python_version()], folder=copied_checkout()),
    ]


def monitoring() -> list[Command]:
    """Return the tests of rules and dashboards by a real Prometheus, which asks through a real HAProxy."""
    test = pytest("pytest", "monitoring", ["tests/monitoring"])
    return [replace(test, environment={**test.environment, **unpacked.environment("haproxy", "haproxy")})]


def engine() -> list[Command]:
    """Return the tests of modules against a real Docker engine, and those of the router with a real HAProxy."""
    router = pytest("router", "router", ["tests/unit/plugins/modules/test_router_server.py", "tests/router"])
    router.environment |= unpacked.environment("haproxy", "haproxy")
    return [pytest("pytest", "engine", ["tests/engine"]), router]


def molecule() -> list[Command]:
    """Return the Molecule scenarios that are no stage of their own, each with its whole sequence, on a real engine.

    SCENARIO in the environment names the only one to run. The one of the stage hosts is left to it.
    """
    names = sorted(path.parent.name for path in (ROOT / "molecule").glob("*/molecule.yml"))
    wanted = os.environ.get("SCENARIO")
    if wanted and wanted not in names:
        raise SystemExit(f"SCENARIO is {wanted!r}, which is none of {', '.join(names)}")
    chosen = [wanted] if wanted else [name for name in names if name not in (FLEET, TUNE, AIR_GAP, SITES)]
    return scenarios([name for name in chosen if name != HOSTS])


def hosts() -> list[Command]:
    """Return the scenario of bare hosts, on which no model is served; SCENARIO as in molecule."""
    return scenarios([HOSTS] if (os.environ.get("SCENARIO") or HOSTS) == HOSTS else [])


def air_gap() -> list[Command]:
    """Return the scenario of a host without network."""
    return scenarios([AIR_GAP])


def sites() -> list[Command]:
    """Return the scenario of a host behind a proxy and a registry."""
    return scenarios([SITES])


def stand_ins() -> list[Command]:
    """Return the short form of what a fleet of stand-in hosts goes through."""
    return [stand_in_fleet("short")]


def many() -> list[Command]:
    """Return all that a fleet of stand-in hosts goes through, which takes long on two cores."""
    return [stand_in_fleet("changes"), stand_in_fleet("interruptions")]


def secrets() -> list[Command]:
    """Return the search for secrets in what every playbook tells and keeps, on stand-in hosts."""
    return [stand_in_fleet("secrets")]


def takeover() -> list[Command]:
    """Return the takeover of a fleet that 0.1.0 deployed, beneath requests."""
    return [stand_in_fleet("takeover")]


def two_routers() -> list[Command]:
    """Return what clients see when one of two routers with one address goes away."""
    words = [tool("python"), "tests/fleet/two_routers.py"]
    return [Command("two-routers", words, environment={"PYTHONPATH": str(COLLECTIONS)})]


def closed_ports() -> list[Command]:
    """Return who reaches the servers' ports of a host, with an engine and network namespaces of its own."""
    test = pytest("closed-ports", "closed-ports", ["tests/engine/test_closed_ports.py"])
    return [replace(test, environment={**test.environment, "GPUFLEET_CLOSED_PORTS": "1"})]


def stand_in_fleet(what: str) -> Command:
    """Return a part of tests/fleet/many.py."""
    words = [tool("python"), "tests/fleet/many.py", what]
    return Command(what, words, environment={"PYTHONPATH": str(COLLECTIONS)})


def fleet() -> list[Command]:
    """Return the Molecule scenario of three servers behind a router, which takes long on two cores."""
    return scenarios([FLEET])


def scenarios(names: list[str]) -> list[Command]:
    """Return Molecule's command for each scenario."""
    return [
        Command(
            scenario,
            [tool("molecule"), "-c", "molecule/config.yml", "test", "--scenario-name", scenario],
            environment={
                "MOLECULE_EPHEMERAL_DIRECTORY": str(forgotten(CACHE / "molecule" / scenario)),
                "MOLECULE_COMMAND_BORDERS": "false",  # they wrap what Ansible prints at 80 columns
                "NO_COLOR": "1",
            },
        )
        for scenario in names
    ]


def forgotten(folder: Path) -> Path:
    """Remove a folder and return it: in it Molecule remembers that a scenario is prepared already."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def tune() -> list[Command]:
    """Return the Molecule scenario that tunes a server, which starts it five times."""
    return scenarios([TUNE])


def faults() -> list[Command]:
    """Return the faults provoked on a server under load; after Molecule, which makes the image that they serve with."""
    command = pytest("pytest", "faults", ["tests/faults"])
    command.environment["GPUFLEET_FAULTS_RESULTS"] = str(LOGS / "faults.json")
    return [command]


STAGES: dict[str, Callable[[], list[Command]]] = {
    "lint": lint,
    "units": units,
    "ansible-units": ansible_units,
    "docs": docs,
    "packaging": packaging,
    "sanity": sanity,
    "monitoring": monitoring,
    "engine": engine,
    "stand-ins": stand_ins,
    "molecule": molecule,
    HOSTS: hosts,
    "faults": faults,
    "fleet": fleet,
    TUNE: tune,
    "air-gap": air_gap,
    SITES: sites,
    "many": many,
    "two-routers": two_routers,
    "closed-ports": closed_ports,
    "secrets": secrets,
    "takeover": takeover,
}
NEED_ENGINE = (
    *("engine", "stand-ins", "molecule", HOSTS, "faults", "fleet", TUNE, "air-gap", SITES, "many", "closed-ports"),
    *("secrets", "takeover"),
)


def tool(name: str) -> str:
    """Return the path of a program of the virtual environment."""
    return str(BIN / name)


def python_version() -> str:
    """Return the version that runs this, as ansible-test names it."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def pytest(name: str, stage: str, arguments: list[str]) -> Command:
    """Return a pytest run whose cases are counted."""
    junit = LOGS / f"{stage}.xml"
    return Command(
        name,
        [tool("python"), "-m", "pytest", "-q", "--durations=5", f"--junitxml={junit}", *arguments],
        environment={"PYTHONPATH": str(COLLECTIONS)},
        junit=junit,
    )


def copied_checkout() -> Path:
    """Copy what git knows or would add to .../ansible_collections/gpufleet/vllm and return that folder.

    ansible-test follows no symbolic link to the collection. It also keeps environments for its tools in the home
    folder and fetches pip's installer for them from a host of its project: see ansible_test_home.
    """
    target = CACHE / "ansible-test" / PACKAGE
    checkout.copy_to(target)
    # Without a repository of its own the copy would belong to this checkout's, which ignores it.
    subprocess.run(["git", "init", "--quiet"], cwd=target, check=True)
    return target


INSTALLER = """\
# Stands in for pip's own installer, which ansible-test would fetch: copies the pip of the project's environment.
import shutil
import sysconfig
from pathlib import Path

for source in {sources!r}:
    shutil.copytree(source, Path(sysconfig.get_path("purelib")) / Path(source).name)
"""


def ansible_test_home() -> Path:
    """Return the home folder for ansible-test, holding its stand-in for pip's installer."""
    home = CACHE / "ansible-test" / "home"
    cache = home / ".ansible" / "test" / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    versions = subprocess.run(
        [
            sys.executable,
            "-c",
            "from ansible_test._internal.python_requirements import get_venv_packages as packages\n"
            "from ansible_test._internal.host_configs import NativePythonConfig as Python\n"
            f"print(packages(Python(version={python_version()!r}, path='')).get('pip'))",
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    write_pip_configuration(home / ".config" / "pip" / "pip.conf")
    (cache / f"get_pip_{versions.stdout.strip().replace('.', '_')}.py").write_text(
        INSTALLER.format(sources=[str(folder) for folder in pip_folders()]), encoding="utf-8"
    )
    return home


def pip_folders() -> list[Path]:
    """Return the folders that make up the pip of the virtual environment."""
    packages = Path(sysconfig.get_path("purelib"))
    return [packages / "pip", *packages.glob("pip-*.dist-info")]


def write_pip_configuration(path: Path) -> None:
    """Write what pip is told by the caller's own file and variables (PIP_*), as ansible-test passes on neither."""
    settings = configparser.ConfigParser(interpolation=None)
    settings.read([Path.home() / ".pip" / "pip.conf", Path.home() / ".config" / "pip" / "pip.conf"])
    values = {
        name[4:].lower().replace("_", "-"): value for name, value in os.environ.items() if name.startswith("PIP_")
    }
    values.setdefault("cache-dir", str(Path.home() / ".cache" / "pip"))
    # Compiling all of what is installed took longer than letting each check compile what it imports.
    values |= {"quiet": "2", "disable-pip-version-check": "1", "no-compile": "1"}
    settings.read_dict({"global": values})
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as stream:
        settings.write(stream)


# Running


def common_environment(command: Command) -> dict[str, str]:
    """Return the environment of a command: the virtual environment first on PATH, our ansible.cfg, no colours lost."""
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_NOCOLOR": "1",
        "PYTHONUNBUFFERED": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_QUIET": "2",
        **command.environment,
    }
    environment["PATH"] = f"{BIN}:{environment.get('PATH', '')}"
    if command.words[0] == "ansible-test":
        environment["HOME"] = str(ansible_test_home())
        environment.pop("ANSIBLE_CONFIG")
    return environment


def run(stage: str, command: Command, log: TextIO, *, aside: Aside | None = None) -> Outcome:
    """Run a command, logging what it prints, and showing it: as it comes, or at its end if it runs C(aside)."""
    heading = f"\n=== {stage}: {command.name}\n"
    shown: TextIO = io.StringIO() if aside else sys.stdout
    for stream in (shown, log):
        stream.write(heading)
        stream.flush()
    if command.junit:
        command.junit.unlink(missing_ok=True)
    started = time.monotonic()
    complaints: list[str] = []
    task = ""
    with subprocess.Popen(
        [*BEHIND, *command.words] if aside else command.words,
        cwd=command.folder,
        env=common_environment(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # a process group of its own, so that all of it can be ended
    ) as process:
        if aside:
            aside.begun(process)
        try:
            for line in process.stdout or []:
                shown.write(line)
                shown.flush()
                log.write(line)
                task = line.strip(" *\n") if line.startswith("TASK [") else task
                if COMPLAINT.match(line):
                    complaints.append(f"{task} {line.strip()}".strip())
                elif complaints and line.startswith("Evidence: "):
                    complaints[-1] += f" {line.strip()}"
            status = process.wait()
        except KeyboardInterrupt:
            interrupt_group(process)
            raise
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what the command left running
    outcome = Outcome(stage, command.name, time.monotonic() - started, status, complaints=complaints if status else [])
    if isinstance(shown, io.StringIO):
        sys.stdout.write(shown.getvalue())
        sys.stdout.flush()
    if command.junit:
        count_cases(command.junit, outcome)
    return outcome


class Aside:
    """Stages that run in a thread, behind those of the main thread.

    Args:
        stages: their names.
    """

    def __init__(self, stages: list[str]) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._stopped = False
        self._lock = threading.Lock()
        self._pool = concurrent.futures.ThreadPoolExecutor(1)
        self._outcomes: list[concurrent.futures.Future[list[Outcome]]] = []
        self.add(stages)

    def begun(self, process: subprocess.Popen[str]) -> None:
        """Take notice of the command that runs now."""
        with self._lock:
            self._process = process
            if self._stopped:
                self._interrupt()

    def add(self, stages: list[str]) -> None:
        """Run these stages, too, after those that are there already."""
        self._outcomes.append(self._pool.submit(self._run, stages))

    def outcomes(self) -> list[Outcome]:
        """Return what became of every command, once they have ended."""
        return [outcome for future in self._outcomes for outcome in future.result()]

    def stop(self) -> None:
        """Interrupt the command that runs, and begin no other."""
        with self._lock:
            self._stopped = True
            self._interrupt()
        self._pool.shutdown()

    def _interrupt(self) -> None:
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGINT)

    def _run(self, stages: list[str]) -> list[Outcome]:
        found = []
        for stage in stages:
            if not self._stopped:
                found += run_stage(stage, self)
        return found


def interrupt_group(process: subprocess.Popen[str]) -> None:
    """Interrupt a command and its children, and give them time to put away what they made."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=INTERRUPT_PATIENCE)


def count_cases(junit: Path, outcome: Outcome) -> None:
    """Add the cases of a pytest result file to the outcome; a missing file (pytest did not start) adds none."""
    if not junit.exists():
        return
    for suite in ElementTree.parse(junit).getroot().iter("testsuite"):
        tests, skipped = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
        failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        outcome.passed += tests - failed - skipped
        outcome.failed += failed
        outcome.skipped += skipped


@contextlib.contextmanager
def docker_engine() -> Iterator[Outcome]:
    """Keep the tests' Docker engine up and DOCKER_HOST at it; yield what became of its start."""
    script = [sys.executable, str(ROOT / "tools" / "test_engine.py")]
    print("\n=== engine: start", flush=True)
    started = time.monotonic()
    status = subprocess.run([*script, "start"], check=False).returncode
    try:
        os.environ["DOCKER_HOST"] = test_engine.docker_host()
        yield Outcome("engine", "start", time.monotonic() - started, status)
    finally:
        subprocess.run([*script, "stop"], check=False)


def run_stage(stage: str, aside: Aside | None = None) -> list[Outcome]:
    """Run every command of a stage."""
    LOGS.mkdir(parents=True, exist_ok=True)
    with (LOGS / f"{stage}.log").open("w", encoding="utf-8") as log:
        return [run(stage, command, log, aside=aside) for command in STAGES[stage]()]


def run_stages(stages: list[str]) -> Iterator[Outcome]:
    """Run the stages that need an engine in order, and the others, in order, behind them; bare hosts last of all.

    Those with an engine wait a lot, for servers above all; the others take the time that is left.
    """
    with_engine = [stage for stage in stages if stage in NEED_ENGINE and STAGES[stage]()]
    others = [stage for stage in stages if stage not in NEED_ENGINE]
    if not with_engine:
        for stage in others:
            yield from run_stage(stage)
        return
    aside = Aside(others)
    try:
        with docker_engine() as start:
            yield start
            if start.status == 0:
                if HOSTS in with_engine and len(with_engine) > 1:
                    with_engine.remove(HOSTS)
                    aside.add([HOSTS])
                for stage in with_engine:
                    yield from run_stage(stage)
            yield from aside.outcomes()
    finally:
        aside.stop()


def report(outcomes: list[Outcome], seconds: float) -> bool:
    """Print where the time went, C(seconds) in all, and the number of tests; return whether everything passed."""
    print("\n=== where the time went")
    for outcome in outcomes:
        counted = outcome.passed + outcome.failed + outcome.skipped
        cases = f"{outcome.passed} passed, {outcome.failed} failed, {outcome.skipped} skipped" if counted else ""
        verdict = "ok" if outcome.status == 0 else f"FAILED ({outcome.status})"
        print(f"{outcome.stage:<10} {outcome.name:<20} {outcome.seconds:7.1f} s  {verdict:<12} {cases}".rstrip())
    print(f"{'total':<31} {seconds:7.1f} s")
    for outcome in outcomes:
        # Told here once more, as who looks at a long log of CI sees its end first.
        for complaint in outcome.complaints[-MOST_COMPLAINTS:]:
            print(f"{outcome.stage} {outcome.name}: {complaint[:LONGEST_COMPLAINT]}")
    # A command that failed without a failed case of its own (a linter, or pytest that could not start) counts as one.
    others = sum(outcome.status != 0 and outcome.failed == 0 for outcome in outcomes)
    passed, failed, skipped = (sum(getattr(o, field) for o in outcomes) for field in ("passed", "failed", "skipped"))
    print(f"{passed} passed, {failed + others} failed" + (f", {skipped} skipped" if skipped else ""), flush=True)
    return all(outcome.status == 0 for outcome in outcomes)


def interrupt(number: int, _frame: object) -> None:
    """End as if interrupted from the keyboard, so that what was started is stopped."""
    raise KeyboardInterrupt(f"signal {number}")


def main(stages: list[str]) -> int:
    """Run the named stages and report."""
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown or not stages:
        print(f"usage: check.py STAGE...  (stages: {', '.join(STAGES)})", file=sys.stderr)
        return 2
    # SIGINT too: a shell starts what runs in the background with it ignored, and so would start our commands.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    outcomes: list[Outcome] = []
    started = time.monotonic()
    try:
        for outcome in run_stages(stages):
            outcomes.append(outcome)
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130
    return 0 if report(outcomes, time.monotonic() - started) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
