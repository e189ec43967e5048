# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the playbooks tell and keep of secrets, on two stand-in hosts behind a real HAProxy; see many.py.

A value of its own stands in each variable that may hold a secret (tests/fakes/markers.py). Every playbook is run with
C(-vvv), C(--diff), a log, a persistent cache of facts and all that AWX keeps of a job. marker_search.py says where the
values are looked for afterwards, and meanwhile. At the end a playbook that shows some everywhere has to be found out.

What needs systemd or GPUs is not among it: tests/monitoring/test_brought.py looks for the same values around
Prometheus.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.gpufleet.vllm.tests.bench.bench_deploy import PACKAGE
from ansible_collections.gpufleet.vllm.tests.fakes.markers import MARKER, SECRETS, told_everything
from ansible_collections.gpufleet.vllm.tests.fleet.changes import another_length, say, tell
from ansible_collections.gpufleet.vllm.tests.fleet.marker_search import Found, MarkerSearch
from ansible_collections.gpufleet.vllm.tests.fleet.stand_in_fleet import MODEL, SHOWN_OF_LOG, StandInFleet, free_port

LAST = ("--limit", "host-02")
KEY, CLIENT_KEY = SECRETS["vllm_api_key"], SECRETS["router_clients"][0]["key"]
REQUESTS = 3
WRONG_TYPE = {"a": 1}


@dataclass(frozen=True)
class Run:
    """A run of a playbook: its name, words of its command line, what it says where it did what it is run for.

    Attributes:
        playbook: its name.
        words: of the command line.
        says: a text without which the run did not get as far as it should.
        fails: whether it has to fail, as where the stand-ins cannot do what is asked of them.
        before: changes what is wished, or asks the servers something.
        mistakes: variables of this run alone, which it has to refuse without showing any secret.
    """

    playbook: str
    words: tuple[str, ...] = ()
    says: str = "failed=0"
    fails: bool = False
    before: Callable[[StandInFleet], Any] = lambda _fleet: None
    mistakes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def named(self) -> str:
        """How a person calls it."""
        return " ".join([self.playbook, *self.words, *(f"with a wrong {name}" for name in self.mistakes)])


def another_key(fleet: StandInFleet) -> None:
    """Wish another key of the servers."""
    fleet.key = f"{KEY}-next"


def ask(fleet: StandInFleet) -> None:
    """Send requests by the router, and one with a key that it refuses."""
    trusted = ssl.create_default_context(cafile=fleet.certificate)
    for key in [CLIENT_KEY] * REQUESTS + [f"{KEY}-refused"]:
        request = urllib.request.Request(
            f"{fleet.url}/v1/completions",
            data=f'{{"model": "{MODEL}", "prompt": "x", "max_tokens": 2}}'.encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
        )
        with contextlib.suppress(urllib.error.HTTPError), urllib.request.urlopen(request, context=trusted, timeout=30):
            pass


def mistaken(playbook: str, variable: str, value: Any, says: str = "") -> Run:
    """Return a run that has to refuse a value."""
    return Run(playbook, says=says or variable, fails=True, mistakes={variable: value})


RUNS = (
    Run("plan"),
    Run("preflight"),
    mistaken("preflight", "vllm_no_proxy", WRONG_TYPE),
    mistaken("preflight", "vllm_extra_config", {"kv-transfer-config": {"password": f"{MARKER}-extra"}}),
    Run("deploy", ("--check",)),
    Run("deploy"),
    mistaken("deploy", "docker_repository_key_fingerprints", WRONG_TYPE),
    mistaken("router", "router_names", WRONG_TYPE),
    mistaken("router", "router_clients", [{"name": "shop", "key": CLIENT_KEY, "expires": CLIENT_KEY}]),
    Run("router"),
    Run("status"),
    Run("verify", ("--tags", "basic,performance,security"), "Verification passed"),
    mistaken("verify", "vllm_api_key", f"{KEY}-wrong", "Verification FAILED"),
    # The image has no lm_eval, and no package index answers.
    Run("verify", ("--tags", "accuracy"), "Verification FAILED", fails=True),
    Run("tune", (*LAST, "--check")),
    Run("upgrade", before=another_length),
    Run("rollback"),
    Run("rollback", ("--tags", "history")),
    Run("restart", LAST),
    Run("drain", LAST),
    Run("resume", LAST),
    Run("router", before=another_key),
    Run("status"),
    Run("usage", before=ask, says="shop"),
    Run("watch"),
    Run("monitoring"),
    # No package index answers.
    Run("bundle", ("--check", "-e", "vllm_bundle_dir=bundle"), "Make an environment with the modules' libraries", True),
    Run("accept", ("--check",)),
    Run("teardown", LAST),
    Run("teardown"),
    # Where nothing serves; the image has no PyTorch.
    Run("accept", says="torch", fails=True),
)


def wishes(folder: Path) -> dict[str, Any]:
    """Return the variables of all hosts."""
    watched = {
        f"monitoring_{kind}_dir": str(folder / "watch" / kind)
        for kind in ("targets", "scrape", "rules", "dashboards", "provisioning")
    }
    for path in watched.values():
        os.makedirs(path)
    return {
        **{name: value for name, value in SECRETS.items() if name != "vllm_api_key"},
        **watched,
        "router_metrics_port": free_port(),
        "vllm_bundle_distribution": "debian:12",
        "vllm_tune_dir": str(folder / "tuned"),
        "vllm_plan_dir": str(folder / "plans"),
        "vllm_benchmark_concurrency": [2],
        "vllm_benchmark_num_prompts": 4,
        "vllm_benchmark_input_len": 16,
        "vllm_benchmark_output_len": 8,
    }


def went_wrong(fleet: StandInFleet, run: Run, search: MarkerSearch, number: int) -> Iterator[str]:
    """Run a playbook and yield what is not as it should be."""
    run.before(fleet)
    # Without it modules and their arguments lie in files meanwhile, which is Ansible's default.
    fleet.environment["ANSIBLE_PIPELINING"] = str(number % 2 == 0)
    wished = dict(fleet.wishes)
    fleet.wishes |= run.mistakes
    played = fleet.run(run.playbook, words=run.words, name=f"play-{number:02d}-{run.playbook}")
    fleet.wishes = wished
    if bool(played.status) is not run.fails or run.says not in played.text:
        yield f"{run.named} ended with status {played.status}:\n{played.text[-SHOWN_OF_LOG:]}"
    if "task path: " not in played.text:
        yield f"{run.named} did not tell all that it can"
    found = list(search.new())
    yield from (f"{run.named}: {each}" for each in found)
    say(f"{run.named}: {played.seconds:.0f} s, {len(found)} found")


# What a run of it shows, and where that has to be found.
PLANTED = """
- name: Show secrets
  hosts: host-01
  gather_facts: false
  tasks:
    - name: Print one
      ansible.builtin.debug:
        var: vllm_hf_token
    - name: Have one in the cache of facts
      ansible.builtin.set_fact:
        planted: "{{ vllm_hf_token }}"
        cacheable: true
    - name: Have one in a report, as a registry's own file has it
      ansible.builtin.copy:
        content: "{{ ('me:' ~ vllm_registries[0].password) | b64encode }}"
        dest: "{{ vllm_report_dir }}/planted"
        mode: "0600"
      no_log: true
    - name: Have one in files that are not meant for it
      ansible.builtin.copy:
        content: "{{ vllm_secret_environment | to_json }}"
        dest: "{{ item }}"
        mode: "0600"
      no_log: true
      loop: ["{{ vllm_state_dir }}/planted", "{{ planted_elsewhere }}"]
    - name: Have one in a command line
      ansible.builtin.command:
        argv: [sh, -c, sleep 1, "{{ vllm_http_proxy | urlencode }}"]
      changed_when: false
      no_log: true
"""


def blind_spots(fleet: StandInFleet, search: MarkerSearch) -> list[str]:
    """Run a playbook that shows secrets, and return where the search does not find them."""
    (fleet.folder / "collections" / PACKAGE / "playbooks" / "planted.yml").write_text(PLANTED, encoding="utf-8")
    elsewhere = Path("/var/tmp") / f"{fleet.folder.name}-planted"
    labelled = fleet.create_container("host-01", {"planted": SECRETS["router_metrics_token"]})
    try:
        played = fleet.run("planted", words=("-e", f"planted_elsewhere={elsewhere}"), name="play-planted")
        found = {each.place for each in search.new(everywhere=True)}
    finally:
        labelled.remove(force=True)
        elsewhere.unlink(missing_ok=True)
    wanted = {"play-planted.log", "ansible.log", "play.events", r"facts/\w*host-01", "reports/planted", str(elsewhere)}
    wanted |= {"host-01/state/planted", Found.PROCESSES, Found.DOCKER}
    say(f"a playbook that shows secrets: {len(found)} found")
    missed = [
        f"what was planted in {place} was not found"
        for place in sorted(wanted)
        if not any(re.fullmatch(place, one) for one in found)
    ]
    return missed if played.status == 0 else [f"planted ended with status {played.status}:\n{played.text}"]


def marked(given: argparse.Namespace) -> int:
    """Run every playbook with the markers; return the exit status."""
    problems: list[str] = []
    with StandInFleet(given.hosts[0], os.environ["DOCKER_HOST"], start_s=given.start) as fleet:
        fleet.wishes |= wishes(fleet.folder)
        fleet.key = KEY
        fleet.environment |= told_everything(fleet.folder)
        with MarkerSearch(fleet, os.environ["DOCKER_HOST"]) as search:
            runs = [run for run in RUNS if run.named == "deploy" or re.search(given.only, run.named)]
            for number, run in enumerate(runs):
                for problem in went_wrong(fleet, run, search, number):
                    say(problem)
                    problems.append(problem)
            problems += [str(each) for each in search.new(everywhere=True)]
            problems += [*search.too_little(), *blind_spots(fleet, search)]
            say(f"{len(runs)} runs, {search.summary()}")
    return tell(problems)
