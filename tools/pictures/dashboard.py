"""Draw docs/dashboard.png and docs/dashboard-top.png: a preview of the Grafana dashboard, from a real run.

A real Prometheus scrapes real pools under load and faults, as tests/support/stage.py sets them up, and answers the
queries of each panel. matplotlib draws the answers at the panel's position; Grafana draws better.
Run it with `python -m tools.pictures.dashboard` or `make preview`."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'tests' / 'support'))

import boards  # noqa: E402
import stage  # noqa: E402

from gcp.demo.server import serve  # noqa: E402

ACTS = (25.0, 35.0, 0.0)
INTERVAL = '3s'
TOP_ROWS = 3

COLUMN, UNIT, HEAD, GAP = 54, 35, 118, 8
WIDTH = 24 * COLUMN
BACKGROUND, PANEL, EDGE, GRID, TEXT, SOFT = '#111217', '#181b1f', '#2b2e35', '#2a2d33', '#d5d6e0', '#9a9ba6'
COLORS = {
    'green': '#73bf69',
    'blue': '#5794f2',
    'yellow': '#fade2a',
    'orange': '#ff9830',
    'red': '#f2495c',
    'purple': '#b877d9',
}
PALETTE = (
    '#73bf69',
    '#f2cc0c',
    '#8ab8ff',
    '#ff780a',
    '#f2495c',
    '#5794f2',
    '#b877d9',
    '#705da0',
    '#37872d',
    '#fade2a',
    '#447ebc',
    '#c15c17',
    '#e0b400',
    '#96d98d',
    '#ffa6b0',
    '#ca95e5',
    '#c0d8ff',
    '#c4162a',
    '#ffb357',
    '#56a64b',
)
HEAT = LinearSegmentedColormap.from_list('heat', ['#1f1d3d', '#3b4cc0', '#22b8cf', '#8fd744', '#fde725', '#e8462e'])
SMALL, MEDIUM, LARGE = 9.8, 11, 19.5


# --- figures and their units ---


def tell(value: float, unit: str) -> str:
    """Write a figure as Grafana does."""
    if unit == 's':
        for size, name in ((3600, 'h'), (60, 'min'), (1, 's'), (1e-3, 'ms')):
            if abs(value) >= size:
                return f'{value / size:.3g} {name}'
        return f'{value * 1e6:.3g} µs' if value else '0 s'
    if unit == 'percentunit':
        return f'{value * 100:.3g}%'
    if abs(value) >= 1000:
        return f'{value / 1000:.3g} K'
    return f'{value:.3g}' + (' ops/s' if unit == 'ops' else '')


def short(value: float, unit: str) -> str:
    """Write a figure at an axis."""
    return tell(value, unit).removesuffix(' ops/s')


# --- the paper ---


class Paper:
    """A figure that is measured in pixels, from the top."""

    def __init__(self, height: int) -> None:
        self.height = height
        self.colors: dict[str, str] = {}  # by a series' name: the same in all panels
        self.figure = Figure(figsize=(WIDTH / 100, height / 100), dpi=100, facecolor=BACKGROUND)

    def axes(self, x: float, y: float, width: float, height: float) -> Any:
        axes = self.figure.add_axes(
            (x / WIDTH, 1 - (y + height) / self.height, width / WIDTH, height / self.height), facecolor=PANEL
        )
        axes.tick_params(colors=SOFT, labelsize=SMALL, length=0, pad=5)
        for spine in axes.spines.values():
            spine.set_visible(False)
        return axes

    def box(self, x: float, y: float, width: float, height: float, color: str = PANEL, edge: str = EDGE) -> None:
        self.figure.add_artist(
            FancyBboxPatch(
                (x / WIDTH, 1 - (y + height) / self.height),
                width / WIDTH,
                height / self.height,
                boxstyle='round,pad=0,rounding_size=0.002',
                mutation_aspect=WIDTH / self.height,
                facecolor=color,
                edgecolor=edge,
                linewidth=1,
                transform=self.figure.transFigure,
                zorder=-5,
            )
        )

    def text(self, x: float, y: float, text: str, size: float = SMALL, color: str = TEXT, **style: Any) -> None:
        self.figure.text(x / WIDTH, 1 - y / self.height, text, size=size, color=color, va='center', **style)

    def line(self, x: float, y: float, color: str, dashed: bool) -> None:
        self.figure.add_artist(
            Line2D(
                (x / WIDTH, (x + 18) / WIDTH),
                (1 - y / self.height,) * 2,
                color=color,
                linewidth=3,
                linestyle=(0, (1.5, 1)) if dashed else '-',
                transform=self.figure.transFigure,
            )
        )


# --- panels ---


def order(series: stage.Series) -> Any:
    """Put those last of which there is nothing to be seen: not every legend has room for all."""
    return not any(value for _, value in series.finite), sorted(series.labels.items())


class Drawn:
    """One panel's place and answers."""

    def __init__(self, paper: Paper, panel: dict[str, Any], play: stage.Play) -> None:
        self.paper, self.panel = paper, panel
        at = panel['gridPos']
        self.x, self.y = at['x'] * COLUMN + GAP / 2, HEAD + at['y'] * UNIT + GAP / 2
        self.width, self.height = at['w'] * COLUMN - GAP, at['h'] * UNIT - GAP
        self.unit = panel['fieldConfig']['defaults']['unit']
        self.began, self.ended = play.began[0], play.began[2]  # peace, and trouble
        self.fixed: dict[str, str] = {}
        self.dashed: set[str] = set()
        for rule in panel['fieldConfig']['overrides']:
            values = {each['id']: each['value'] for each in rule['properties']}
            if 'color' in values:
                self.fixed[rule['matcher']['options']] = values['color']['fixedColor']
            if 'custom.lineStyle' in values:
                self.dashed.add(rule['matcher']['options'])
        self.answers = list(self._ask(play))
        paper.box(self.x, self.y, self.width, self.height)

    def _ask(self, play: stage.Play) -> Iterator[tuple[str, str, stage.Series]]:
        for target in self.panel['targets']:
            found = play.prometheus.series(boards.substitute(target['expr'], INTERVAL), self.began, self.ended)
            for series in sorted(found, key=order):
                legend = target['legendFormat']
                for label, value in series.labels.items():
                    legend = legend.replace(f'{{{{{label}}}}}', value)
                yield target['refId'], legend, series

    def draw(self) -> None:
        self.paper.text(self.x + 12, self.y + 19, self.panel['title'], MEDIUM)
        getattr(self, self.panel['type'])()

    def stat(self) -> None:
        ((_, _, series),) = self.answers
        values = [value for _, value in series.finite]
        steps = self.panel['fieldConfig']['defaults']['thresholds']['steps']
        color = [step['color'] for step in steps if step['value'] is None or values[-1] >= step['value']][-1]
        color = COLORS[color]
        axes = self.paper.axes(self.x + 1, self.y + self.height * 0.62, self.width - 2, self.height * 0.37)
        axes.plot(values, color=color, linewidth=1.2)
        axes.fill_between(range(len(values)), values, color=color, alpha=0.2, linewidth=0)
        axes.set(xlim=(0, len(values) - 1), ylim=(0, max(values) * 1.1 or 1), xticks=[], yticks=[])
        figure = tell(values[-1], self.unit)
        size = min(LARGE, 1.15 * self.width / len(figure))
        self.paper.text(self.x + self.width / 2, self.y + self.height * 0.46, figure, size, color, ha='center')

    def timeseries(self) -> None:
        legend = self._legend()
        left, bottom = 72, 28 + 21 * len(legend)
        axes = self.paper.axes(self.x + left, self.y + 36, self.width - left - 12, self.height - 36 - bottom)
        stacked = 'stacking' in self.panel['fieldConfig']['defaults']['custom']
        below: Any = None
        highest = 0.0
        for letter, name, series in self.answers:
            at, values = self._grid(series)
            color, dashed = self._color(letter, name), letter in self.dashed
            if stacked and not np.nan_to_num(values).any():
                continue
            if stacked and not dashed:
                total = np.nan_to_num(values) + (0 if below is None else below)
                axes.fill_between(at, 0 if below is None else below, total, color=color, alpha=0.3, linewidth=0)
                axes.plot(at, total, color=color, linewidth=1.3)
                below = values = total
            else:
                axes.plot(
                    at,
                    values,
                    color=color,
                    linewidth=1.5,
                    linestyle=(0, (5, 3)) if dashed else '-',
                    zorder=2 if dashed else 3,
                )
                if not dashed:
                    axes.fill_between(at, 0, values, color=color, alpha=0.06, linewidth=0)
            highest = max(highest, float(np.nanmax(values)) if np.isfinite(values).any() else 0)
        if 'thresholdsStyle' in self.panel['fieldConfig']['defaults']['custom']:
            line = self.panel['fieldConfig']['defaults']['thresholds']['steps'][-1]['value']
            axes.axhline(line, color=COLORS['red'], linewidth=1.5, linestyle=(0, (5, 3)), zorder=2)
            highest = max(highest, line)
        axes.set_ylim(0, highest * 1.08 or 1)
        whole = self.unit == 'short' and highest >= 3
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10], integer=whole))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value, self.unit)))
        self._time(axes)
        axes.grid(color=GRID, linewidth=0.8)
        y = self.y + self.height - 21 * len(legend) + 7
        for line_of in legend:
            for x, name, color, dashed in line_of:
                self.paper.line(x, y, color, dashed)
                self.paper.text(x + 25, y, name, SMALL, SOFT)
            y += 21

    def _legend(self) -> list[list[tuple[float, str, str, bool]]]:
        """Lay the legend out in two lines at most; what does not fit is told by number."""
        lines: list[list[tuple[float, str, str, bool]]] = [[]]
        x = self.x + 16
        entries = [(name, self._color(letter, name), letter in self.dashed) for letter, name, _ in self.answers]
        for number, (name, color, dashed) in enumerate(entries):
            width = 25 + 7.6 * len(name) + 14
            room = self.x + self.width - 8 - (90 if len(lines) == 2 and number + 1 < len(entries) else 0)
            if x + width > room:
                if len(lines) == 2:
                    lines[-1].append((x - 25, f'and {len(entries) - number} more', PANEL, False))
                    break
                lines.append([])
                x = self.x + 16
            lines[-1].append((x, name, color, dashed))
            x += width
        return lines

    def heatmap(self) -> None:
        bounds = sorted({float(series.labels['le']) for _, _, series in self.answers})
        rows = {float(series.labels['le']): self._grid(series)[1] for _, _, series in self.answers}
        at = self._grid(self.answers[0][2])[0]
        counts = np.diff(np.vstack([np.zeros(len(at)), *(np.nan_to_num(rows[bound]) for bound in bounds)]), axis=0)
        shown = np.flatnonzero(counts.max(axis=1) > 0.05)
        low, high = shown[0], shown[-1] + 1
        axes = self.paper.axes(self.x + 72, self.y + 44, self.width - 84, self.height - 44 - 32)
        cells = np.where(counts[low:high] > 0.05, np.sqrt(np.clip(counts[low:high], 0, None)), np.nan)
        axes.pcolormesh(at, np.arange(high - low + 1), cells[:, :-1], cmap=HEAT, antialiased=False)
        axes.hlines(range(high - low), self.began, self.ended, color=PANEL, linewidth=1)
        ticks = range(0, high - low, max(1, (high - low) // 6))
        names = [short(bounds[low + tick], 's') if bounds[low + tick] < float('inf') else '+Inf' for tick in ticks]
        axes.set_yticks([tick + 1 for tick in ticks], names)
        self._time(axes)

    def table(self) -> None:
        labels = ['pool', 'frontend', 'version', 'job', 'instance']
        xs = [self.x + 16 + i * (self.width - 32) / len(labels) for i in range(len(labels))]
        for x, label in zip(xs, labels, strict=True):
            self.paper.text(x, self.y + 50, label, SMALL, COLORS['blue'])
        for row, (_, _, series) in enumerate(self.answers):
            for x, label in zip(xs, labels, strict=True):
                self.paper.text(x, self.y + 77 + row * 24, series.labels[label])

    def _grid(self, series: stage.Series) -> tuple[Any, Any]:
        """Put samples on a common grid, gaps included."""
        count = round((self.ended - self.began) / stage.SCRAPE) + 1
        values = np.full(count, np.nan)
        for at, value in series.finite:
            values[min(count - 1, round((at - self.began) / stage.SCRAPE))] = value
        return self.began + np.arange(count) * stage.SCRAPE, values

    def _color(self, letter: str, name: str) -> str:
        chosen = self.fixed.get(name) or self.fixed.get(letter)
        if chosen:
            return COLORS.get(chosen, chosen)
        known = self.paper.colors
        return known.setdefault(name, PALETTE[len(known) % len(PALETTE)])

    def _time(self, axes: Any) -> None:
        axes.set_xlim(self.began, self.ended)
        step = 10 if self.width > 500 else 20
        ticks = np.arange(np.ceil(self.began / step) * step, self.ended - step / 6, step)
        axes.set_xticks(ticks, [time.strftime('%H:%M:%S', time.localtime(tick)) for tick in ticks])


# --- the page ---


def draw_page(play: stage.Play, rows: int) -> Paper:
    """Draw the first rows of the dashboard."""
    panels: list[dict[str, Any]] = []
    for panel in boards.DASHBOARD['panels']:
        rows -= panel['type'] == 'row'
        if rows < 0:
            break
        panels.append(panel)
    depth = max(panel['gridPos']['y'] + panel['gridPos']['h'] for panel in panels)
    paper = Paper(HEAD + depth * UNIT + 12)
    draw_head(paper)
    for panel in panels:
        if panel['type'] == 'row':
            y = HEAD + (panel['gridPos']['y'] + 0.5) * UNIT
            paper.text(14, y, '\N{BLACK DOWN-POINTING SMALL TRIANGLE}', MEDIUM, SOFT)
            paper.text(34, y, panel['title'], 12.5)
        else:
            Drawn(paper, panel, play).draw()
    return paper


def draw_head(paper: Paper) -> None:
    paper.text(16, 22, boards.DASHBOARD['title'], 14)
    paper.text(
        16,
        48,
        'A preview, not Grafana: the queries of the dashboard, answered by a real Prometheus, drawn with matplotlib. '
        'Seven pools, of which six run into trouble.',
        SMALL,
        SOFT,
        style='italic',
    )
    x = 16.0
    for name, variable in (*boards.variables('datasource').items(), *boards.variables().items()):
        value = 'prometheus' if name == 'datasource' else 'All'
        label_width, value_width = 9.0 * len(variable['label']) + 18, 9.0 * len(value) + 40
        paper.box(x, 70, label_width, 30, '#22252b')
        paper.text(x + 9, 85, variable['label'], SMALL, TEXT)
        paper.box(x + label_width, 70, value_width, 30, BACKGROUND)
        paper.text(x + label_width + 9, 85, value, SMALL, COLORS['blue'])
        paper.text(x + label_width + value_width - 18, 85, '\N{BLACK DOWN-POINTING SMALL TRIANGLE}', SMALL, SOFT)
        x += label_width + value_width + 12


def save(paper: Paper, path: Path) -> None:
    """Write a picture that is small: lines on a dark ground need few colours."""
    paper.figure.savefig(path, facecolor=BACKGROUND)
    with Image.open(path) as full:
        small = full.convert('RGB').quantize(256, dither=Image.Dither.NONE)
    small.save(path, optimize=True)
    print(f'{path.relative_to(ROOT)}: {small.width} x {small.height}, {path.stat().st_size // 1024} KB')


def main() -> None:
    mpl.rcParams['font.family'] = 'DejaVu Sans'
    mpl.rcParams['axes.edgecolor'] = EDGE
    with (
        tempfile.TemporaryDirectory(prefix='gcp-') as directory,
        serve(max_connections=50) as server,
        stage.play(server, Path(directory), ACTS) as play,
    ):
        save(draw_page(play, 99), ROOT / 'docs' / 'dashboard.png')
        save(draw_page(play, TOP_ROWS), ROOT / 'docs' / 'dashboard-top.png')


if __name__ == '__main__':
    main()
