"""The comparison as a picture: what an idle hit takes, and how evenly those who wait are served.

It has a background of its own, so that it is readable on a light and on a dark page. Text stays text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import NullFormatter

from . import figures
from .measure import TASK_CASES, THREAD_CASES, Case, Comparison, Line
from .table import OURS

CARD, EDGE, TEXT, SOFT, GRID = '#ffffff', '#d0d7de', '#1f2328', '#59636e', '#e6eaef'
OUR_COLOR, THEIR_COLOR, BARE_COLOR = '#0a7d5a', '#8fa6bd', '#c9d3dd'
SETTINGS = {
    'svg.fonttype': 'none',
    'svg.hashsalt': 'peers',
    'font.family': 'sans-serif',
    'font.sans-serif': ['DejaVu Sans', 'Arial'],
    'font.size': 9,
    'text.color': TEXT,
    'xtick.color': SOFT,
    'ytick.color': TEXT,
}
HEAD, ROW = 0.72, 0.235
WIDTH = 8.6


def draw(seen: Comparison, path: Path) -> None:
    """Draw the peers that were measured, those for threads above those for asyncio."""
    groups = [
        ('threads', [line for line in seen.threads if not line.reason], THREAD_CASES[0]),
        ('asyncio', [line for line in seen.tasks if not line.reason], TASK_CASES[0]),
    ]
    with mpl.rc_context(SETTINGS):
        rows = [len(lines) + 2.0 for _, lines, _ in groups]
        height = HEAD + ROW * sum(rows)
        figure = Figure(figsize=(WIDTH, height))
        figure.patch.set_alpha(0)
        figure.add_artist(
            FancyBboxPatch(
                (0.004, 0.004),
                0.992,
                0.992,
                boxstyle='round,pad=0,rounding_size=0.012',
                mutation_aspect=WIDTH / height,
                facecolor=CARD,
                edgecolor=EDGE,
                linewidth=1,
                transform=figure.transFigure,
                zorder=-1,
            )
        )
        title(
            figure, 0.27, height, 'An idle connection, taken and given back', 'processor time; the scale is logarithmic'
        )
        title(figure, 0.73, height, 'Fairness under load', "Jain's index; 1: all are served as often")
        above = height - HEAD
        slowest = max(line.pair or 0 for _, lines, _ in groups for line in lines)
        for (name, lines, case), size in zip(groups, rows, strict=True):
            box = (above - ROW * (len(lines) + 1)) / height, ROW * len(lines) / height
            figure.text(0.02, (above - ROW * 0.62) / height, name, weight='bold')
            figure.text(0.73, (above - ROW * 0.62) / height, case.title, color=SOFT, size=8)
            draw_hits(figure.add_axes((0.27, box[0], 0.36, box[1])), lines, slowest)
            draw_fairness(figure.add_axes((0.73, box[0], 0.19, box[1])), lines, case)
            above -= ROW * size
        figure.savefig(path, format=path.suffix[1:], metadata={'Date': None} if path.suffix == '.svg' else None)
    if path.suffix == '.svg':
        path.write_text('\n'.join(line.rstrip() for line in path.read_text().splitlines()) + '\n')


def title(figure: Figure, left: float, height: float, what: str, how: str) -> None:
    figure.text(left, 1 - 0.32 / height, what, weight='bold', size=10)
    figure.text(left, 1 - 0.53 / height, how, color=SOFT, size=8)


def draw_hits(axes: Axes, lines: Sequence[Line], slowest: float) -> None:
    times = [line.pair or 0 for line in lines]
    axes.barh(range(len(lines)), times, color=colors(lines), height=0.72)
    axes.set_xscale('log')
    axes.set_xlim(20, slowest * 6)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(lines)), [line.peer.name for line in lines])
    for number, line in enumerate(lines):
        write(axes, times[number] * 1.12, number, figures.duration(times[number]), line)
    finish(axes, lines, {figures.duration(tick): tick for tick in (100, 1000, 10_000, 100_000)})


def draw_fairness(axes: Axes, lines: Sequence[Line], case: Case) -> None:
    values = [line.loads[case.title].fairness for line in lines]
    axes.barh(range(len(lines)), values, color=colors(lines), height=0.72)
    axes.set_xlim(0, 1)
    axes.set_yticks([])
    for number, line in enumerate(lines):
        write(axes, values[number] + 0.03, number, f'{values[number]:.2f}', line)
    finish(axes, lines, {'0': 0, '0.5': 0.5, '1': 1})


def colors(lines: Sequence[Line]) -> list[str]:
    return [
        OUR_COLOR if line.peer.name == OURS else THEIR_COLOR if line.peer.packages else BARE_COLOR for line in lines
    ]


def write(axes: Axes, x: float, y: float, text: str, line: Line) -> None:
    axes.text(x, y, text, va='center', size=8, weight='bold' if line.peer.name == OURS else 'normal')


def finish(axes: Axes, lines: Sequence[Line], ticks: Mapping[str, float]) -> None:
    axes.set_ylim(len(lines) - 0.5, -0.5)  # the first on top
    axes.set_xticks(list(ticks.values()), list(ticks), size=7)
    axes.patch.set_alpha(0)
    axes.grid(axis='x', color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which='both', length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for label, line in zip(axes.get_yticklabels(), lines, strict=False):
        label.set_weight('bold' if line.peer.name == OURS else 'normal')
