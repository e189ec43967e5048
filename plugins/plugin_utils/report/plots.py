# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plots of the report, by matplotlib, as SVG that lives in the page: its text is text, its colours are the page's.

Each plot is drawn twice, wide and narrow; the page shows the one that fits the screen. matplotlib has no notion of a
page's colours, so it draws in stand-ins, each of which is then replaced by a variable of the page's style sheet.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED, GRID, GOOD, BAD = "#010101", "#020202", "#030303", "#040404", "#050505"
SERIES = ("#060606", "#070707", "#080808", "#090909", "#0a0a0a", "#0b0b0b")
VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--line)",
    GOOD: "var(--good)",
    BAD: "var(--bad)",
    **{colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, 1)},
}
MARKERS = "osD^vP"
SIZES = {"wide": (8.6, 3.9), "narrow": (4.3, 4.1)}
MOST_SCORES = 24
MOST_LINES = 40
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10.5,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.labelcolor": INK,
}


def draw(document: Mapping[str, Any]) -> dict[str, str]:
    """Return the plots of a report (report.build) that its measurements allow: names to SVG.

    Where not all is drawn, C(accuracy_note) and C(curve_note) say how much is.

    Raises:
        ImportError: when matplotlib is not installed.
    """
    found = {}
    every_score, every_line = scores_of(document), curves_of(document)
    scores = chosen(every_score, MOST_SCORES, lambda score: not score["passed"])
    # Those that matter are drawn last, on top.
    lines = chosen(every_line, MOST_LINES, lambda line: bool(line["unlike"]))
    lines.sort(key=lambda line: bool(line["unlike"]))
    if scores:
        found["accuracy"] = _both("accuracy", lambda axes: _draw_scores(axes, scores), 0.8 + 0.6 * len(scores))
    if any(len(line["points"]) > 1 for line in lines):
        found["curve"] = _both("curve", lambda axes: _draw_curves(axes, lines))
    if "accuracy" in found and len(scores) < len(every_score):
        servers = [len({score["server"] for score in some}) for some in (scores, every_score)]
        found["accuracy_note"] = (
            f"{len(scores)} of {len(every_score)} scores are drawn, of {servers[0]} of {servers[1]} servers: first"
            " those below their floors, then as many of each task and kind of plan."
        )
    if "curve" in found and len(lines) < len(every_line):
        found["curve_note"] = (
            f"{len(lines)} of {len(every_line)} servers are drawn: first those unlike their equals, then as many of"
            " each kind of plan."
        )
    return found


def chosen(
    items: Sequence[dict[str, Any]], most: int, matters: Callable[[Mapping[str, Any]], bool]
) -> list[dict[str, Any]]:
    """Return about C(most) of the items: first those that matter, then the rest, each an equal share of every C(kind).

    At least one of each kind is there, and those of a kind are taken from all over the fleet.
    """
    first = _shared([item for item in items if matters(item)], most)
    rest = [item for item in items if not matters(item)]
    return first + _shared(rest, max(most - len(first), len({item["kind"] for item in rest})))


def _shared(items: Sequence[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """Return at most C(most) items in their order, as equal a share of each kind as there is."""
    kinds: dict[str, list[int]] = {}
    for number, item in enumerate(items):
        kinds.setdefault(item["kind"], []).append(number)
    taken: list[int] = []
    # Small kinds first: what they leave is for the others.
    for left, numbers in zip(range(len(kinds), 0, -1), sorted(kinds.values(), key=len), strict=True):
        share = min(len(numbers), (most - len(taken)) // left)
        taken += [numbers[place * len(numbers) // share] for place in range(share)]
    return [items[number] for number in sorted(taken)]


def scores_of(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the scores that could be plotted: C(label), C(value), C(stderr), C(floor), C(passed).

    C(kind) is what a fair choice of them has a share of, C(server) whose they are.
    """
    found = []
    several = sum(len(entry["stages"]["accuracy"]) for entry in document["hosts"]) > 1
    for entry in document["hosts"]:
        for item in entry["stages"]["accuracy"]:
            gates = {gate["metric"]: gate for gate in item.get("gates", [])}
            for score in item.get("scores", []):
                gate = gates.get(f"{score['task']} {score['metric']}")
                where = f"{entry['name']} {item['server']}\n" if several else ""
                found.append(
                    {
                        "label": f"{where}{score['task']} {_short(score['metric'])}",
                        "value": score["value"],
                        "stderr": score["stderr"] or 0.0,
                        "floor": gate["limit"] if gate else None,
                        "passed": not gate or gate["passed"],
                        "kind": f"{_kind(entry['plan'])} {score['task']} {score['metric']}",
                        "server": f"{entry['name']} {item['server']}",
                    }
                )
    return found


def _short(metric: str) -> str:
    """Return the part of a metric's name that tells it from others of its task: the filter, if there is one."""
    name, _comma, filter_name = metric.partition(",")
    return name if filter_name in ("", "none") else filter_name


def curves_of(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a line for each measured server: C(kind) (what it shares its colour with) and C(points), by concurrency.

    A point is C(concurrency), C(latency_s) (median E2EL) and C(throughput), output tokens/s, for each GPU if there are.
    C(unlike) names the server if it is among the report's outliers.
    """
    found: list[dict[str, Any]] = []
    unlike = {(outlier["host"], outlier["server"]) for outlier in document["outliers"]}
    for entry in document["hosts"]:
        for item in entry["stages"]["performance"]:
            points: list[dict[str, Any]] = []
            for point in item.get("points", []):
                summary = {name: values["mean"] for name, values in point["summary"].items()}
                throughput = summary.get("output_throughput_per_gpu", summary.get("output_throughput"))
                if throughput and "median_e2el_ms" in summary:
                    latency_s = summary["median_e2el_ms"] / 1000
                    points.append(
                        {"concurrency": point["concurrency"], "latency_s": latency_s, "throughput": throughput}
                    )
            if points:
                name = (entry["name"], item["server"])
                found.append(
                    {
                        "kind": _kind(entry["plan"]),
                        "points": sorted(points, key=lambda p: p["concurrency"]),
                        "unlike": " ".join(name) if name in unlike else "",
                    }
                )
    return found


def _kind(plan: Mapping[str, Any]) -> str:
    if not plan:
        return "endpoint"
    size = plan["replicas"][0]["tensor_parallel_size"]
    return f"{plan['profile']}, {plan['precision']}" + (f", TP {size}" if plan["device"] != "cpu" else "")


def _draw_scores(axes: Axes, scores: Sequence[Mapping[str, Any]]) -> None:
    rows = range(len(scores))
    for row, score in zip(rows, scores, strict=True):
        colour = GOOD if score["passed"] else BAD
        axes.errorbar(
            score["value"], row, xerr=score["stderr"], fmt="o", color=colour, markersize=6, capsize=4, linewidth=1.6
        )
        axes.annotate(
            f"{score['value']:.3f}",
            (score["value"] + score["stderr"], row),
            (7, 0),
            textcoords="offset points",
            va="center",
            color=INK,
        )
        if score["floor"] is not None:
            axes.plot([score["floor"]] * 2, [row - 0.3, row + 0.3], color=INK, linewidth=2.5, zorder=1)
    axes.set_yticks(list(rows), [score["label"] for score in scores])
    axes.set_ylim(len(scores) - 0.4, -0.75)
    edges = [score["value"] + sign * score["stderr"] for score in scores for sign in (-1.2, 3)]
    edges += [score["floor"] for score in scores if score["floor"] is not None]
    low, high = min(edges), max(edges)
    margin = max(0.03, (high - low) * 0.12)
    # Most scores are shares; others, such as a perplexity, are not.
    drawn = [score["value"] for score in scores] + [score["floor"] for score in scores if score["floor"] is not None]
    shares = all(0 <= value <= 1 for value in drawn)
    axes.set_xlim(*(max(low - margin, -0.02), min(high + margin, 1.02)) if shares else (low - margin, high + margin))
    axes.set_xlabel("score ± one standard error")
    axes.grid(axis="y", visible=False)


def _draw_curves(axes: Axes, lines: Sequence[Mapping[str, Any]]) -> None:
    kinds = list(dict.fromkeys(line["kind"] for line in lines))
    labelled: set[str] = set()
    for line in lines:
        number = kinds.index(line["kind"]) % len(SERIES)
        points = line["points"]
        axes.plot(
            [point["latency_s"] for point in points],
            [point["throughput"] for point in points],
            color=BAD if line["unlike"] else SERIES[number],
            marker=MARKERS[number],
            markersize=6,
            linewidth=1.8,
            label=line["kind"] if line["kind"] not in labelled else None,
        )
        if line["unlike"]:
            last = points[-1]
            axes.annotate(
                line["unlike"],
                (last["latency_s"], last["throughput"]),
                (0, -16),
                textcoords="offset points",
                ha="right",
                color=BAD,
                fontsize=9,
            )
        if line["kind"] not in labelled:
            for point in points:
                axes.annotate(
                    str(point["concurrency"]),
                    (point["latency_s"], point["throughput"]),
                    (0, 8),
                    textcoords="offset points",
                    ha="center",
                    color=MUTED,
                    fontsize=9,
                )
        labelled.add(line["kind"])
    every = [point for line in lines for point in line["points"]]
    axes.set_xlim(0, max(point["latency_s"] for point in every) * 1.08)
    axes.set_ylim(0, max(point["throughput"] for point in every) * 1.15)
    axes.set_xlabel("median end-to-end latency, s")
    axes.set_ylabel("output tokens/s")
    if len(kinds) > 1:
        axes.legend(loc="lower right")


def draw_front(points: Sequence[Mapping[str, Any]]) -> str:
    """Return the plot of a sweep as SVG.

    Args:
        points: each C(speed), C(throughput), C(concurrency), whether it is on the C(front), and C(judged): C(wins),
            C(keeps the goal) or C(misses it).

    Raises:
        ImportError: when matplotlib is not installed.
    """
    return _both("front", lambda axes: _draw_front(axes, points))


def _draw_front(axes: Axes, points: Sequence[Mapping[str, Any]]) -> None:
    best = sorted((point for point in points if point["front"]), key=lambda point: point["speed"])
    axes.plot(
        [point["speed"] for point in best],
        [point["throughput"] for point in best],
        color=SERIES[0],
        linewidth=1.8,
        label="Pareto front",
    )
    kinds = {"wins": (GOOD, "D"), "keeps the goal": (SERIES[0], "o"), "misses it": (MUTED, "x")}
    for label, (colour, marker) in kinds.items():
        chosen_points = [point for point in points if point["judged"] == label]
        if chosen_points:
            speeds = [point["speed"] for point in chosen_points]
            rates = [point["throughput"] for point in chosen_points]
            axes.plot(speeds, rates, color=colour, marker=marker, markersize=7, linestyle="none", label=label)
    for point in best:
        axes.annotate(
            str(point["concurrency"]),
            (point["speed"], point["throughput"]),
            (0, 8),
            textcoords="offset points",
            ha="center",
            color=MUTED,
            fontsize=9,
        )
    axes.set_xlim(0, max((point["speed"] for point in points), default=1.0) * 1.1)
    axes.set_ylim(0, max((point["throughput"] for point in points), default=1.0) * 1.15)
    axes.set_xlabel("output tokens/s that one request sees")
    axes.set_ylabel("output tokens/s")
    axes.legend(loc="best")


def _both(name: str, paint: Callable[[Axes], None], height: float | None = None) -> str:
    """Return the plot as two SVG pictures, of which the page's style sheet shows one."""
    return "".join(_svg(name, size, paint, (width, height or tall)) for size, (width, tall) in SIZES.items())


def _svg(name: str, size: str, paint: Callable[[Axes], None], inches: tuple[float, float]) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # Pictures of one page must not share the names of their parts; the salt makes those names the same each time.
    style: Any = {**STYLE, "svg.hashsalt": f"{name}-{size}"}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=inches, layout="constrained")
        FigureCanvasSVG(figure)
        paint(figure.add_subplot())
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(
        r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', rf'<svg viewBox="\1" class="plot {size}" role="img">', svg, count=1
    )
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font-size: \1", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg
