# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documentation's table of start-up failures is the one that the code uses."""

from __future__ import annotations

import re

from ansible_collections.gpufleet.vllm.plugins.module_utils.health import causes
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.known_variables import KNOWN_VARIABLES
from ansible_collections.gpufleet.vllm.tools.diagnosis_table import PAGE, VARIABLE, page, sentence

ALL = [
    *causes.CAUSES,
    *(cause for _place, cause in causes.PLACES),
    causes.PROCESS_DIED,
    *causes.EXIT_CAUSES.values(),
    causes.OUT_OF_MEMORY_KILL,
]


def test_the_page_is_what_the_tool_makes() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run tools/diagnosis_table.py"


def test_the_page_has_a_row_for_every_name() -> None:
    rows = re.findall(r"^   \* - ``(.+)``$", page(), re.M)
    assert set(rows) == {cause.name for cause in ALL}


def test_a_sentence_is_plain_text_with_its_variables_marked() -> None:
    assert sentence("Set vllm_port to {0}, see *.log.") == "Set ``vllm_port`` to …, see \\*.log."
    assert sentence("a VLLM_CPU_KVCACHE_SPACE in vllm_environment.") == (
        "a ``VLLM_CPU_KVCACHE_SPACE`` in ``vllm_environment``."
    )


def test_every_variable_that_is_named_is_one() -> None:
    named = {name for cause in ALL for name in VARIABLE.findall(f"{cause.meaning} {cause.remedy}") if name.islower()}
    assert {"vllm_max_model_len", "nvidia_container_toolkit_manage"} <= named
    assert named - KNOWN_VARIABLES == {"vllm_*"}
