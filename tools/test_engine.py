# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A private Docker engine for the tests, beside whatever engine the machine has.

    tools/test_engine.py start   start it (installing Debian's docker.io if there is no dockerd), print its address
    tools/test_engine.py stop    remove its containers and volumes, end it and everything it started
    tools/test_engine.py restart end the daemon alone and start it again, as an update of Docker does
    tools/test_engine.py env     print the shell line that points the docker command at it
    tools/test_engine.py clean   stop, and delete its images too

The engine has its own socket, process and state folders, listens on no TCP port and shares neither bridge nor firewall
chains with another engine: it runs without iptables of its own (dockerd empties the chains it finds, which would cut
off a neighbour's containers), and this script adds the three rules that let containers reach the network. Published
ports go through docker-proxy. Images are kept between runs.

GPUFLEET_TEST_ENGINE_DIR moves its folder (default /var/cache/gpufleet-tests/engine). GPUFLEET_TEST_ENGINE_NUMBER, from
1 to 9, makes it another engine beside that one, with images of its own, for two checkouts tested on one machine.
GPUFLEET_TEST_DOCKER_HOST names an engine to use as it is: start, stop and restart then do nothing.
GPUFLEET_TEST_ENGINE_PROGRAMS names a folder with the programs of another Docker (dockerd, docker-proxy, containerd, its
shim), and GPUFLEET_TEST_ENGINE_CONFIG holds the engine's daemon.json, {"features": {"containerd-snapshotter": true}}.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

NUMBER = int(os.environ.get("GPUFLEET_TEST_ENGINE_NUMBER") or 0)
NAME = f"gpufleet-{NUMBER}-tests" if NUMBER else "gpufleet-tests"
ENGINE_DIR = Path(os.environ.get("GPUFLEET_TEST_ENGINE_DIR") or f"/var/cache/{NAME}/engine")
RUN_DIR = Path("/run") / NAME  # short: the path of a Unix socket ends at 107 characters
SOCKET = RUN_DIR / "docker.sock"
PID_FILE = RUN_DIR / "docker.pid"
CONTAINERD_PID_FILE = RUN_DIR / "exec" / "containerd" / "containerd.pid"
LOG = ENGINE_DIR / "dockerd.log"
CONFIG = ENGINE_DIR / "daemon.json"
BRIDGE = f"gpufleet-test{NUMBER}"
SUBNET = f"172.29.{240 + NUMBER}.0/24"
BRIDGE_ADDRESS = f"172.29.{240 + NUMBER}.1/24"
START_TIMEOUT = 180.0  # seconds
STARTS = 3  # dockerd gives up when its containerd takes more than 15 s, as on a busy machine
STOP_TIMEOUT = 30.0
PROGRAMS = os.environ.get("GPUFLEET_TEST_ENGINE_PROGRAMS") or ""
CONFIG_TEXT = os.environ.get("GPUFLEET_TEST_ENGINE_CONFIG") or "{}"
SYSTEM_PATH = f"{PROGRAMS}:" * bool(PROGRAMS) + "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

RULES = (
    ("nat", "POSTROUTING", ["-s", SUBNET, "!", "-o", BRIDGE, "-j", "MASQUERADE"]),
    ("filter", "FORWARD", ["-i", BRIDGE, "-j", "ACCEPT"]),
    ("filter", "FORWARD", ["-o", BRIDGE, "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT"]),
)


class EngineError(Exception):
    """The engine could not be started; the text says why."""


def docker_host() -> str:
    """Return the address of the engine that the tests use."""
    return os.environ.get("GPUFLEET_TEST_DOCKER_HOST") or f"unix://{SOCKET}"


def is_ours() -> bool:
    """Tell whether the tests use the private engine, not one that the caller named."""
    return not os.environ.get("GPUFLEET_TEST_DOCKER_HOST")


def run(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a system command, its output captured."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if check and result.returncode != 0:
        raise EngineError(f"{' '.join(command)} exited {result.returncode}: {result.stderr.strip()}")
    return result


def answers() -> bool:
    """Tell whether the private engine answers on its socket."""
    import docker
    import requests
    from docker.errors import DockerException

    if not SOCKET.exists():
        return False
    try:
        client = docker.DockerClient(base_url=f"unix://{SOCKET}", timeout=5)
        try:
            return bool(client.ping())
        finally:
            client.close()
    except (DockerException, requests.exceptions.RequestException):
        return False


# Starting


def start() -> None:
    """Start the private engine unless it answers already; raise EngineError if it does not come up."""
    if answers():
        return
    install_packages()
    end_leftovers()
    for folder in (ENGINE_DIR / "data", RUN_DIR):
        folder.mkdir(parents=True, exist_ok=True)
    mount_control_groups()
    make_network()
    have_daemon()
    remove_containers()  # of a run that could not stop its engine, as when the machine went down


def restart() -> None:
    """End the daemon alone and start it again: it stops the containers and then obeys their restart policies."""
    end(int(PID_FILE.read_text(encoding="utf-8")))
    have_daemon()


def install_packages() -> None:
    """Install Debian's engine and the network tools where they are missing."""
    wanted = {"dockerd": "docker.io", "iptables": "iptables", "ip": "iproute2"}
    missing = [package for command, package in wanted.items() if not shutil.which(command)]
    if not missing:
        return
    if not shutil.which("apt-get"):
        raise EngineError(f"Not installed: {', '.join(missing)}. Install a Docker engine, iptables and iproute2.")
    print(f"Installing {', '.join(missing)} for the tests", flush=True)
    # RUNLEVEL 1 keeps the packages' own scripts from starting the system's engine: the tests do not want it.
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for command in (
        ["apt-get", "update", "-qq"],
        ["apt-get", "install", "-qq", "-y", "--no-install-recommends", *missing],
    ):
        result = subprocess.run(command, env=quiet, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise EngineError(f"{' '.join(command)} exited {result.returncode}:\n{result.stdout}{result.stderr}")


def mount_control_groups() -> None:
    """Mount the control groups where no init system did, as containers cannot run without them."""
    mounts = Path("/proc/mounts").read_text(encoding="utf-8").splitlines()
    if any(line.split()[2] in ("cgroup", "cgroup2") for line in mounts):
        return
    root = Path("/sys/fs/cgroup")
    controllers = [
        line.split()
        for line in Path("/proc/cgroups").read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    ]
    # name, hierarchy, number of groups, enabled
    names = [name for name, _hierarchy, _groups, enabled in controllers if enabled == "1"]
    run("mount", "-t", "tmpfs", "-o", "uid=0,gid=0,mode=0755", "cgroup", str(root))
    for name in names:
        (root / name).mkdir()
        run("mount", "-t", "cgroup", "-o", name, "cgroup", str(root / name))


def make_network() -> None:
    """Make the bridge of the engine and the rules that let its containers reach the network."""
    if run("ip", "link", "show", BRIDGE, check=False).returncode != 0:
        run("ip", "link", "add", "name", BRIDGE, "type", "bridge")
        run("ip", "address", "add", BRIDGE_ADDRESS, "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1\n", encoding="utf-8")
    for table, chain, rule in RULES:
        if run("iptables", "-t", table, "-C", chain, *rule, check=False).returncode != 0:
            run("iptables", "-t", table, "-I", chain, *rule)


def route_mtu() -> str:
    """Return the MTU of the interface of the default route: larger packets from containers would be lost."""
    words = run("ip", "-4", "route", "show", "default", check=False).stdout.split()
    if "dev" in words:
        with contextlib.suppress(OSError):
            device = words[words.index("dev") + 1]
            return Path(f"/sys/class/net/{device}/mtu").read_text(encoding="utf-8").strip()
    return "1500"


def spawn() -> subprocess.Popen[bytes]:
    """Start dockerd in a session of its own, its log in LOG."""
    group = os.environ.get("SUDO_GID", str(os.getgid()))
    command = [
        shutil.which("dockerd") or "dockerd",
        f"--host=unix://{SOCKET}",
        f"--group={group}",
        f"--data-root={ENGINE_DIR / 'data'}",
        f"--exec-root={RUN_DIR / 'exec'}",
        f"--pidfile={PID_FILE}",
        f"--bridge={BRIDGE}",
        f"--mtu={route_mtu()}",
        "--iptables=false",
        "--log-level=warn",
        f"--config-file={CONFIG}",  # else the machine's own /etc/docker/daemon.json would count here
    ]
    CONFIG.write_text(f"{CONFIG_TEXT}\n", encoding="utf-8")
    with LOG.open("wb") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd="/",
            start_new_session=True,
            env={**os.environ, "PATH": SYSTEM_PATH},
        )


def have_daemon() -> None:
    """Start dockerd, again if it ended at once, and wait until it answers; clean up and raise EngineError otherwise."""
    for _attempt in range(STARTS):
        process = spawn()
        if wait_until_ready(process):
            return
        if process.poll() is None:
            break
    state = "does not answer" if process.poll() is None else f"ended with status {process.returncode}"
    tail = "\n".join(LOG.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
    stop()
    raise EngineError(f"The tests' engine {state}. The end of {LOG}:\n{tail}")


def wait_until_ready(process: subprocess.Popen[bytes]) -> bool:
    """Return whether the engine answers, as soon as it does, it has ended, or its time is over."""
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline and process.poll() is None:
        if answers():
            return True
        time.sleep(0.2)
    return False


# Stopping


def stop() -> None:
    """End the private engine and all it started, and take its network away; images stay."""
    if answers():
        remove_containers()
    end_leftovers()
    for table, chain, rule in RULES:
        run("iptables", "-t", table, "-D", chain, *rule, check=False)
    run("ip", "link", "delete", BRIDGE, check=False)


def remove_containers() -> None:
    """Remove every container and volume of the private engine, so that the next run starts from images alone."""
    import docker
    import requests
    from docker.errors import DockerException

    client = docker.DockerClient(base_url=f"unix://{SOCKET}", timeout=60)
    try:
        for container in client.containers.list(all=True, ignore_removed=True):
            with contextlib.suppress(DockerException, requests.exceptions.RequestException):
                container.remove(force=True, v=True)
        with contextlib.suppress(DockerException, requests.exceptions.RequestException):
            client.volumes.prune()
    finally:
        client.close()


def end_leftovers() -> None:
    """End the engine's processes, also those a killed engine left behind, and unmount what they had mounted."""
    for pid_file, program in ((PID_FILE, "dockerd"), (CONTAINERD_PID_FILE, "containerd")):
        with contextlib.suppress(OSError, ValueError):
            pid = int(pid_file.read_text(encoding="utf-8"))
            if program in command_line(pid) and str(RUN_DIR) in command_line(pid):
                end(pid)
    for pid in processes_of(str(RUN_DIR)):
        # A shim's child is a container's first process, which would outlive it.
        for child in children(pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        end(pid)
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
    for mount in reversed(mounts):
        if mount.startswith((f"{RUN_DIR}/", f"{ENGINE_DIR}/data")):
            run("umount", "--lazy", mount, check=False)
    shutil.rmtree(RUN_DIR, ignore_errors=True)


def processes_of(folder: str) -> list[int]:
    """Return the engine programs whose command line names C(folder): containerd and the shims of its containers."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            words = command_line(int(entry.name)).split("\0")
            program = Path(words[0]).name
            if program.startswith(("dockerd", "containerd")) and any(word.startswith(folder) for word in words[1:]):
                found.append(int(entry.name))
    return found


def children(pid: int) -> list[int]:
    """Return the processes that C(pid) started."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()]
    except OSError:
        return []


def command_line(pid: int) -> str:
    """Return the command line of a process, its words separated by NUL; empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def end(pid: int) -> None:
    """Ask a process to end and kill it if it has not after STOP_TIMEOUT seconds."""
    for what, patience in ((signal.SIGTERM, STOP_TIMEOUT), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, what)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)  # a child of ours stays a zombie until it is waited for
            if not command_line(pid):
                return
            time.sleep(0.1)


# The command line


def main(arguments: list[str]) -> int:
    """Run one of start, stop, restart, env and clean."""
    actions = ("start", "stop", "restart", "env", "clean")
    if len(arguments) != 1 or arguments[0] not in actions:
        print(f"usage: test_engine.py {'|'.join(actions)}", file=sys.stderr)
        return 2
    action = arguments[0]
    if action == "env":
        print(f"export DOCKER_HOST={docker_host()}")
        return 0
    if not is_ours():
        print(f"Using the engine at {docker_host()} as it is.")
        return 0
    if os.geteuid() != 0:
        return subprocess.run(["sudo", "-E", sys.executable, __file__, action], check=False).returncode
    os.environ["PATH"] = f"{SYSTEM_PATH}:{os.environ.get('PATH', '')}"
    try:
        if action in ("start", "restart"):
            start() if action == "start" else restart()
            print(f"The tests' engine answers at {docker_host()}")
        else:
            stop()
        if action == "clean":
            shutil.rmtree(ENGINE_DIR, ignore_errors=True)
    except EngineError as error:
        print(f"test_engine.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
