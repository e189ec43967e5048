# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action that shows a module's phases: its lines, its polls on a real shell, what it says of a lost job."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.text import duration
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions import long_task
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.long_task import (
    JobState,
    LongTaskAction,
    PhaseReporter,
    poll_command,
    shell_path,
)

RUNNING = '{"started": true, "finished": false, "ansible_job_id": "j1.2"}'


@pytest.mark.parametrize("name", ["vllm_server", "vllm_image", "cpu_image", "sample_model"])
def test_long_modules_have_the_action(name: str) -> None:
    module = importlib.import_module(f"ansible_collections.gpufleet.vllm.plugins.action.{name}")
    assert issubclass(module.ActionModule, LongTaskAction)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (37.2, "37 s"), (59.6, "1 min 0 s"), (125, "2 min 5 s"), (3780, "1 h 3 min")],
)
def test_durations_are_told_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


class TestPhaseReporter:
    """The lines that a person sees."""

    @staticmethod
    def shown(states: list[tuple[float, dict[str, Any]]], interval: float = 15.0) -> list[str]:
        """Return the lines for a sequence of polls."""
        lines: list[str] = []
        reporter = PhaseReporter("host1", lines.append, interval)
        for now, progress in states:
            reporter.update(progress, now)
        return lines

    def test_a_change_is_shown_at_once_with_what_the_phases_before_took(self) -> None:
        container = {"phase": "vllm-0: container", "since": 100.0, "phases": []}
        phases = [{"name": "vllm-0: container", "seconds": 1.2}, {"name": "vllm-0: engine start", "seconds": 40.0}]
        weights = {"phase": "vllm-0: weights", "detail": "45 %", "since": 141.2, "phases": phases}
        assert self.shown([(100.0, {}), (100.3, container), (102.0, container), (142.0, weights)]) == [
            "[host1] vllm-0: container",
            "[host1] vllm-0: weights 45 % (container took 1 s, engine start took 40 s)",
        ]

    def test_a_heartbeat_follows_every_interval(self) -> None:
        def weights(percent: int) -> dict[str, Any]:
            return {"phase": "vllm-0: weights", "detail": f"{percent} %", "since": 100.0, "phases": []}

        states = [(100.0 + second, weights(second)) for second in range(40)]
        assert self.shown(states) == [
            "[host1] vllm-0: weights 0 %",
            "[host1] vllm-0: weights 15 % (15 s)",
            "[host1] vllm-0: weights 30 % (30 s)",
        ]
        assert self.shown(states, interval=0) == ["[host1] vllm-0: weights 0 %"]

    def test_the_same_phase_begun_anew_is_shown_again(self) -> None:
        first = {"phase": "pull", "since": 1.0, "phases": []}
        again = {"phase": "pull", "since": 9.0, "phases": [{"name": "pull", "seconds": 5.0}]}
        assert self.shown([(1.0, first), (9.0, again)], interval=0) == ["[host1] pull", "[host1] pull (pull took 5 s)"]


@pytest.mark.parametrize(
    "output", ["", "motd\nmore", "boot\nnotatime\nalive\n", "boot\n1\nmaybe\n\n", "b\n1\nalive\n{half"]
)
def test_an_answer_that_is_not_the_polls_is_refused(output: str) -> None:
    with pytest.raises(ValueError, match=r"unexpected answer|Expecting|property name"):
        JobState(output)


class TestPollOnARealShell:
    """The poll's command, run by a shell on this machine."""

    @pytest.fixture
    def job(self) -> Iterator[subprocess.Popen[bytes]]:
        """A process that looks like the async wrapper of the job j770077.1."""
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "async_wrapper.py", "j770077"])
        time.sleep(0.1)
        yield process
        process.kill()
        process.wait()

    @staticmethod
    def poll(tmp_path: Path, phase: str = "", wait: float = 0) -> JobState:
        """Return what a poll of the job finds out."""
        command = poll_command("j770077.1", str(tmp_path / "a progress"), str(tmp_path / "j770077.1"), phase, wait)
        done = subprocess.run(["/bin/sh", "-c", command + " ; sleep 0"], capture_output=True, text=True, check=True)
        assert done.stderr == ""
        return JobState(done.stdout)

    def test_a_running_job(self, tmp_path: Path, job: subprocess.Popen[bytes]) -> None:
        (tmp_path / "j770077.1").write_text(RUNNING)
        (tmp_path / "a progress").write_text('{"phase": "weights", "since": 5.0, "phases": []}')
        state = self.poll(tmp_path)
        assert (state.alive, state.result, state.progress["phase"]) == (True, "", "weights")
        assert state.now == pytest.approx(time.time(), abs=5)
        assert state.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()

    def test_it_waits_on_the_host_for_another_phase_or_the_end(
        self, tmp_path: Path, job: subprocess.Popen[bytes]
    ) -> None:
        results, progress = tmp_path / "j770077.1", tmp_path / "a progress"
        results.write_text(RUNNING)
        progress.write_text(json.dumps({"phase": 'it\'s "weights"', "since": 5.0}))
        first = self.poll(tmp_path, wait=30)  # a phase that was not known
        began = time.monotonic()
        assert self.poll(tmp_path, first.raw_phase, wait=1.2).result == ""
        assert time.monotonic() - began > 1
        changes = threading.Timer(0.5, progress.write_text, ['{"phase": "next", "since": 6.0}'])
        changes.start()
        assert self.poll(tmp_path, first.raw_phase, wait=30).progress["phase"] == "next"
        ends = threading.Timer(0.5, results.write_text, ['{"changed": true}'])
        ends.start()
        assert self.poll(tmp_path, "next", wait=30).result == '{"changed": true}'
        assert time.monotonic() - began < 25

    def test_a_job_of_before_2_19_that_runs(self, tmp_path: Path, job: subprocess.Popen[bytes]) -> None:
        (tmp_path / "j770077.1").write_text('{"started": 1, "finished": 0, "ansible_job_id": "j1.2"}')
        assert self.poll(tmp_path).result == ""

    def test_a_job_that_has_not_written_anything_yet(self, tmp_path: Path, job: subprocess.Popen[bytes]) -> None:
        state = self.poll(tmp_path)
        assert (state.alive, state.result, state.progress) == (True, "", {})

    def test_a_finished_job(self, tmp_path: Path) -> None:
        (tmp_path / "j770077.1").write_text(json.dumps({"changed": True, "text": "two\nlines"}))
        state = self.poll(tmp_path)
        assert json.loads(state.result) == {"changed": True, "text": "two\nlines"}

    def test_a_job_whose_process_is_gone(self, tmp_path: Path, job: subprocess.Popen[bytes]) -> None:
        (tmp_path / "j770077.1").write_text(RUNNING)
        job.kill()
        job.wait()
        state = self.poll(tmp_path)
        assert (state.alive, state.result) == (False, "")


def test_the_home_folder_is_left_to_the_shell_and_everything_else_is_quoted() -> None:
    assert shell_path("~/.ansible_async/a b") == "~/'.ansible_async/a b'"
    assert shell_path("/tmp/$x") == "'/tmp/$x'"


class Action(LongTaskAction):
    """The action on a host that gives the polls of a list, one after the other."""

    def __init__(self, polls: list[Any], check_mode: bool = False) -> None:
        self.polls = polls
        self.commands: list[str] = []
        self.executed: list[dict[str, Any]] = []
        self._used_interpreter = None
        self._templar = SimpleNamespace(template=lambda value: value)
        self._task = SimpleNamespace(
            args={"state": "present"}, async_val=0, check_mode=check_mode, action="gpufleet.vllm.vllm_server"
        )
        self._connection = SimpleNamespace(reset=lambda: self.commands.append("reset"))

    def get_shell_option(self, option: str, default: Any = None) -> Any:
        return default

    def _execute_module(self, **options: Any) -> dict[str, Any]:
        self.executed.append({**options, "limit": self._task.async_val})
        if not options.get("wrap_async"):
            return {"changed": False}
        return {"ansible_job_id": "j1.2", "results_file": "/root/.ansible_async/j1.2", "changed": True}

    def _low_level_execute_command(self, cmd: str, **_options: Any) -> dict[str, Any]:
        self.commands.append(cmd)
        if cmd.startswith("rm -f"):
            return {"stdout": "", "rc": 0}
        answer = self.polls.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return {"stdout": answer, "rc": 0}


def answer(progress: str = "", result: str = "", boot: str = "boot-1", alive: str = "alive", now: int = 100) -> str:
    return f"{boot}\n{now}\n{alive}\n{progress}\n{result}"


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines that were displayed; polls do not wait."""
    lines: list[str] = []
    monkeypatch.setattr(long_task, "Display", lambda: SimpleNamespace(display=lines.append))
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    monkeypatch.setattr(ActionBase, "run", lambda *_args: {})
    return lines


def run(polls: list[Any], check_mode: bool = False, **task_vars: Any) -> tuple[dict[str, Any], Action]:
    action = Action(polls, check_mode)
    return action.run(task_vars={"inventory_hostname": "h1", **task_vars}), action


def test_the_result_is_the_modules_and_its_files_are_removed(shown: list[str]) -> None:
    progress = '{"phase": "vllm-0: weights", "since": 90, "phases": []}'
    result, action = run([answer(), answer(progress), answer(result='{"changed": true, "replicas": []}')])
    assert (result["changed"], result["replicas"]) == (True, [])
    assert shown == ["[h1] vllm-0: weights"]
    started = action.executed[0]
    assert started["wrap_async"] is True
    assert started["limit"] > 3600
    assert action._task.async_val == 0
    path = started["module_args"]["progress_file"]
    assert action.commands[-1] == f"rm -f /root/.ansible_async/j1.2 {shell_path(path)}"


def test_check_mode_runs_the_module_as_any_other(shown: list[str]) -> None:
    result, action = run([], check_mode=True)
    assert result == {"changed": False}
    assert "wrap_async" not in action.executed[0]


def test_a_failure_keeps_its_error(shown: list[str]) -> None:
    result, _action = run([answer(result='{"failed": true, "msg": "no", "error": {"name": "port-in-use"}}')])
    assert (result["failed"], result["error"]["name"]) == (True, "port-in-use")


def test_a_module_that_printed_no_result_is_explained(shown: list[str]) -> None:
    said = {
        "failed": True,
        "cmd": "python x",
        "data": "",
        "stderr": "Killed",
        "msg": "Traceback",
        "ansible_job_id": "j",
    }
    result, _action = run([answer(result=json.dumps(said))])
    assert result["failed"]
    assert "ended from outside" in result["msg"]
    assert result["msg"].endswith("It said: Killed")


def test_a_process_that_is_gone_is_an_error_and_no_hang(shown: list[str]) -> None:
    result, action = run([answer(), answer(alive="gone")])
    assert result["failed"]
    assert "process on the host is gone" in result["msg"]
    assert action.commands[-1].startswith("rm -f")


def test_a_result_written_just_before_the_process_ended_counts(shown: list[str]) -> None:
    assert run([answer(alive="gone", result='{"changed": false}')])[0]["changed"] is False


def test_a_host_that_was_restarted_is_an_error(shown: list[str]) -> None:
    result, _action = run([answer(), answer(boot="boot-2")])
    assert result["failed"]
    assert "restarted" in result["msg"]


def test_a_few_failed_polls_are_tolerated(shown: list[str]) -> None:
    polls = [AnsibleConnectionFailure("lost"), "motd", answer(result='{"changed": true}')]
    result, action = run(polls)
    assert result["changed"] is True
    assert action.commands.count("reset") == 2
    assert len(shown) == 2


def test_a_host_that_never_answers_again_is_given_up(shown: list[str]) -> None:
    result, _action = run([AnsibleConnectionFailure("lost")] * 50)
    assert result["failed"]
    assert "has not answered" in result["msg"]


@pytest.mark.parametrize(("value", "interval"), [("5", 5.0), (0, 0.0), (-3, 0.0), ("soon", 15.0), (None, 15.0)])
def test_the_interval_is_a_number_of_seconds(value: Any, interval: float) -> None:
    assert long_task.interval_of(value) == interval
