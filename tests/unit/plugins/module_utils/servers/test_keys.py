# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which keys a server takes, from what it takes and what it is to take."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container.door import key_sum
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.keys import (
    UNTIL_TOLD,
    Keys,
    replicas_in,
    update,
)

NOW = 1000.0


def text_of(*lines: str) -> str:
    """Return the text of a file of keys, each line a key and the time until which it is taken."""
    pairs = (line.partition(" ") for line in lines)
    return "".join(sorted(f"{key_sum(key.encode())}{space}{end}\n" for key, space, end in pairs))


@pytest.mark.parametrize(
    ("before", "first", "keys", "after"),
    [
        ([], "", Keys("new"), ["new"]),
        ([], "old", Keys("new"), ["new"]),
        ([], "old", Keys("new", others_for=UNTIL_TOLD), ["new", "old"]),
        ([], "same", Keys("same", others_for=UNTIL_TOLD), ["same"]),
        (["old"], "", Keys("new", others_for=UNTIL_TOLD), ["new", "old"]),
        (["old", "new"], "new", Keys("newer", others_for=UNTIL_TOLD), ["new", "newer", "old"]),
        (["old", "new"], "new", Keys("new", others_for=UNTIL_TOLD), ["new", "old"]),
        (["old", "new"], "new", Keys("new", others_for=150), ["new", "old 1150"]),
        (["old 1010", "new"], "new", Keys("new", others_for=150), ["new", "old 1010"]),
        (["old 1010", "new"], "new", Keys("newer", others_for=UNTIL_TOLD), ["new", "newer", "old 1010"]),
        (["old 1010", "new"], "new", Keys("old", others_for=150), ["new 1150", "old"]),
        (["old 1010", "new"], "new", Keys("new"), ["new"]),
        (["old 990", "new"], "new", Keys("newer", others_for=UNTIL_TOLD), ["new", "newer"]),
        (["new"], "new", Keys("new", ("more",)), ["more", "new"]),
        (["new", "more"], "new", Keys("new"), ["new"]),
        (["old", "new"], "new", Keys(""), ["new", "old"]),
    ],
)
def test_what_a_server_takes(before: list[str], first: str, keys: Keys, after: list[str]) -> None:
    assert keys.text(text_of(*before), first, NOW) == text_of(*after)


def test_an_end_that_has_come_is_no_change() -> None:
    ended = text_of("old 990", "new")
    assert Keys("new", others_for=150).text(ended, "", NOW) == ended
    assert Keys("new").text("no time\n", "", NOW) == text_of("new")


def test_both_files_are_written_the_one_that_is_asked_with_first(tmp_path: Path) -> None:
    secrets, taken = tmp_path / "vllm-0.env", tmp_path / "control" / "vllm-0" / "keys.sha256"
    secrets.write_text("HF_TOKEN=t\nVLLM_API_KEY=old\n")
    both = Keys("new", others_for=UNTIL_TOLD)
    assert update(str(tmp_path), "vllm-0", both, check=True)
    assert not taken.exists() and "old" in secrets.read_text()
    assert update(str(tmp_path), "vllm-0", both, check=False)
    assert secrets.read_text() == "HF_TOKEN=t\nVLLM_API_KEY=new\n"
    assert secrets.stat().st_mode & 0o777 == 0o600
    assert taken.read_text() == text_of("old", "new")
    assert not update(str(tmp_path), "vllm-0", both, check=False)
    assert update(str(tmp_path), "vllm-0", Keys("new"), check=False)
    assert taken.read_text() == text_of("new")
    assert replicas_in(str(tmp_path), "vllm") == ["vllm-0"]
    assert replicas_in(str(tmp_path), "other") == []
