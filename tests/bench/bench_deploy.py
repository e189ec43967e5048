# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a deployment costs that finds everything in place, in fleets of several sizes: module runs per host, and time.

    .venv/bin/python tests/bench/bench_deploy.py [--against CHECKOUT] [hosts ...]        default: 10 50 200

Many hosts are simulated on this machine: each has its own folders, port and container on a real Docker engine
(C(DOCKER_HOST)), whose program stands in for vLLM (tests/fakes/vllm_stand_in.py), as so many real ones would not fit.
The fleet grows from one size to the next. At each, the new hosts are deployed; then the same deployment of all hosts,
which finds nothing to do, and C(ansible -m ping) are run over them and timed. Printed are the module runs and the other
commands per host, both times and their ratio. The time of a simulated host is processor time of this one machine, so it
is the ratios that say something, not the seconds: to the pings, and of the time per host to that of the smallest fleet.
So that the idle servers of all hosts do not take that time, Docker asks for their health once an hour here, not every
15 s: a copy of the collection has that one number changed.

With --against the converged deployment is run in turns with that of the collection of another checkout, such as that of
an earlier commit, over as many hosts of its own, and the ratio of the medians is printed.

Exits 1 when a converged host costs more than 12 module runs, the second deployment changes something, or a host of a
larger fleet costs more than 1.3 times what one of the smallest does.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
COLLECTIONS = ROOT / ".cache" / "collections"
PACKAGE = Path("ansible_collections") / "gpufleet" / "vllm"
STATE = Path(os.environ.get("GPUFLEET_TEST_CACHE_DIR", "/var/cache/gpufleet-tests")) / "molecule" / "state"
MOST_MODULE_RUNS = 12
MOST_GROWTH = 1.3
TURNS = 3
DEFAULT_SIZES = [10, 50, 200]
FORKS = 2 * (os.cpu_count() or 1)
FIRST_PORT, FIRST_PORT_OF_OTHERS = 21000, 11000
PORTS_APART = 20  # a deployment looks at sixteen

if str(COLLECTIONS) not in sys.path and "PYTHONPATH" not in os.environ:
    sys.path.insert(0, str(COLLECTIONS))


def variables(image: str, docker_host: str) -> dict[str, Any]:
    """Return what all simulated hosts have in common."""
    repository, _colon, tag = image.rpartition(":")
    return {
        "ansible_connection": "counting",
        "ansible_python_interpreter": "/usr/bin/python3",
        "vllm_device": "cpu",
        "vllm_docker_host": docker_host,
        "vllm_venv": str(STATE / "venv"),
        "vllm_model": str(ROOT / "tests" / "data" / "scout-miniature"),
        "vllm_model_source": "path",
        "vllm_accept_license": True,
        "vllm_max_model_len": 2048,
        "vllm_image": repository,
        "vllm_image_tag": tag,
        "vllm_image_source": "present",
        "vllm_version": "0.26.0",
        "vllm_check_config": False,
        "vllm_extra_config": {"load-format": "dummy"},
    }


def inventory(folder: Path, hosts: int, common: dict[str, Any], first_port: int) -> Path:
    """Write the inventory of so many hosts, each with its own folders, port and names, and return its path."""
    folder.mkdir(exist_ok=True)
    names = [f"host-{number:03d}" for number in range(hosts)]
    each = {
        name: {
            "vllm_state_dir": str(folder / name / "state"),
            "vllm_config_dir": str(folder / name / "etc"),
            "vllm_container_prefix": f"{folder.parent.name}-{folder.name}-{name}",
            "vllm_port": first_port + number * PORTS_APART,
        }
        for number, name in enumerate(names)
    }
    path = folder / "hosts.json"  # the same at every size, so that a fleet can grow
    path.write_text(json.dumps({"all": {"hosts": each, "vars": common}}), encoding="utf-8")
    return path


def altered_collection(folder: Path, root: Path = ROOT) -> Path:
    """Copy a checkout's collection to a folder, with the health checks of servers an hour apart; return the folder."""
    from ansible_collections.gpufleet.vllm.tools import checkout

    checkout.copy_to(folder / PACKAGE, root)
    interval = re.compile(r'^HEALTH = \{"interval_s": \d+', re.MULTILINE)
    files = [path for path in (folder / PACKAGE / "plugins").rglob("*.py") if interval.search(path.read_text())]
    if len(files) != 1:
        raise SystemExit(
            f"HEALTH with interval_s, which this benchmark changes, stands in {len(files)} files, not one."
        )
    files[0].write_text(interval.sub('HEALTH = {"interval_s": 3600', files[0].read_text()))
    return folder


class Fleet:
    """Simulated hosts on this machine.

    Args:
        folder: for their inventory and files.
        collections: where Ansible finds the collection.
        common: variables of all hosts.
        first_port: of the first host.
    """

    def __init__(self, folder: Path, collections: Path, common: dict[str, Any], first_port: int) -> None:
        self._folder = folder
        self._collections = collections
        self._common = common
        self._first_port = first_port
        self._path = folder / "hosts.json"
        self.counts = folder / "counts"

    def grow(self, before: int, hosts: int) -> float:
        """Deploy the hosts after the first C(before); return the seconds."""
        inventory(self._folder, hosts, self._common, self._first_port)
        return self.run("ansible-playbook", "gpufleet.vllm.deploy", f"--limit=all[{before}:{hosts - 1}]")[0]

    def run(self, *words: str) -> tuple[float, str]:
        """Run one of Ansible's programs over the hosts, counting anew; return its seconds and what it printed."""
        self.counts.unlink(missing_ok=True)
        environment = {
            **os.environ,
            "PATH": f"{BIN}:{os.environ.get('PATH', '')}",
            "ANSIBLE_COLLECTIONS_PATH": str(self._collections),
            "ANSIBLE_CONNECTION_PLUGINS": str(ROOT / "tests" / "bench" / "connection"),
            "ANSIBLE_PIPELINING": "true",
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_FORKS": str(FORKS),
            "GPUFLEET_COUNT_FILE": str(self.counts),
        }
        began = time.monotonic()
        said = subprocess.run(
            [str(BIN / words[0]), *words[1:], f"--inventory={self._path}"],
            cwd=self._folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        seconds = time.monotonic() - began
        if said.returncode != 0:
            raise SystemExit(f"{' '.join(words)} exited {said.returncode}:\n{said.stdout[-6000:]}")
        return seconds, said.stdout

    def counted(self) -> dict[str, collections.Counter[str]]:
        """Return for each host how often each module was run; what was no module under an empty name."""
        return read_counts(self.counts.read_text(encoding="utf-8"))


def read_counts(text: str) -> dict[str, collections.Counter[str]]:
    """Return what the counting connection has noted: host -> module's short name -> runs."""
    found: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for line in text.splitlines():
        host, _kind, module = line.split("\t")
        found[host][module.rpartition(".")[2]] += 1
    return dict(found)


def module_runs(counter: collections.Counter[str]) -> int:
    """Return how many modules were run."""
    return sum(runs for module, runs in counter.items() if module)


def changed_tasks(text: str) -> int:
    """Return how many tasks changed something, on all hosts, by what a play printed."""
    return sum(int(number) for number in re.findall(r"\bchanged=(\d+)", text))


def measure(fleet: Fleet, before: int, hosts: int) -> tuple[bool, float]:
    """Deploy the hosts after the first C(before), then all again, ping all, and print the figures.

    Returns:
        Whether the second deployment was as it should be, and the seconds that it took for each host.
    """
    first = fleet.grow(before, hosts)
    converged, text = fleet.run("ansible-playbook", "gpufleet.vllm.deploy")
    counted = fleet.counted()
    ping, _text = fleet.run("ansible", "all", "-m", "ansible.builtin.ping")
    changed = changed_tasks(text)
    most = max(counted, key=lambda host: module_runs(counted[host]))
    runs, commands = module_runs(counted[most]), counted[most][""]
    print(
        f"{hosts} hosts, {FORKS} forks: first deployment of {hosts - before} {first:.1f} s, converged {converged:.1f} s"
        f" ({converged / hosts:.2f} s a host), ping {ping:.1f} s"
    )
    print(f"  a converged deployment takes as long as {converged / ping:.1f} pings of the same hosts")
    print(f"  {runs} module runs a host (of {MOST_MODULE_RUNS}), {commands} other commands: {listed(counted[most])}")
    print(f"  {changed} changes", flush=True)
    return runs <= MOST_MODULE_RUNS and changed == 0 and len(counted) == hosts, converged / hosts


def compare(fleet: Fleet, other: Fleet) -> None:
    """Run the converged deployment of both in turns and print the ratio of their medians."""
    times: dict[Fleet, list[float]] = {fleet: [], other: []}
    for _turn in range(TURNS):
        for each in (other, fleet):
            seconds, text = each.run("ansible-playbook", "gpufleet.vllm.deploy")
            if re.search(r"\bchanged=[1-9]", text):
                raise SystemExit("A converged deployment changed something, so it says nothing about the time.")
            times[each].append(seconds)
    now, then = (statistics.median(times[each]) for each in (fleet, other))
    print(
        f"  converged in turns with the other checkout: {now:.1f} s against {then:.1f} s, ratio {now / then:.3f}"
        f" ({', '.join(f'{one / two:.2f}' for one, two in zip(times[fleet], times[other]))} turn by turn)",
        flush=True,
    )


def listed(counter: collections.Counter[str]) -> str:
    """Return the modules and how often each was run."""
    return ", ".join(f"{module} {runs}" for module, runs in sorted(counter.items()) if module)


def main(numbers: Sequence[int], against: Path | None = None) -> int:
    """Measure a fleet at each of these sizes, from the smallest on, and against another checkout if there is one."""
    from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.client import connect
    from ansible_collections.gpufleet.vllm.tests.engine.docker_fixtures import debian_program
    from ansible_collections.gpufleet.vllm.tests.engine.server_fixtures import import_stand_in

    docker_host = os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    engine = connect(docker_host)
    image = f"gpufleet-bench-{os.getpid()}/stand-in:1"
    import_stand_in(engine, image, debian_program("busybox-static", "bin/busybox"))
    folder = Path(tempfile.mkdtemp(prefix="gpufleet-bench-"))
    good, costs = True, []
    try:
        common = variables(image, docker_host)
        fleet = Fleet(folder / "ours", altered_collection(folder / "collections"), common, FIRST_PORT)
        if against:
            collections = altered_collection(folder / "other-collections", against)
            other = Fleet(folder / "others", collections, common, FIRST_PORT_OF_OTHERS)
        for before, hosts in itertools.pairwise([0, *sorted(set(numbers))]):
            fine, cost = measure(fleet, before, hosts)
            good &= fine
            costs.append(cost)
            print(f"  a host costs {cost / costs[0]:.2f} times what one of the smallest fleet does", flush=True)
            if against:
                other.grow(before, hosts)
                compare(fleet, other)
    finally:
        for box in engine.containers.list(all=True, ignore_removed=True):
            if str(box.name).startswith(folder.name):
                box.remove(force=True)
        shutil.rmtree(folder)
        engine.images.remove(image, force=True)
        engine.close()
    return 0 if good and max(costs) <= MOST_GROWTH * costs[0] else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure what a converged deployment costs.")
    parser.add_argument("hosts", type=int, nargs="*", default=DEFAULT_SIZES, help="sizes of the fleet")
    parser.add_argument("--against", type=Path, help="another checkout to compare with")
    options = parser.parse_args()
    sys.exit(main(options.hosts, options.against))
