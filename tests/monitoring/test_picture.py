# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The picture of the fleet's dashboard in the guide."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.monitoring.dashboard_panels import DASHBOARDS
from ansible_collections.gpufleet.vllm.tools import dashboard_picture

ROUTED = {panel.title for panel in DASHBOARDS[0].panels if panel.optional}


def test_the_picture_can_be_drawn_and_the_guides_has_every_panel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = dashboard_picture.PICTURE.read_text(encoding="utf-8")
    monkeypatch.setattr(dashboard_picture, "PICTURE", tmp_path / "images/picture.svg")
    dashboard_picture.main()
    drawn = (tmp_path / "images/picture.svg").read_text(encoding="utf-8")
    for panel in DASHBOARDS[0].panels:
        assert f">{panel.title}</text>" in drawn
        assert f">{panel.title}</text>" in kept, "draw it again: python tools/dashboard_picture.py"
    # All have data but those of a router, and alerts.
    assert drawn.count("not in this replay") == len(ROUTED) + 1
