# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The dashboards as Grafana reads them, and what tells Grafana where they are."""

from __future__ import annotations

from typing import Any

from ansible_collections.gpufleet.vllm.plugins.plugin_utils.monitoring.dashboard_panels import (
    DASHBOARDS,
    MARKS,
    Dashboard,
    Panel,
)

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS = 24
HEIGHTS = {"stat": 4}
HEIGHT = 8
# The label that a variable of a dashboard picks by. A replica has one GPU or several.
LABELS = ("model", "host", "gpu")


def dashboards(goal_seconds: float) -> dict[str, dict[str, Any]]:
    """Return each dashboard by the name of its file; C(goal_seconds) is the goal for the time to the first token."""
    return {f"{board.uid}.json": _dashboard(board, f"{goal_seconds:g}") for board in DASHBOARDS}


def query_of(expression: str, picks: tuple[str, ...], goal: str) -> str:
    """Return a question of the table as a dashboard asks it."""
    matchers = {label: f'{label}=~"${{{label}}}"' for label in LABELS}
    by = ",".join(matchers[label] for label in picks)
    # On the dashboard of all hosts a host is picked by nothing, and so on.
    for label in LABELS:
        expression = expression.replace(f"${label}", matchers[label] if label in picks else f'{label}=~".*"')
    return expression.replace("$by", by).replace("$goal", goal)


def providers(path: str) -> dict[str, Any]:
    """Return the provisioning file that has Grafana read dashboards from a folder."""
    options = {"path": path}
    provider = {"name": "gpufleet", "folder": "GPU fleet", "type": "file", "allowUiUpdates": False, "options": options}
    return {"apiVersion": 1, "providers": [provider]}


def data_sources(url: str) -> dict[str, Any]:
    """Return the provisioning file that names Prometheus to Grafana."""
    source = {"name": "gpufleet", "type": "prometheus", "uid": "gpufleet", "access": "proxy", "url": url}
    return {"apiVersion": 1, "datasources": [source]}


def _dashboard(board: Dashboard, goal: str) -> dict[str, Any]:
    return {
        "uid": board.uid,
        "title": board.title,
        "tags": ["gpufleet", "vllm"],
        "schemaVersion": 38,
        "version": 1,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [_source_variable(), *(_variable(label) for label in board.picks)]},
        "annotations": {"list": [_mark(name, *mark) for name, mark in MARKS.items()]},
        "links": [{"type": "dashboards", "title": "GPU fleet", "tags": ["gpufleet"], "includeVars": True}],
        "panels": _placed(board, goal),
    }


def _placed(board: Dashboard, goal: str) -> list[dict[str, Any]]:
    """Return the panels, each behind the one before where the row has room for it."""
    placed: list[dict[str, Any]] = []
    column = row = tallest = 0
    for number, panel in enumerate(board.panels, 1):
        height = HEIGHTS.get(panel.kind, HEIGHT)
        if column + panel.width > COLUMNS:
            column, row, tallest = 0, row + tallest, 0
        place = {"x": column, "y": row, "w": panel.width, "h": height}
        placed.append(_panel(panel, number, place, board.picks, goal))
        column, tallest = column + panel.width, max(tallest, height)
    return placed


def _panel(panel: Panel, number: int, place: dict[str, int], picks: tuple[str, ...], goal: str) -> dict[str, Any]:
    needs = f"Needs {panel.optional}." if panel.optional else ""
    instant = panel.kind in ("stat", "table")
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": " ".join(text for text in (panel.about.replace("$goal", goal), needs) if text),
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}} if panel.kind == "timeseries" else {},
        "targets": [
            {
                "refId": chr(ord("A") + place_in_panel),
                "datasource": SOURCE,
                "expr": query_of(expression, picks, goal),
                "legendFormat": legend,
                **({"instant": True, "range": False} if instant else {"range": True}),
                **({"format": "table"} if panel.kind == "table" else {}),
            }
            for place_in_panel, (expression, legend) in enumerate(panel.queries)
        ],
    }


def _source_variable() -> dict[str, Any]:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _variable(label: str) -> dict[str, Any]:
    """Return the variable that picks by a label; of a GPU the health program and DCGM exporter have one each."""
    series = 'up{job="vllm"}' if label != "gpu" else '{__name__=~"gpufleet_gpu_.*|DCGM_FI_DEV_GPU_TEMP"}'
    query = f"label_values({series}, {label})"
    return {
        "name": label,
        "label": label if label != "gpu" else "GPU",
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": label},
        "definition": query,
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _mark(name: str, expression: str, text: str, colour: str) -> dict[str, Any]:
    return {
        "name": name,
        "datasource": SOURCE,
        "enable": True,
        "iconColor": colour,
        "expr": expression,
        "step": "60s",
        "titleFormat": name,
        "textFormat": text,
    }
