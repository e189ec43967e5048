# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Of the errors that vLLM and its libraries can raise while a server starts, each is told by a line of its own.

tools/extract_errors.py reads them from the sources into tests/unit/data/start_errors.jsonl.gz.
"""

from __future__ import annotations

import ast
import collections

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.health.causes import WRAPPER
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.diagnosis import LONGEST_LINE, diagnose
from ansible_collections.gpufleet.vllm.tools.extract_errors import as_logged, raised, read_list

ERRORS = read_list()
# How many of each release's texts get a name, in hundredths. Raise them when the table of causes learns more.
LEAST_NAMED = {"vllm 0.12.0": 55, "vllm 0.17.1": 55, "vllm 0.26.0": 55, "vllm 0.33.0": 60}


def test_every_error_gets_a_name_or_shows_itself() -> None:
    all_of, named_of = collections.Counter[str](), collections.Counter[str]()
    for exception, text, file, releases in ERRORS:
        if WRAPPER.search(text):
            continue
        error = diagnose(as_logged(exception, text, file), exit_code=1)
        first = f"{exception}: {text}".splitlines()[0].strip()
        all_of.update(releases)
        if error.name == "unknown-failure":
            assert error.evidence.startswith(first[:LONGEST_LINE])
            assert error.evidence in error.details["log"]
        else:
            assert "{" not in error.remedy or "{" in text
            lines = [line.strip()[:LONGEST_LINE] for line in f"{exception}: {text}".splitlines()]
            assert any(error.evidence.startswith(line) for line in lines), (error.name, error.evidence)
            named_of.update(releases)
    assert set(LEAST_NAMED) <= set(all_of)
    for release, least in LEAST_NAMED.items():
        assert named_of[release] * 100 >= least * all_of[release], (release, named_of[release], all_of[release])


# Read by hand: a wrong name is one that sends a person to the wrong place.
@pytest.mark.parametrize(
    ("exception", "text", "file", "name"),
    [
        ("FileNotFoundError", "nvcc not found at '1'.", "torch/utils/cpp_extension.py", "compiler-missing"),
        ("ValueError", "num_heads 1 is not divisible by tp_size 1.", "vllm/model_executor/models/openpangu.py",
         "tensor-parallel-size-does-not-divide"),
        ("ValueError", "--device-ids must not mix integer IDs and UUIDs", "vllm/config/x.py", "configuration-refused"),
        ("NotImplementedError", "b12x does not yet support decode/prefill context parallelism.",
         "vllm/v1/attention/backends/b12x.py", "attention-backend-failed"),
        ("RuntimeError", "An internal counter is off by 1", "vllm/v1/core/sched/scheduler.py", "unknown-failure"),
    ],
)  # fmt: skip
def test_a_name_says_where_to_look(exception: str, text: str, file: str, name: str) -> None:
    assert diagnose(as_logged(exception, text, file), exit_code=1).name == name


def test_the_texts_of_raise_and_assert_are_read() -> None:
    source = """
def run(size):
    if size < 0:
        raise ValueError(f"the size {size} is too small" + " for this")
    assert size < 9, "the size is too large %d" % size
    raise ValueError
    raise OSError(size)
"""
    assert list(raised(ast.parse(source))) == [
        (5, "AssertionError", "the size is too large 1"),
        (4, "ValueError", "the size 1 is too small for this"),
    ]
