# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What git knows or would add is the checkout, and is what is copied."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ansible_collections.gpufleet.vllm.tools import checkout


def test_a_copy_has_what_git_knows_or_would_add(tmp_path: Path) -> None:
    root, copy = tmp_path / "root", tmp_path / "copy"
    for name in ("kept", "gone", "below/new file", "ignored.log"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (root / ".gitignore").write_text("*.log\n")
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    subprocess.run(["git", "add", "kept", "gone", ".gitignore"], cwd=root, check=True)
    (root / "gone").unlink()
    copy.mkdir()
    (copy / "left over").write_text("")
    checkout.copy_to(copy, root)
    copied = sorted(str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file())
    assert copied == sorted(checkout.known_to_git(root)) == [".gitignore", "below/new file", "kept"]
    assert (copy / "below" / "new file").read_text() == "below/new file"


def test_what_is_no_checkout_is_told_and_the_copy_stays(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "before").write_text("")
    with pytest.raises(subprocess.CalledProcessError) as caught:
        checkout.copy_to(copy, tmp_path)
    assert caught.value.returncode == 128 and caught.value.stderr
    assert [path.name for path in copy.iterdir()] == ["before"]
