# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host gives its weights to other hosts of the fleet for a while: rsync's daemon behind an sshd of its own.

That sshd has nothing to do with the host's own one. It listens at a port of its own, with a host key and a list of
accepted keys that were made for this run, knows no password, and runs one command whatever a client asks for: rsync,
which reads the contents of the wanted repositories and nothing else. rsync itself bounds how many it serves at once and
how much it sends. Everything is in one folder below /run, is removed with it, and ends by itself at a deadline.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shlex
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import write_failed, write_file
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import (
    list_folder,
    process_fields,
    program_path,
    read_text,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.polling import until
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.programs import run_program, start_program

KIB_OF_MIB = 1024
PROGRAMS = ("rsync", "sshd", "ssh", "ssh-keygen", "timeout")
MODULE = "hub"
CLIENT_KEY, HOST_KEY = "client_key", "host_key"
CIPHERS = "aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com,aes128-ctr"
# Where sshd, started as root, puts its unprivileged half; a distribution makes it when its own sshd starts.
PRIVILEGE_SEPARATION = "/run/sshd"
START_S, STOP_S, PAUSE_S = 5.0, 5.0, 0.1

SSHD_CONFIG = """\
Port {port}
{listen}
HostKey {folder}/host_key
PidFile {folder}/sshd.pid
AuthorizedKeysFile {folder}/authorized_keys
AuthenticationMethods publickey
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin forced-commands-only
AllowUsers {user}
UsePAM {pam}
DisableForwarding yes
PermitTTY no
PermitUserRC no
PermitUserEnvironment no
MaxSessions 1
MaxStartups 200
LoginGraceTime 20
ClientAliveInterval 15
Ciphers {ciphers}
LogLevel INFO
"""
RSYNCD_CONFIG = """\
use chroot = {chroot}
uid = {uid}
gid = {gid}
log file = {folder}/rsync.log
lock file = {folder}/rsync.lock
max connections = {connections}
read only = yes
list = no
munge symlinks = no

[{module}]
path = {path}
filter = {filters}
"""


@dataclass(frozen=True)
class Sending:
    """How a host gives its weights away.

    Attributes:
        folder: for keys, configuration and logs of this run; only its owner may read it.
        cache: the Hugging Face cache.
        repositories: those of which others may have the files.
        address: at which other hosts reach this one.
        port: of that sshd.
        keys: public keys of those who may come.
        connections: how many it serves at once.
        rate_mib: MiB that it sends in a second at most; 0 for no limit.
        seconds: after which it ends by itself.
    """

    folder: str
    cache: str
    repositories: Sequence[str]
    address: str
    port: int
    keys: Sequence[str]
    connections: int
    rate_mib: int
    seconds: int


def missing_programs() -> list[str]:
    """Return the programs that giving and taking need and the host lacks."""
    return [name for name in PROGRAMS if not program_path(name)]


def make_key(folder: str, name: str) -> str:
    """Make a key for this run, unless there is one, and return its public half.

    Raises:
        GpufleetError: C(write-failed).
    """
    path = os.path.join(folder, name)
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        if not os.path.exists(path):
            command = [
                program_path("ssh-keygen") or "ssh-keygen",
                "-q",
                "-t",
                "ed25519",
                "-N",
                "",
                "-C",
                "",
                "-f",
                path,
            ]
            run_program(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError) as error:
        failure = error if isinstance(error, OSError) else OSError(str(error.stderr).strip())
        raise write_failed(path, failure) from error
    return " ".join(read_text(f"{path}.pub").split()[:2])


def begin(sending: Sending) -> str:
    """Let others have files from now on, and return the public half of the host's key.

    Raises:
        GpufleetError: C(sharing-failed) where sshd does not start, C(write-failed).
    """
    end(sending.folder, keep_client_key=True)
    key = make_key(sending.folder, HOST_KEY)
    sshd = program_path("sshd")
    rsync = program_path("rsync")
    if not sshd or not rsync:
        raise _failed("rsync or sshd is not installed", "Install rsync and the server of OpenSSH (openssh-server).")
    command = [rsync, "--server", "--daemon", f"--config={sending.folder}/rsyncd.conf"]
    if sending.rate_mib:
        command.append(f"--bwlimit={max(sending.rate_mib * KIB_OF_MIB // sending.connections, 1)}")
    forced = shlex.join([*command, "."])
    options = f'restrict,command="{forced}"'
    files = {
        "authorized_keys": "".join(f"{options} {one}\n" for one in sending.keys),
        "rsyncd.conf": _rsyncd_config(sending),
        "sshd_config": _sshd_config(sending),
    }
    for name, text in files.items():
        write_file(os.path.join(sending.folder, name), text, 0o600)
    if os.geteuid() == 0:
        os.makedirs(PRIVILEGE_SEPARATION, mode=0o755, exist_ok=True)
    log = os.path.join(sending.folder, "sshd.log")
    with open(os.devnull, "r+b") as nothing:
        process = start_program(
            [
                *(program_path("timeout") or "timeout", str(sending.seconds)),
                *(sshd, "-D", "-f", os.path.join(sending.folder, "sshd_config"), "-E", log),
            ],
            stdin=nothing,
            stdout=nothing,
            stderr=nothing,
            start_new_session=True,
            cwd="/",
        )
    if not until(lambda: process.poll() is not None or _listens(sending.folder), START_S, PAUSE_S) or process.poll():
        said = read_text(log).strip()[-600:]
        # One that is only slow would hold the port later, and its number is known from nowhere else.
        _stop([process.pid, *_children(process.pid)])
        end(sending.folder, keep_client_key=True)
        raise _failed(
            f"sshd does not start at port {sending.port}",
            "Set vllm_weights_port to a free port, and see what sshd says.",
            said,
        )
    return key


def _failed(why: str, remedy: str, evidence: str = "") -> GpufleetError:
    return GpufleetError(
        f"This host cannot give its weights to others: {why}.", name="sharing-failed", remedy=remedy, evidence=evidence
    )


def _listens(folder: str) -> bool:
    return bool(read_text(folder, "sshd.pid").strip())


def _rsyncd_config(sending: Sending) -> str:
    filters = []
    for repository in sending.repositories:
        folder = "models--" + repository.replace("/", "--")
        filters += [f"+_/{folder}/", f"+_/{folder}/blobs/", f"-_/{folder}/blobs/*.*", f"+_/{folder}/blobs/*"]
    return RSYNCD_CONFIG.format(
        chroot="yes" if os.geteuid() == 0 else "no",
        uid=os.geteuid(),
        gid=os.getegid(),
        folder=sending.folder,
        connections=sending.connections,
        module=MODULE,
        path=sending.cache,
        filters=" ".join([*filters, "-_*"]),
    )


def _sshd_config(sending: Sending) -> str:
    own = [f"ListenAddress {address}" for address in _own_addresses(sending.address)]
    user = getpass.getuser()
    # Without PAM, sshd refuses an account whose password is locked, as root's is on some distributions.
    locked = any(line.startswith(f"{user}:!") for line in read_text("/etc/shadow").splitlines())
    return SSHD_CONFIG.format(
        port=sending.port,
        listen="\n".join(own),
        folder=sending.folder,
        user=user,
        pam="yes" if locked else "no",
        ciphers=CIPHERS,
    )


def _own_addresses(name: str) -> list[str]:
    """Return the addresses of a name that are this host's; none, where others reach it at another one, means all."""
    found = []
    with contextlib.suppress(OSError):
        for family, kind, _protocol, _canonical, place in socket.getaddrinfo(name, 0, type=socket.SOCK_STREAM):
            with contextlib.suppress(OSError), socket.socket(family, kind) as tried:
                tried.bind(place)
                found.append(str(place[0]))
    # A name in /etc/hosts may lead a host to its own loopback interface, where no other host reaches it.
    return sorted({one for one in found if not one.startswith("127.") and one != "::1"} or _loopback(name, found))


def _loopback(name: str, found: Sequence[str]) -> list[str]:
    return [name] if name in found else []


def end(folder: str, *, keep_client_key: bool = False) -> bool:
    """Give nothing any more; return whether something was given.

    Args:
        folder: of Sending.
        keep_client_key: whether this host itself is still to fetch from others.
    """
    told = read_text(folder, "sshd.pid").strip()
    was = os.path.isdir(folder)
    if told.isdigit() and folder in _command_line(int(told)):
        _stop([int(told), *_children(int(told))])
    if keep_client_key:
        for name in list_folder(folder):
            if not name.startswith(CLIENT_KEY):
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(folder, name))
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return was


def _command_line(pid: int) -> str:
    return read_text("/proc", str(pid), "cmdline").replace("\0", " ")


def _children(pid: int) -> list[int]:
    """Return the processes below one, at any depth."""
    parents = {int(name): process_fields(int(name)) for name in list_folder("/proc") if name.isdigit()}
    own = [child for child, fields in parents.items() if len(fields) > 1 and fields[1] == str(pid)]
    return [*own, *(below for child in own for below in _children(child))]


def _stop(processes: Sequence[int]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)
        if until(lambda: not any(_command_line(process) for process in processes), STOP_S, PAUSE_S):
            return


def known_hosts(sources: Sequence[tuple[str, int, str]]) -> str:
    """Return a file of known hosts for these addresses, ports and public keys."""
    return "".join(f"[{address}]:{port} {key}\n" for address, port, key in sources)
