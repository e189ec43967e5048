# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module vllm_accuracy with a server on this machine and an engine whose containers are functions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.verify import accuracy
from ansible_collections.gpufleet.vllm.plugins.modules import vllm_accuracy
from ansible_collections.gpufleet.vllm.tests.unit.conftest import RunModule

Run = Callable[..., "dict[str, Any]"]
Does = Callable[["list[str]", "dict[str, str]"], "tuple[int, str]"]


def installed(folders: dict[str, str]) -> None:
    """Do what pip does for lm_eval, as far as it is looked at."""
    package = Path(folders["/lm_eval"], "lib/python3.12/site-packages/lm_eval")
    package.mkdir(parents=True, exist_ok=True)
    (package / "__main__.py").write_text("", encoding="utf-8")


def lm_eval(value: float = 0.9, stderr: float = 0.01, samples: int = 100, code: int = 0, log: str = "") -> Does:
    """Return a program that installs, or evaluates and leaves a result unless it fails."""

    def does(command: list[str], folders: dict[str, str]) -> tuple[int, str]:
        if accuracy.INSTALL_PROGRAM in command:
            installed(folders)
            return 0, "Successfully installed lm-eval"
        if not code:
            folder = Path(folders["/results"], "the-model")
            folder.mkdir()
            results = {"gsm8k": {"exact_match,strict-match": value, "exact_match_stderr,strict-match": stderr}}
            document = {"results": results, "n-samples": {"gsm8k": {"effective": samples}}}
            (folder / "results_2026.json").write_text(json.dumps(document), encoding="utf-8")
        return code, log

    return does


@pytest.fixture
def run(run_module: RunModule, tmp_path: Path, verified_server: Any, program: Any) -> Run:
    """Run the module against the server with these options."""

    def call(**options: Any) -> dict[str, Any]:
        common = {"url": verified_server.url, "image": "image:1", "work_dir": str(tmp_path / "verify")}
        return run_module(vllm_accuracy.main, {**common, **options})

    return call


def test_the_recipes_arguments_and_one_installation(run: Run, program: Any) -> None:
    program.does = lm_eval()
    first, second = run(), run(limit=10, tasks_dir="/srv/tasks")
    assert (first["changed"], second["changed"]) == (True, False)
    install, evaluation, again = program.created
    assert install["command"][-2:] == ["lm-eval[api]==0.4.9.1", "transformers<5"]
    command = evaluation["command"]
    arguments = command[command.index("--model_args") + 1]
    assert arguments.endswith(
        "/v1/completions,model=the-model,tokenized_requests=False,tokenizer_backend=None,"
        "num_concurrent=128,timeout=120,max_retries=5"
    )
    assert evaluation["environment"]["PYTHONPATH"] == "/lm_eval/lib/python3.12/site-packages"
    assert "--limit" not in command and "--include_path" not in command
    assert again["command"][again["command"].index("--limit") + 1] == "10"
    assert "/srv/tasks:/tasks:ro" in again["volumes"] and again["working_dir"] == "/tasks"
    assert first["scores"][0]["value"] == 0.9
    assert "--env PYTHONPATH=/lm_eval/lib/python3.12/site-packages" in first["command"]


def test_the_servers_own_mounts_and_variables_reach_pip_and_lm_eval(run: Run, program: Any) -> None:
    program.does = lm_eval()
    environment = {"PYTHONPATH": "/srv/site", "MIRROR_PASSWORD": "hush"}
    result = run(volumes=["/opt:/opt:ro", "/hub:/root/.cache/huggingface"], environment=environment)
    for job in program.created:
        assert "/opt:/opt:ro" in job["volumes"]
        assert [volume for volume in job["volumes"] if volume.split(":")[1] == "/root/.cache/huggingface"] == [
            "/hub:/root/.cache/huggingface"
        ]
    install, evaluation = program.created
    assert install["environment"]["PYTHONPATH"] == "/srv/site"
    assert evaluation["environment"]["PYTHONPATH"] == "/lm_eval/lib/python3.12/site-packages:/srv/site"
    assert evaluation["environment"]["MIRROR_PASSWORD"] == "hush" and "hush" not in result["command"]


def test_secret_variables_reach_pip_and_lm_eval_and_no_command(run: Run, program: Any) -> None:
    program.does = lm_eval()
    hidden = {"MIRROR": "hush-hush", "https_proxy": "http://proxy:3128", "NO_PROXY": "mirror.example.com"}
    result = run(environment={"MIRROR": "public"}, secrets=hidden)
    install, evaluation = program.created
    for job in (install, evaluation):
        assert job["environment"]["MIRROR"] == "hush-hush"
        assert job["environment"]["https_proxy"] == "http://proxy:3128"
    assert evaluation["environment"]["no_proxy"].startswith("mirror.example.com,localhost,127.0.0.1")
    assert "hush" not in result["command"] and "--env MIRROR " in result["command"]


@pytest.mark.parametrize(("given", "told"), [({}, "0"), ({"HF_UPDATE_DOWNLOAD_COUNTS": "1"}, "1")])
def test_no_one_is_told_which_data_sets_are_used_unless_the_user_says_so(
    run: Run, program: Any, given: dict[str, str], told: str
) -> None:
    program.does = lm_eval()
    run(environment=given)
    assert program.created[-1]["environment"]["HF_UPDATE_DOWNLOAD_COUNTS"] == told


def test_another_version_or_image_is_installed_anew_in_place_of_the_old(run: Run, program: Any, tmp_path: Path) -> None:
    program.does = lm_eval()
    assert run()["changed"]
    assert run(requirements=["lm-eval[api]==0.4.13"])["changed"]
    program.images["image:1"] = "sha256:2"
    assert run(requirements=["lm-eval[api]==0.4.13"])["changed"]
    folders = [path.name for path in (tmp_path / "verify" / "lm_eval").iterdir() if path.name != "work"]
    assert len(folders) == 1


def test_an_interrupted_installation_does_not_count(run: Run, program: Any) -> None:
    program.does = lambda _command, _folders: (1, "WARNING: x\nERROR: No matching distribution found for lm-eval")
    result = run()
    assert result["error"]["name"] == "install-failed"
    assert result["error"]["evidence"] == "ERROR: No matching distribution found for lm-eval"
    program.does = lm_eval()
    assert run()["changed"]


@pytest.mark.parametrize(("value", "failed"), [(0.8779, False), (0.859, False), (0.857, True)])
def test_the_floor_is_judged_with_the_standard_error(run: Run, program: Any, value: float, failed: bool) -> None:
    program.does = lm_eval(value)
    result = run(floors={"gsm8k": {"exact_match,strict-match": 0.8779}})
    assert result["failed"] is failed
    assert result["scores"][0]["value"] == value
    if failed:
        assert result["error"]["name"] == "gates-failed"
        assert "floor 0.8779: 2.1 standard errors below it, 2 allowed" in result["msg"]


@pytest.mark.parametrize(
    ("options", "variable"),
    [
        ({"floors": {"gsm8k": 0.92}}, "vllm_accuracy_floors: "),
        ({"floors": {"gsm8k": {"exact_match,strict-match": "0.92 or so"}}}, "vllm_accuracy_floors: "),
        ({"floors": {"gsm8k": {"exact_match,strict-match": "nan"}}}, "vllm_accuracy_floors: "),
        ({"standard_errors": "inf"}, "vllm_accuracy_standard_errors: "),
        ({"standard_errors": -1}, "vllm_accuracy_standard_errors: "),
        ({"tasks": []}, "vllm_accuracy_tasks: "),
        ({"limit": -5}, "vllm_accuracy_limit: "),
    ],
)
def test_what_cannot_be_judged_by_is_refused_before_anything_runs(
    run: Run, program: Any, options: dict[str, Any], variable: str
) -> None:
    program.does = lm_eval(0.01)
    result = run(**options)
    assert (result["failed"], result["error"]["name"]) == (True, "invalid-wishes")
    assert variable in result["msg"]
    assert program.created == []


def test_a_floor_written_as_text_is_a_number(run: Run, program: Any) -> None:
    program.does = lm_eval(0.5)
    result = run(floors={"gsm8k": {"exact_match,strict-match": "0.9"}})
    assert result["error"]["name"] == "gates-failed"


@pytest.mark.parametrize(
    ("tasks", "results"),
    [
        (["our_group"], {"our_group": {"alias": "our_group"}, "gsm8k": {"acc,none": 0.9}}),
        (["our_group", "gsm8k"], {"our_group": {"acc,none": float("nan")}, "gsm8k": {"acc,none": 0.9}}),
        (["our_group"], {"gsm8k": {"acc,none": 0.9}}),
        (["our_tag"], {"our_group": {"acc,none": "N/A"}, "gsm8k": {"acc,none": 0.9}}),
    ],
    ids=["a group without aggregate", "not a number", "a tag", "a task of a tag"],
)
def test_a_floor_without_a_score_fails_what_was_asked_for(
    run: Run, program: Any, tasks: list[str], results: dict[str, Any]
) -> None:
    def does(command: list[str], folders: dict[str, str]) -> tuple[int, str]:
        if accuracy.INSTALL_PROGRAM in command:
            installed(folders)
        else:
            Path(folders["/results"], "results_1.json").write_text(json.dumps({"results": results}), encoding="utf-8")
        return 0, ""

    program.does = does
    result = run(tasks=tasks, floors={"our_group": {"acc,none": 0.7}, "not_run": {"acc,none": 0.7}})
    assert (result["failed"], result["error"]["name"]) == (True, "gates-failed")
    assert [gate["metric"] for gate in result["gates"]] == ["our_group acc,none"]
    told = run(tasks=tasks, floors={"gsm8k": {"acc,none": 0.7}})
    assert not told["failed"] and len(told["notes"]) == (not set(tasks) & set(results))


REFUSED = "aiohttp.client_exceptions.ClientConnectorError: Cannot connect to host 127.0.0.1:1"
UNBOUND = "UnboundLocalError: cannot access local variable 'outputs' where it is not associated with a value"


# Of a host whose firewall drops what it sends to the hub.
POOL = (
    "(MaxRetryError(\"HTTPSConnectionPool(host='huggingface.co', port=443): Max retries exceeded with url:"
    " /datasets/openai/gsm8k/resolve/main/README.md (Caused by ConnectTimeoutError(<HTTPSConnection(host="
    "'huggingface.co', port=443) at 0x7f>, 'Connection to huggingface.co timed out. (connect timeout=10)'))\"))"
)
FIREWALLED = f"""\
WARNING:huggingface_hub.utils._http:'{POOL}' thrown while requesting HEAD https://huggingface.co/datasets/openai/gsm8k
TimeoutError: timed out
The above exception was the direct cause of the following exception:
urllib3.exceptions.ConnectTimeoutError: (<HTTPSConnection(host='huggingface.co', port=443) at 0x7f>, 'Connection to \
huggingface.co timed out. (connect timeout=10)')
requests.exceptions.ConnectTimeout: {POOL}
"""
NOT_LOCAL = """\
huggingface_hub.errors.LocalEntryNotFoundError: An error happened while trying to locate the file on the Hub and we \
cannot find the requested files in the local cache. Please check your connection and try again.
The above exception was the direct cause of the following exception:
ConnectionError: Couldn't reach 'openai/gsm8k' on the Hub (LocalEntryNotFoundError)"""


RATE_LIMITED = """\
huggingface_hub.errors.HfHubHTTPError: 429 Client Error: Too Many Requests for url: https://huggingface.co/api/datasets/x
The above exception was the direct cause of the following exception:
"""


@pytest.mark.parametrize(
    ("log", "name", "evidence"),
    [
        (FIREWALLED + NOT_LOCAL, "dataset-unreachable", NOT_LOCAL.splitlines()[-1]),
        (FIREWALLED, "dataset-unreachable", f"requests.exceptions.ConnectTimeout: {POOL}"),
        # The data set was in the cache after all, and then the server was too slow.
        (FIREWALLED + "\n".join("x" * 9) + "\nTimeoutError", "requests-failed", "TimeoutError"),
        ("aiohttp.ClientConnectorError: Cannot connect to host hf.co:443 ssl:default", "dataset-unreachable", ""),
        ("x\nasyncio.exceptions.TimeoutError", "requests-failed", "asyncio.exceptions.TimeoutError"),
        (f"x\n{REFUSED}\n{UNBOUND}", "requests-failed", REFUSED),
        (f"Traceback\n{UNBOUND}", "requests-failed", UNBOUND),
        (
            "WARNING API request failed with error message: Internal Server Error. Retrying...",
            "requests-failed",
            "API request failed with error message: Internal Server Error. Retrying...",
        ),
        (
            "ValueError: Tasks not found: gsm9k. Try `lm-eval --tasks list`",
            "task-unknown",
            "ValueError: Tasks not found: gsm9k. Try `lm-eval --tasks list`",
        ),
        (
            "ConnectionError: Couldn't reach 'openai/gsm8k' on the Hub (LocalEntryNotFoundError)",
            "dataset-unreachable",
            "ConnectionError: Couldn't reach 'openai/gsm8k' on the Hub (LocalEntryNotFoundError)",
        ),
        ("Killed", "lm-eval-failed", "Killed"),
        (
            "huggingface_hub.errors.HfHubHTTPError: 429 Client Error: Too Many Requests for url:"
            " https://huggingface.co/api/datasets/openai/gsm8k/revision/main",
            "hub-rate-limit",
            "",
        ),
        (RATE_LIMITED + NOT_LOCAL, "hub-rate-limit", RATE_LIMITED.splitlines()[0]),
        ("RuntimeError: Dataset scripts are no longer supported, but found hendrycks.py", "dataset-script", ""),
        ("AssertionError: Tokenizer is required for loglikelihood tasks to compute context", "tokenizer-missing", ""),
        ("DatasetNotFoundError: Dataset 'x/y' is a gated dataset on the Hub. Visit the page", "dataset-gated", ""),
        ("HfHubHTTPError: 403 Client Error: Forbidden for url: https://huggingface.co/x", "hub-refused", ""),
        ("ValueError: Attempted to run task: humaneval which is marked as unsafe.", "task-runs-code", ""),
        ("NotImplementedError: Loglikelihood is not supported for chat completions.", "task-needs-likelihoods", ""),
        ("ModuleNotFoundError: No module named 'langdetect'", "python-package-missing", ""),
        ("KeyError: \"Spec 'gsm9k' is not a registered task/group/tag name\"", "task-unknown", ""),
        ("OSError: [Errno 122] Disk quota exceeded", "disk-full", ""),
        ("PermissionError: [Errno 13] Permission denied: '/root/.cache/huggingface/x'", "permission-denied", ""),
        # The server's own answer is no word of the hub's.
        (
            "requests.exceptions.HTTPError: 429 Client Error: Too Many Requests for url: http://SERVER/v1",
            "lm-eval-failed",
            "",
        ),
    ],
)
def test_what_made_lm_eval_fail_is_told(
    run: Run, program: Any, verified_server: Any, log: str, name: str, evidence: str
) -> None:
    log = log.replace("SERVER", urlsplit(verified_server.url).netloc)
    program.does = lm_eval(code=1, log=log)
    result = run()
    assert result["error"]["name"] == name
    assert result["error"]["evidence"] == (evidence or log)


def test_a_server_that_answers_500_is_told(run: Run, program: Any, verified_server: Any) -> None:
    program.does = lm_eval(code=1, log=UNBOUND)
    verified_server.status = 500
    assert "HTTP 500" in run()["msg"]


def test_no_samples_and_no_results_are_failures(run: Run, program: Any) -> None:
    program.does = lm_eval(samples=0)
    assert run()["error"]["name"] == "no-samples"

    def saves_nothing(command: list[str], folders: dict[str, str]) -> tuple[int, str]:
        return 0, "WARNING: could not save results: No space left on device"

    program.does = saves_nothing
    result = run()
    assert result["error"]["name"] == "no-results"
    assert "No space left" in result["error"]["evidence"]
