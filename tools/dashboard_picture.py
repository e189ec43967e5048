# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Draws the fleet's dashboard into docs/docsite/rst/images/fleet_dashboard.svg: python tools/dashboard_picture.py

There is no Grafana in it. An hour of three servers is made of the recorded page of a real vLLM, whose counters go on as
a wave of load has them, and is given to a real Prometheus, which answers each panel's query. The answers are drawn in
the panels' places, in the colours of the report. Prometheus is this machine's, or Debian's, unpacked.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / ".cache" / "collections"))
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.monitoring import alert_rules, grafana, thresholds  # noqa: E402
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.report import plots  # noqa: E402
from ansible_collections.gpufleet.vllm.tests.monitoring import programs  # noqa: E402
from ansible_collections.gpufleet.vllm.tests.monitoring.measured_replica import COUNTS, SCRAPE  # noqa: E402
from ansible_collections.gpufleet.vllm.tests.unit.conftest import free_port  # noqa: E402

PICTURE = ROOT / "docs/docsite/rst/images/fleet_dashboard.svg"
CSS = ROOT / "plugins/plugin_utils/report/page.css"
START, STEP_S, MINUTES = 1767225600, 15, 60
# When each server began, in minutes, and how far its wave of load is behind the first one's.
SERVERS = {"gpu-01": (0, 0.0), "gpu-02": (0, 0.4), "gpu-03": (20, 0.8)}
# The recorded page is of a server that had run for so long, with all that it could take.
RECORDED_S = 60.0
GAUGES = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
INCHES, ROW_INCHES = 15.0, 0.31


def load(minute: float, behind: float) -> float:
    """Return the load of a server, as a share of the recorded one."""
    return 0.55 + 0.4 * math.sin(2 * math.pi * minute / 40 - behind)


def history(asked: str) -> Iterator[str]:
    """Yield the hour in OpenMetrics' form: of the recorded series those that are asked for."""
    recorded = []
    for line in SCRAPE.read_text(encoding="utf-8").splitlines():
        name = re.split(r"[{ ]", line)[0]
        if not line.startswith("#") and re.search(rf"\b{re.escape(name)}\b", asked):
            series, _space, value = line.rpartition(" ")
            recorded.append((name, re.sub(r"^[^{]*\{?|\}$", "", series), float(value)))
    for host, (began, behind) in SERVERS.items():
        labels = f'job="vllm",host="{host}",replica="vllm-0",model="scout"'
        done = 0.0
        for second in range(began * 60, MINUTES * 60 + 1, STEP_S):
            now = load(second / 60, behind)
            done += now * STEP_S / RECORDED_S
            yield f"up{{{labels}}} 1 {START + second}"
            for name, own, amount in recorded:
                factor = done if COUNTS.search(name) else now if name in GAUGES else 1.0
                shown = round(amount * factor) if name in GAUGES[:2] else amount * factor
                yield f"{name}{{{labels}{',' if own else ''}{own}}} {shown} {START + second}"
    yield "# EOF"


@contextlib.contextmanager
def prometheus(folder: Path) -> Iterator[str]:
    """Have Prometheus answer for what is in the folder; yield its address."""
    url = f"http://127.0.0.1:{free_port()}"
    words = ["--config.file=empty.yml", f"--web.listen-address={url[7:]}", "--storage.tsdb.path=data"]
    words += ["--query.lookback-delta=1m", "--storage.tsdb.retention.time=10y"]
    (folder / "empty.yml").write_text("{}\n")
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            programs.command("prometheus", *words),
            cwd=folder,
            env=programs.environment("prometheus"),
            stdout=log,
            stderr=log,
        )
        try:
            for _attempt in range(300):
                with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/-/ready", timeout=5):  # noqa: S310
                    break
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()
            process.wait()


def promtool(folder: Path, *words: str) -> None:
    """Run promtool, and end if it fails."""
    done = subprocess.run(
        programs.command("promtool", *words),
        cwd=folder,
        env=programs.environment("promtool"),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"promtool {' '.join(words)}: {done.stdout}{done.stderr}")


def answers(url: str, target: dict[str, Any]) -> list[tuple[str, list[float], list[float]]]:
    """Return what a query answers over the hour: of each series its name, its minutes and its values."""
    if "ALERTS{" in target["expr"]:
        return []  # what Prometheus judges as time goes by cannot be replayed at once
    query = target["expr"].replace("$__rate_interval", f"{4 * STEP_S}s").replace("${model}", ".*")
    asked = {"query": query, "start": START, "end": START + MINUTES * 60, "step": 60}
    with urllib.request.urlopen(f"{url}/api/v1/query_range?{urllib.parse.urlencode(asked)}", timeout=60) as answer:  # noqa: S310
        found = json.load(answer)["data"]["result"]
    series = []
    for entry in found:
        name = str(target["legendFormat"])
        for label in re.findall(r"\{\{(\w+)\}\}", name):
            name = name.replace(f"{{{{{label}}}}}", entry["metric"].get(label, ""))
        points = [((at - START) / 60, float(value)) for at, value in entry["values"] if value != "NaN"]
        if points:
            minutes, values = zip(*points)
            series.append((name.strip(), list(minutes), list(values)))
    return sorted(series)


def short(value: float, unit: str) -> str:
    """Return a value in its unit."""
    if unit == "percentunit":
        return f"{value:.3g} %" if (value := value * 100) < 100 else f"{value:.0f} %"
    return f"{value:.3g}{' s' if unit == 's' else ''}" if value < 1000 else f"{value:,.0f}"


def paint(figure: Any, url: str, board: dict[str, Any]) -> None:
    """Draw all panels."""
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
    for panel in board["panels"]:
        place, unit = panel["gridPos"], panel["fieldConfig"]["defaults"]["unit"]
        left, bottom = place["x"] / grafana.COLUMNS, 1 - (place["y"] + place["h"]) / rows
        width, height = place["w"] / grafana.COLUMNS, place["h"] / rows
        axes = figure.add_axes((left + 0.03, bottom + 0.25 * height, width - 0.04, 0.58 * height))
        axes.set_title(panel["title"], loc="left", fontsize=9, color=plots.INK)
        series = [line for target in panel["targets"] for line in answers(url, target)]
        if not series or panel["type"] == "stat":
            axes.set_axis_off()
            text = short(series[0][2][-1], unit) if series else f"not in this replay. {panel['description']}"
            wrapped = textwrap.fill(text, 9 * place["w"])
            size, colour = (22, plots.INK) if series else (7, plots.MUTED)
            axes.text(0.0, 0.45, wrapped, fontsize=size, color=colour, va="center")
            continue
        for number, (name, minutes, values) in enumerate(series):
            style = ("-", "--", ":")[number // len(plots.SERIES) % 3]
            axes.plot(
                minutes,
                values,
                style,
                color=plots.SERIES[number % len(plots.SERIES)],
                linewidth=1.2,
                label=name or "none",
            )
        axes.set_xlim(0, MINUTES)
        axes.set_ylim(bottom=0)
        axes.tick_params(labelsize=7)
        axes.yaxis.set_major_formatter(lambda value, _place, unit=unit: short(value, unit))
        axes.legend(
            loc="upper left", bbox_to_anchor=(0, -0.1), fontsize=6, ncols=3, borderaxespad=0.2, handlelength=1.2
        )


def picture(url: str, board: dict[str, Any]) -> str:
    """Return the dashboard as SVG, in the report's colours, light or dark as the reader's screen."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
    style: Any = {**plots.STYLE, "svg.hashsalt": board["uid"]}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(INCHES, rows * ROW_INCHES))
        FigureCanvasSVG(figure)
        paint(figure, url, board)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = re.sub(r"<metadata>.*?</metadata>", "", stream.getvalue(), count=1, flags=re.DOTALL)
    for colour, variable in plots.VARIABLES.items():
        svg = svg.replace(colour, variable)
    colours = CSS.read_text(encoding="utf-8").partition("\nbody")[0]
    sheet = f"<style>{colours}\nsvg {{ background: var(--card); }}</style>"
    return re.sub(r"(<svg [^>]*>)", rf"\1{sheet}", svg, count=1)


def main() -> None:
    """Make the hour, ask Prometheus and draw."""
    limits = thresholds.read_thresholds({})
    board = grafana.dashboards(limits["ttft_goal_seconds"])["gpufleet-fleet.json"]
    rules = alert_rules.rule_groups(limits, runbooks="", node_job="node", certificates={})["groups"][:1]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with (folder / "hour.txt").open("w", encoding="utf-8") as stream:
            stream.writelines(f"{line}\n" for line in history(json.dumps([board, rules])))
        (folder / "rules.json").write_text(json.dumps({"groups": rules}), encoding="utf-8")
        promtool(folder, "tsdb", "create-blocks-from", "openmetrics", "hour.txt", "data")
        with prometheus(folder) as url:
            span = [f"--start={START}", f"--end={START + MINUTES * 60}", f"--url={url}", "--output-dir=data"]
            promtool(folder, "tsdb", "create-blocks-from", "rules", *span, "--eval-interval=1m", "rules.json")
        with prometheus(folder) as url:
            PICTURE.parent.mkdir(parents=True, exist_ok=True)
            PICTURE.write_text(picture(url, board), encoding="utf-8")
    print(PICTURE)


if __name__ == "__main__":
    main()
