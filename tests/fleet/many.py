# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a fleet of stand-in hosts behind a real HAProxy goes through, beneath a steady stream of requests.

    .venv/bin/python tests/fleet/many.py changes [--hosts 3 40] [--forks 5 50] [--start 45] [--only REGEX]
    .venv/bin/python tests/fleet/many.py interruptions [--hosts 3] [--only REGEX]
    .venv/bin/python tests/fleet/many.py short
    .venv/bin/python tests/fleet/many.py secrets [--only REGEX]
    .venv/bin/python tests/fleet/many.py takeover [--only REGEX]

as root, with DOCKER_HOST of an engine. Short requests and streams of some seconds are sent all the time by a client
that counts every answer; HAProxy is asked four times a second which hosts it has out, and Docker tells what becomes of
the containers.

changes        each planned change, see CHANGES in changes.py, in fleets of these sizes, at one of these numbers of
               forks after the other; at all of them where there are few hosts. No request may be lost, nor be turned
               away at first; no more hosts may be out at once than C(vllm_max_unavailable) allows; each host may be out
               for 1.2 times what its own replacement takes, and all together for 1.3 times what the limit, and the
               forks, allow. The times count from servers that take half a minute to start: real ones do, and what
               Ansible itself takes is the same for all.
interruptions  see tests/fleet/interruptions.py
short          both in little, for `make test`: a rolling change of eight hosts that is killed, and made again
secrets        without requests: what every playbook tells and keeps of secrets, see tests/fleet/marked.py
takeover       a fleet of 0.1.0, taken over by this version, see tests/fleet/takeover.py

Prints tables in Markdown, and exits with 1 when something is not as it should be.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

COLLECTIONS = Path(__file__).resolve().parents[2] / ".cache" / "collections"
if str(COLLECTIONS) not in sys.path and "PYTHONPATH" not in os.environ:
    sys.path.insert(0, str(COLLECTIONS))

from ansible_collections.gpufleet.vllm.tests.fleet.changes import make_changes  # noqa: E402
from ansible_collections.gpufleet.vllm.tests.fleet.interruptions import interrupt_all, short_form  # noqa: E402
from ansible_collections.gpufleet.vllm.tests.fleet.marked import marked  # noqa: E402
from ansible_collections.gpufleet.vllm.tests.fleet.stand_in_fleet import as_root  # noqa: E402
from ansible_collections.gpufleet.vllm.tests.fleet.takeover import take_over  # noqa: E402

PROGRAMS = {
    "changes": make_changes,
    "interruptions": interrupt_all,
    "short": short_form,
    "secrets": marked,
    "takeover": take_over,
}

# Sizes of the fleets, and seconds that a server takes to start.
DEFAULTS = {
    "changes": ([3, 40], 45.0),
    "interruptions": ([3], 3.0),
    "short": ([8], 2.0),
    "secrets": ([2], 1.0),
    "takeover": ([3], 3.0),
}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description="Change a fleet of stand-ins beneath a steady stream of requests.")
    parser.add_argument("what", choices=list(PROGRAMS))
    parser.add_argument("--hosts", type=int, nargs="+", default=None, help="sizes of the fleet")
    parser.add_argument("--forks", type=int, nargs="+", default=[5, 50], help="of the plays")
    parser.add_argument("--start", type=float, default=None, help="seconds that a server takes to start")
    parser.add_argument("--only", default="", help="regular expression of what to try")
    given = parser.parse_args(arguments)
    sizes, start = DEFAULTS[given.what]
    given.hosts, given.start = given.hosts or sizes, start if given.start is None else given.start
    return given


def main(arguments: Sequence[str]) -> int:
    """Do what the command line says."""
    given = parse(arguments)
    if not os.environ.get("DOCKER_HOST"):
        print("many.py: DOCKER_HOST must be the address of a Docker engine for tests.", file=sys.stderr)
        return 2
    again = as_root(arguments)
    if again is not None:
        return again
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs behind it with it ignored
    return PROGRAMS[given.what](given)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
