# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What weights for many hosts cost with vllm_weights_from=fleet: bytes from the hub, and time, in fleets of some sizes.

    .venv/bin/python tests/bench/bench_weights.py [--hosts 3 10] [--mib 132] [--files 22] [--rate 4] [--forks N]

as root, with C(DOCKER_HOST) of an engine. The role's entry point C(model) runs on hosts that have nothing. Each is a
network namespace at one bridge, with a link of C(--rate) MiB a second in and out (tc tbf) and folders of its own; sshd
and rsync are real. The hub is tests/fakes/hub.py, which counts what it sends; the real huggingface_hub asks it from a
container. All downloads share the site's one line to it, of the same rate. So low a rate keeps this machine's
processors out of it: what is measured are the links, and what waits for what.

One copy is what one host takes from the hub over that line. All times are given in copies. C(hub) has every host fetch
from the hub: it is measured for the smallest size, and computed for others, as that many copies over one line.

Exits 1 when a fleet costs the hub more than 1.1 copies, or hosts have them from each other in more than 3 copies' time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
COLLECTIONS = ROOT / ".cache" / "collections"
if str(COLLECTIONS) not in sys.path and "PYTHONPATH" not in os.environ:
    sys.path.insert(0, str(COLLECTIONS))

from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.client import connect  # noqa: E402
from ansible_collections.gpufleet.vllm.tests.engine.test_model import RELEASES, import_hub_image  # noqa: E402
from ansible_collections.gpufleet.vllm.tests.fakes.hub import MAIN, Hub, Repository, folder, sharded  # noqa: E402
from ansible_collections.gpufleet.vllm.tests.fakes.sharing_programs import programs  # noqa: E402
from ansible_collections.gpufleet.vllm.tests.plays.test_weights_sharing import (  # noqa: E402
    MINIATURE,
    REPOSITORY,
    Host,
    Play,
)

MIB = 1024 * 1024
DOWNLOADED, BROUGHT = "Ensure the weights are there", "Bring the weights from other hosts"
MOST_COPIES, MOST_TIMES = 1.1, 3.0
LONGEST_QUEUE = "50ms"


def run(*words: str) -> None:
    """Run a command; raise SystemExit with what it says where it fails."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} exited {done.returncode}: {done.stderr}")


class Links:
    """Namespaces at one bridge; C(with Links(...) as links:) removes them at the end.

    Args:
        size: number of hosts.
        rate: bytes a second of each host's link, in and out.
    """

    def __init__(self, size: int, rate: int) -> None:
        self._size, self._rate = size, rate
        self._mark = f"gfw{os.getpid()}"

    def name(self, number: int) -> str:
        """Return a host's namespace."""
        return f"{self._mark}-{number}"

    def address(self, number: int) -> str:
        """Return a host's address; those of two fleets never meet."""
        return f"10.78.{number // 250}.{number % 250 + 1}"

    def __enter__(self) -> Links:
        """Make them."""
        switch = f"{self._mark}-switch"
        try:
            run("ip", "netns", "add", switch)
            run("ip", "-n", switch, "link", "add", "lan", "type", "bridge")
            run("ip", "-n", switch, "link", "set", "lan", "up")
            for number in range(self._size):
                self._connect(switch, number)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _connect(self, switch: str, number: int) -> None:
        own, port = self.name(number), f"to-{number}"
        run("ip", "netns", "add", own)
        run("ip", "-n", switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", own)
        run("ip", "-n", switch, "link", "set", port, "master", "lan")
        run("ip", "-n", own, "address", "add", f"{self.address(number)}/16", "dev", "eth0")
        for namespace, device in ((own, "lo"), (own, "eth0"), (switch, port)):
            run("ip", "-n", namespace, "link", "set", device, "up")
            if device != "lo":
                limit = ("rate", f"{self._rate}bps", "burst", "64kb", "latency", LONGEST_QUEUE)
                run("tc", "-n", namespace, "qdisc", "add", "dev", device, "root", "tbf", *limit)

    def __exit__(self, *_exception: object) -> None:
        """Remove them."""
        for name in [f"{self._mark}-switch", *map(self.name, range(self._size))]:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


class Bench:
    """The hub, and fleets that have weights from it.

    Args:
        place: for all files.
        hub: the hub.
        files: what it has.
        engine: address of the Docker engine, and the image with huggingface_hub.
        rate: bytes a second.
    """

    def __init__(self, place: Path, hub: Hub, files: dict[str, bytes], engine: tuple[str, str], rate: int) -> None:
        self.place, self.hub, self.rate = place, hub, rate
        # What a server needs, which the downloader alone takes.
        self.files = {name: content for name, content in files.items() if name != "README.md"}
        self.size = sum(map(len, self.files.values()))
        self._engine = engine

    def fetch(self, size: int, weights_from: str, forks: int = 0) -> dict[str, float]:
        """Have so many hosts fetch the weights.

        Returns:
            C(bytes) that the hub sent, seconds of C(download) from it, of C(sharing) and of C(both).
        """
        place = Path(tempfile.mkdtemp(dir=self.place))
        sent = self.hub.sent
        with Links(size, self.rate) as links:
            hosts = []
            for number in range(size):
                name = f"host-{number + 1:02d}"
                hosts.append(Host(name, place / name / "hf", place / name / "run", links.address(number)))
                interpreter = place / f"python-{name}"
                inside = f"nsenter --net=/run/netns/{links.name(number)}"
                interpreter.write_text(f'#!/bin/sh\nexec {inside} {sys.executable} "$@"\n', encoding="utf-8")
                interpreter.chmod(0o755)
            docker_host, image = self._engine
            variables: dict[str, Any] = {
                "image": image,
                "vllm_docker_host": docker_host,
                "mark": f"{self.place.name.replace('_', '0')}-{place.name.replace('_', '0')}",
                "vllm_weights_from": weights_from,
                "ansible_python_interpreter": f"{place}/python-{{{{ inventory_hostname }}}}",
            }
            steps = place / "steps"
            os.environ["GPUFLEET_STEPS"] = str(steps)
            Play(place, hosts, self.hub.url, variables).run(forks=forks or size)
        wrong = [host.name for host in hosts if host.files() != self.files]
        if wrong:
            raise SystemExit(f"These hosts do not have the weights: {', '.join(wrong)}.")
        times = durations(steps)
        shutil.rmtree(place)
        return {"bytes": float(self.hub.sent - sent), **times}


def durations(steps: Path) -> dict[str, float]:
    """Return seconds of the download from the hub, of bringing weights from host to host, and of both together."""
    lines = [json.loads(line) for line in steps.read_text(encoding="utf-8").splitlines()]
    brought = span(lines, BROUGHT)
    began, ended = span([line for line in lines if line["ended"] < (brought or (float("inf"),))[0]], DOWNLOADED)
    sharing = brought[1] - brought[0] if brought else 0.0
    return {"download": ended - began, "sharing": sharing, "both": (brought[1] if brought else ended) - began}


def span(lines: Sequence[dict[str, Any]], task: str) -> tuple[float, ...]:
    """Return when a task began and when it had ended on all hosts; nothing where it had nothing to do.

    It begins when what was before it has ended on all of them.
    """
    own = [line["ended"] for line in lines if line["task"].endswith(task) and line["status"] != "skipped"]
    if not own:
        return ()
    before = [line["ended"] for line in lines if not line["task"].endswith(task) and line["ended"] < min(own)]
    return max(before), max(own)


def measure(bench: Bench, sizes: Sequence[int], forks: int) -> bool:
    """Print the table; return whether all of it is as it should be."""
    copy = bench.fetch(1, "hub")
    print(f"{bench.size / MIB:.0f} MiB of weights, links and line of {bench.rate / MIB:.1f} MiB/s", flush=True)
    print(f"one copy: {copy['download']:.1f} s (the line alone: {bench.size / bench.rate:.1f} s)", flush=True)
    print("hosts  from   copies from the hub  first host  the others  all, in copies' time", flush=True)
    good = True
    for size in sorted(sizes):
        shared = bench.fetch(size, "fleet", forks)
        copies, times = shared["bytes"] / bench.size, shared["sharing"] / copy["download"]
        whole = (shared["download"] / copy["download"], times, shared["both"] / copy["download"])
        print(f"{size:5}  fleet  {copies:19.2f}  {whole[0]:10.2f}  {whole[1]:10.2f}  {whole[2]:8.2f}", flush=True)
        if size == min(sizes):
            alone = bench.fetch(size, "hub", forks)
            copies_alone, all_alone = alone["bytes"] / bench.size, alone["both"] / copy["download"]
            print(f"{size:5}  hub    {copies_alone:19.2f}  {'':10}  {'':10}  {all_alone:8.2f}", flush=True)
        else:
            print(f"{size:5}  hub    {size:19.2f}  {'':10}  {'':10}  {size:8.2f}  (computed)", flush=True)
        good &= copies <= MOST_COPIES and times <= MOST_TIMES
    return good


def main(given: argparse.Namespace) -> int:
    """Measure."""
    docker_host = os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    engine = connect(docker_host)
    place = Path(tempfile.mkdtemp(prefix="gpufleet-weights-"))
    image = f"gpufleet-bench-{os.getpid()}/hub:1"
    os.environ |= {
        "PATH": programs(place / "bin"),
        "ANSIBLE_CALLBACK_PLUGINS": str(ROOT / "tests" / "fleet" / "callback"),
    }
    files = {**folder(MINIATURE), **sharded(given.files, given.mib * MIB // given.files)}
    hub = Hub({REPOSITORY: Repository({MAIN: files})})
    hub.line = int(given.rate * MIB)
    try:
        import_hub_image(engine, image, RELEASES[-1])
        with hub.running():
            bench = Bench(place, hub, files, (docker_host, image), hub.line)
            return 0 if measure(bench, given.hosts, given.forks) else 1
    finally:
        shutil.rmtree(place, ignore_errors=True)
        engine.images.remove(image, force=True)
        engine.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure what weights for many hosts cost.")
    parser.add_argument("--hosts", type=int, nargs="+", default=[3, 10], help="sizes of the fleet")
    parser.add_argument("--mib", type=int, default=132, help="of the weights")
    parser.add_argument("--files", type=int, default=22, help="that they are in")
    parser.add_argument("--rate", type=float, default=4, help="MiB a second of every link")
    parser.add_argument("--forks", type=int, default=0, help="of the plays; by default one for each host")
    sys.exit(main(parser.parse_args()))
