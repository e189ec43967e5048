# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The base of action plugins whose module works for minutes: it shows the module's phases live.

A module is silent until it ends. So the module of the same name is started in the background on the host with
Ansible's own async wrapper, writes its current phase to a small file (common/progress.py), and this action
reads that file with one shell command a poll, whose output is the whole state of the job. The command waits on the
host until the phase is another one, the module has ended or LONGEST_WAIT_S are over, so that a host on which each
command is a log-in of sudo sees few of them:

======= ===========================================================================================
line 1  the host's boot id, which tells a reboot
line 2  the host's seconds since the epoch, so that durations do not depend on the controller's clock
line 3  C(alive) or C(gone): whether a process of the job is still there
line 4  the progress file, one line of JSON; empty as long as there is none
rest    the result of the module as JSON, once it has ended
======= ===========================================================================================

Interrupting the play leaves the module working on the host: what it does (replacing a server, building an image) is
safer finished than cut short. Such modules hold a lock, so that the next run cannot get in their way.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import secrets
import shlex
import time
from typing import Any, Callable

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.text import duration

DEFAULT_INTERVAL_S = 15.0
PAUSE_S = 0.3
LONGEST_WAIT_S = 15.0
# The modules have time limits of their own; this one only ends a job that ignores them.
TIME_LIMIT_S = 48 * 3600
# With the pauses below, about two minutes without a connection are tolerated.
MOST_FAILED_POLLS = 12
LONGEST_RETRY_S = 15.0

# The brackets keep this command, whose own command line is under /proc too, from being found as the job.
POLL_SCRIPT = r"""
left={looks}
while [ "$left" -gt 0 ]; do
  case "$(head -c 60 {results} 2>/dev/null)" in
    ''|'{{"started": true, "finished": false,'*|'{{"started": 1, "finished": 0,'*) ;;
    *) break ;;
  esac
  [ "$(cut -d '"' -f 4 {progress} 2>/dev/null)" = {phase} ] || break
  left=$((left - 1))
  sleep {pause} 2>/dev/null || sleep 1
done
cat /proc/sys/kernel/random/boot_id 2>/dev/null || echo unknown
date +%s
job=gone
for file in $(grep -ls 'async_[w]rapper' /proc/[0-9]*/cmdline); do
  if grep -qsF -- {marker} "$file"; then job=alive; fi
done
echo $job
cat {progress} 2>/dev/null
echo
case "$(head -c 60 {results} 2>/dev/null)" in
  '{{"started": true, "finished": false,'*|'{{"started": 1, "finished": 0,'*) ;;
  *) cat {results} 2>/dev/null ;;
esac
"""


class JobState:
    """What one poll found out. Raises ValueError when the output of the poll is not what the script prints."""

    def __init__(self, output: str) -> None:
        lines = output.lstrip().splitlines()
        if len(lines) < 4 or not lines[1].isdigit() or lines[2] not in ("alive", "gone"):
            raise ValueError(f"unexpected answer: {output[:200]!r}")
        self.boot_id = lines[0]
        self.now = float(lines[1])
        self.alive = lines[2] == "alive"
        self.progress: dict[str, Any] = json.loads(lines[3]) if lines[3].strip() else {}
        # As the script takes it out of the line, without reading JSON.
        self.raw_phase = (lines[3].split('"') + [""] * 4)[3]
        self.result = "\n".join(lines[4:]).strip()


@dataclasses.dataclass
class PhaseReporter:
    """Turns the states of the progress file into the lines that a person sees.

    A change of phase is shown at once with what the phases before it took; in between, a heartbeat follows every
    C(interval) seconds (0: never).

    Args:
        host: the inventory name in front of each line.
        show: takes one line.
        interval: seconds between heartbeats.
    """

    host: str
    show: Callable[[str], None]
    interval: float
    _shown_phases: int = 0
    _since: float | None = None
    _phase: str = ""
    _last_shown: float = 0.0

    def update(self, progress: dict[str, Any], now: float) -> None:
        """Show what is new in C(progress); C(now) is the host's clock in seconds since the epoch."""
        if not progress:
            return
        finished = progress.get("phases", [])
        phase, since = progress.get("phase", ""), progress.get("since", now)
        detail = f" {progress['detail']}" if progress.get("detail") else ""
        if (phase, since) != (self._phase, self._since):
            subject = phase.partition(": ")[0] + ": "
            took = [
                f"{entry['name'].removeprefix(subject)} took {duration(entry['seconds'])}"
                for entry in finished[self._shown_phases :]
            ]
            self._line(f"{phase}{detail}" + (f" ({', '.join(took)})" if took else ""), now)
            self._phase, self._since, self._shown_phases = phase, since, len(finished)
        elif self.interval and now - self._last_shown >= self.interval:
            self._line(f"{phase}{detail} ({duration(now - since)})", now)

    def _line(self, text: str, now: float) -> None:
        self.show(f"[{self.host}] {text}")
        self._last_shown = now


class LongTaskAction(ActionBase):  # type: ignore[misc]
    """Runs the module of the same name in the background on the host, and shows its phases until it ends.

    In check mode the module runs as any other does. The task's variable C(vllm_progress_interval) sets the seconds
    between two heartbeats.
    """

    _supports_check_mode = True
    _supports_async = False
    _requires_connection = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module and return its result."""
        task_vars = task_vars or {}
        super().run(tmp, task_vars)
        if self._task.check_mode:
            check_result: dict[str, Any] = self._execute_module(task_vars=task_vars)
            return check_result
        progress_file = self._task.args.get("progress_file") or (
            f"{self.get_shell_option('async_dir', default='~/.ansible_async')}/gpufleet-{secrets.token_hex(8)}.progress"
        )
        started = self._start(progress_file, task_vars)
        if started.get("failed") or "results_file" not in started:
            return started
        result = self._follow(started, progress_file, task_vars)
        if "ansible_facts" in started:  # a discovered interpreter
            result["ansible_facts"] = {**started["ansible_facts"], **result.get("ansible_facts", {})}
        return result

    def _start(self, progress_file: str, task_vars: dict[str, Any]) -> dict[str, Any]:
        """Start the module in the background; return what the async wrapper said."""
        limit, self._task.async_val = self._task.async_val, TIME_LIMIT_S
        try:
            started: dict[str, Any] = self._execute_module(
                module_args={**self._task.args, "progress_file": progress_file}, task_vars=task_vars, wrap_async=True
            )
        finally:
            self._task.async_val = limit
        return started

    def _follow(self, started: dict[str, Any], progress_file: str, task_vars: dict[str, Any]) -> dict[str, Any]:
        """Poll the job until it ends, showing its phases; return the module's result."""
        host = str(task_vars.get("inventory_hostname", "host"))
        value = self._templar.template(task_vars.get("vllm_progress_interval", DEFAULT_INTERVAL_S))
        reporter = PhaseReporter(host, Display().display, interval_of(value))
        results_file = started["results_file"]
        wait = min(reporter.interval or LONGEST_WAIT_S, LONGEST_WAIT_S)
        boot_id, phase, failures = "", "", 0
        while True:
            time.sleep(PAUSE_S)
            command = poll_command(started["ansible_job_id"], progress_file, results_file, phase, wait)
            try:
                state = JobState(self._low_level_execute_command(command)["stdout"])
            except (AnsibleConnectionFailure, ValueError) as error:
                failures += 1
                if failures >= MOST_FAILED_POLLS:
                    return self._lost(started, f"The host has not answered {failures} times in a row: {error}")
                Display().display(f"[{host}] no answer from the host, trying again ({error})")
                self._reset_connection()
                time.sleep(min(2.0**failures, LONGEST_RETRY_S))
                continue
            failures = 0
            reporter.update(state.progress, state.now)
            restarted = boot_id not in ("", state.boot_id)
            boot_id, phase = state.boot_id, state.raw_phase
            if state.result or restarted or not state.alive:
                break
        self._low_level_execute_command(f"rm -f {shell_path(results_file)} {shell_path(progress_file)}")
        if state.result:
            return self._result(state.result)
        return self._lost(
            started,
            "The host was restarted while the task ran."
            if restarted
            else "The task's process on the host is gone and has left no result.",
        )

    def _reset_connection(self) -> None:
        with contextlib.suppress(AttributeError, NotImplementedError, AnsibleConnectionFailure):
            self._connection.reset()

    def _result(self, text: str) -> dict[str, Any]:
        """Return the module's result from the text of its results file."""
        result = self._parsed(text)
        if result.get("failed") and "cmd" in result and "ansible_job_id" in result:
            # The async wrapper's own words for a module that printed no result.
            said = str(result.get("stderr") or result.get("data") or "").strip()
            return {
                "failed": True,
                "msg": "The module was ended from outside or crashed before it could report a result;"
                " on the host, see whether it was killed (out of memory?) and run the play again."
                + (f" It said: {said[-2000:]}" if said else ""),
                "module_output": said,
            }
        return result

    def _parsed(self, text: str) -> dict[str, Any]:
        """Return a module's result from its JSON, without Ansible's own keys, as running it in the foreground would."""
        parsed: Any = self._parse_returned_data({"stdout": text, "stderr": "", "rc": 0}, "legacy")
        if not isinstance(parsed, dict):  # an object from ansible-core 2.21 on, where the function below is gone
            parsed.remove_internal_keys()
            result: dict[str, Any] = parsed.as_result_dict(for_round_trip=True)
            return result
        from ansible.vars.clean import remove_internal_keys

        remove_internal_keys(parsed)
        return parsed

    def _lost(self, started: dict[str, Any], reason: str) -> dict[str, Any]:
        return {
            "failed": True,
            "msg": f"{reason} What the task did up to then stays as it is; run the play again, which puts it right.",
            "results_file": started["results_file"],
        }


def interval_of(value: Any) -> float:
    """Return vllm_progress_interval as seconds; the default for what is no number."""
    try:
        return max(0.0, float(value))
    except (TypeError, ValueError):
        return DEFAULT_INTERVAL_S


def shell_path(path: str) -> str:
    """Return a path quoted for the shell; a leading C(~/) still means the home folder."""
    return "~/" + shlex.quote(path[2:]) if path.startswith("~/") else shlex.quote(path)


def poll_command(job_id: str, progress_file: str, results_file: str, phase: str = "", wait: float = 0) -> str:
    """Return the shell command that prints the state of the job, see the head of this file.

    It waits up to C(wait) seconds for another phase than C(phase), as JobState.raw_phase has it, or for the result.
    The job's processes are those of Ansible's async wrapper that have the first part of the job id as an argument.
    """
    return POLL_SCRIPT.format(
        marker=shlex.quote(job_id.split(".")[0]),
        progress=shell_path(progress_file),
        results=shell_path(results_file),
        phase=shlex.quote(phase),
        looks=round(wait / PAUSE_S),
        pause=PAUSE_S,
    ).strip()
