# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A GPU host, a router and a stranger as network namespaces on one bridge, the host with a Docker engine of its own.

That engine manages iptables as engines do, which the tests' own one does not: its chains are those of the namespace.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible_collections.gpufleet.vllm.tests.engine.docker_fixtures import debian_program
from ansible_collections.gpufleet.vllm.tools import test_engine

ADDRESSES = {"host": 1, "router": 2, "stranger": 3}
START_S, STOP_S = 120.0, 30.0
# Where the module that closes ports has its files.
OWN_PLACES = ("/etc", "/usr/local/sbin")


def run(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command, its output captured."""
    return subprocess.run(command, capture_output=True, text=True, check=check)


class Net:
    """The namespaces, and the engine of the one that is the host.

    Args:
        folder: for all files of the engine.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = f"gf{os.getpid() % 100000}"
        self.run_dir = Path("/run") / self.mark  # short: the path of a Unix socket ends at 107 characters
        self._daemon: subprocess.Popen[bytes] | None = None

    def inside(self, who: str, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in a namespace; mounts stay as they are."""
        return run("nsenter", f"--net=/run/netns/{self.mark}-{who}", "--", *command, check=check)

    def on_host(self, *command: str, check: bool = False, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command on the host, with layers of its own over what it changes in the file system.

        What else goes on at this machine, such as a deployment of the same name, neither sees them nor changes them.
        """
        over = "set -e; "
        for place in OWN_PLACES:
            upper = self.layer(place)
            work = upper.with_name(f"{upper.name}.work")
            for folder in (upper, work):
                folder.mkdir(parents=True, exist_ok=True)
            over += f"mount -t overlay -o lowerdir={place},upperdir={upper},workdir={work} overlay {place}; "
        words = ["nsenter", f"--net=/run/netns/{self.mark}-host", "--", "unshare", "--mount", "--propagation=private"]
        words += ["sh", "-c", f'{over} exec "$@"', "sh", *command]
        return subprocess.run(words, capture_output=True, text=True, check=check, **options)

    def layer(self, place: str) -> Path:
        """Return the folder with what the host has of its own in a place of the file system."""
        return self.folder / "layers" / place.strip("/").replace("/", "-")

    def make(self) -> None:
        """Make the namespaces, and a bridge in that of the host."""
        for who in ADDRESSES:
            run("ip", "netns", "add", f"{self.mark}-{who}")
            self.inside(who, "ip", "link", "set", "lo", "up")
        self.inside("host", "ip", "link", "add", "lan", "type", "bridge")
        for who, number in ADDRESSES.items():
            device = "lan"
            if who != "host":
                device = "eth0"
                peer = f"to-{who}"
                self.inside("host", "ip", "link", "add", peer, "type", "veth", "peer", "name", device)
                self.inside("host", "ip", "link", "set", device, "netns", f"{self.mark}-{who}")
                self.inside("host", "ip", "link", "set", peer, "master", "lan")
                self.inside("host", "ip", "link", "set", peer, "up")
            for address in (f"10.77.0.{number}/24", f"fd77::{number}/64"):
                more = ["nodad"] if ":" in address else []
                self.inside(who, "ip", "address", "add", address, "dev", device, *more)
            self.inside(who, "ip", "link", "set", device, "up")

    def start(self) -> None:
        """Start the engine and wait until it answers."""
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "daemon.json").write_text(f"{test_engine.CONFIG_TEXT}\n", encoding="utf-8")
        programs = test_engine.SYSTEM_PATH
        # With nftables Docker leaves it to the host to turn forwarding on, and does not start without.
        if '"nftables"' in test_engine.CONFIG_TEXT:
            for setting in ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"):
                self.inside("host", "sysctl", "--quiet", "--write", setting)
        command = [
            *("nsenter", f"--net=/run/netns/{self.mark}-host", "--"),
            shutil.which("dockerd", path=programs) or "dockerd",
            f"--host=unix://{self.run_dir}/docker.sock",
            f"--data-root={self.folder / 'data'}",
            f"--exec-root={self.run_dir}",
            f"--pidfile={self.run_dir}/docker.pid",
            f"--config-file={self.folder / 'daemon.json'}",
            *("--ipv6", "--fixed-cidr-v6=fd78::/64", "--storage-driver=vfs", "--log-level=warn"),
        ]
        with (self.folder / "log").open("ab") as log:
            environment = {**os.environ, "PATH": programs}
            self._daemon = subprocess.Popen(
                command, stdout=log, stderr=log, cwd="/", start_new_session=True, env=environment
            )
        deadline = time.monotonic() + START_S
        while self.docker("version", check=False).returncode:
            tail = (self.folder / "log").read_text(errors="replace")[-2000:]
            assert self._daemon.poll() is None and time.monotonic() < deadline, tail
            time.sleep(0.3)

    def stop(self) -> None:
        """End the engine; containers that are to start again do so with the next one."""
        if self._daemon:
            self._daemon.send_signal(signal.SIGTERM)
            self._daemon.wait(STOP_S)
            self._daemon = None

    def docker(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the docker command on the engine."""
        return run("docker", f"--host=unix://{self.run_dir}/docker.sock", *words, check=check)

    def serve(self, name: str, *options: str, port: int) -> None:
        """Run a container that answers at a port."""
        web = ["/busybox", "httpd", "-f", "-p", str(port), "-h", "/"]
        self.docker("run", "--detach", "--name", name, "--restart", "always", *options, f"{self.mark}:web", *web)

    def import_image(self) -> None:
        """Give the engine an image with nothing but a web server."""
        program = debian_program("busybox-static", "bin/busybox").read_bytes()
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            entry = tarfile.TarInfo("busybox")
            entry.size, entry.mode = len(program), 0o755
            archive.addfile(entry, io.BytesIO(program))
        (self.folder / "image.tar").write_bytes(packed.getvalue())
        self.docker("import", str(self.folder / "image.tar"), f"{self.mark}:web")

    def remove(self) -> None:
        """Take everything away."""
        with contextlib.suppress(subprocess.SubprocessError, OSError):
            names = self.docker("ps", "--all", "--quiet", check=False).stdout.split()
            if names:
                self.docker("rm", "--force", *names, check=False)
        self.stop()
        for who in ADDRESSES:
            run("ip", "netns", "delete", f"{self.mark}-{who}", check=False)
        for line in reversed(Path("/proc/mounts").read_text(encoding="utf-8").splitlines()):
            mount = line.split()[1]
            if mount.startswith((f"{self.run_dir}/", f"{self.folder}/")):
                run("umount", "--lazy", mount, check=False)
        shutil.rmtree(self.run_dir, ignore_errors=True)


@contextlib.contextmanager
def fleet_net(folder: Path) -> Iterator[Net]:
    """Have the namespaces and the engine, for the block."""
    net = Net(folder)
    try:
        net.make()
        net.start()
        net.import_image()
        yield net
    finally:
        net.remove()
