# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tool that says which name a log gets today."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from ansible_collections.gpufleet.vllm.tools import diagnose

LINE = "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`"


def test_it_tells_name_proof_and_remedy_of_a_file(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(f"INFO starting\n{LINE}\n", encoding="utf-8")
    name, _message, proof, remedy = diagnose.main(str(log)).splitlines()
    assert (name, proof) == ("no-memory-for-kv-cache", f"proof: {LINE}")
    assert "vllm_gpu_memory_utilization" in remedy


def test_it_reads_what_is_typed_and_says_when_there_is_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("RuntimeError: never heard of\n"))
    assert diagnose.main("-").splitlines()[0] == "unknown-failure"
