# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Says which name the log of a failed start gets: whether a failure has one already, and whether a new entry works.

PYTHONPATH=.cache/collections .venv/bin/python tools/diagnose.py LOG    what `docker logs` printed; - reads it here
"""

from __future__ import annotations

import sys
from pathlib import Path

from ansible_collections.gpufleet.vllm.plugins.module_utils.health.diagnosis import diagnose


def main(name: str) -> str:
    """Return name, sentence, proof and remedy of the failure in a log."""
    text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8", errors="replace")
    error = diagnose(text.splitlines())
    return "\n".join([error.name, error.message, f"proof: {error.evidence}", f"remedy: {error.remedy}"])


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(main(sys.argv[1]))
