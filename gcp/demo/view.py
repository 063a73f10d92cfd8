"""What can be seen while it runs: on a terminal a table that changes in place, on a pipe a line each second."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from gcp.demo.databases import ENDPOINTS
from gcp.demo.losses import Losses, noticed
from gcp.demo.tally import milliseconds
from gcp.demo.work import Load
from gcp.stats import EndpointStats, PoolStats

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ['View', 'open_view']


@dataclass(frozen=True)
class Sight:
    """A load at one moment. Rate and waits are those since the sight before.

    :ivar load: the load
    :ivar stats: its pool
    :ivar rate: acquires per second
    :ivar p50: how long half of them waited at most
    :ivar p99: how long all but one in a hundred waited at most
    """

    load: Load
    stats: PoolStats[str]
    rate: str
    p50: str
    p99: str

    def __str__(self) -> str:
        return (
            f'{self.load.name}: {self.stats.idle} idle, {self.stats.used} used, {self.stats.waiting} waiting, '
            f'{self.rate}/s, wait {self.p50} p50, {self.p99} p99'
        )


class Gauge:
    """Looks at a load again and again."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._seen, self._at = load.tally.read(), time.monotonic()

    def look(self) -> Sight:
        seen, at = self._load.tally.read(), time.monotonic()
        served, waits, since = seen.served - self._seen.served, seen.waits - self._seen.waits, at - self._at
        self._seen, self._at = seen, at
        rate = f'{served / max(since, 1e-3):,.0f}'
        return Sight(self._load, self._load.stats(), rate, milliseconds(waits, 0.5), milliseconds(waits, 0.99))


class View(Protocol):
    """Shows the loads, from `with` on until its end.

    :ivar interval: how often, seconds
    """

    interval: float

    def __enter__(self) -> View: ...

    def __exit__(self, *exc_info: object) -> None: ...

    def show(self, elapsed: float) -> None:
        """Show the loads as they are.

        :param elapsed: for how long the run has gone on
        """


def open_view(loads: Sequence[Load], losses: Losses, seconds: float) -> View:
    """Return the view that fits where the output goes."""
    return TableView(loads, losses, seconds) if sys.stdout.isatty() else LineView(loads, losses)


class LineView:
    """A line each second."""

    interval = 1.0

    def __init__(self, loads: Sequence[Load], losses: Losses) -> None:
        self._gauges = [Gauge(load) for load in loads]
        self._losses = losses

    def __enter__(self) -> LineView:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass

    def show(self, elapsed: float) -> None:
        sights = [gauge.look() for gauge in self._gauges]
        print(f'{elapsed:5.1f} s', *sights, _tell_losses(self._losses, sights), sep=' | ', flush=True)


class TableView:
    """A table that changes in place, by rich."""

    interval = 0.25

    def __init__(self, loads: Sequence[Load], losses: Losses, seconds: float) -> None:
        from rich.live import Live

        self._gauges = [Gauge(load) for load in loads]
        self._losses = losses
        self._seconds = seconds
        self._live = Live(auto_refresh=False)

    def __enter__(self) -> TableView:
        self._live.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._live.stop()

    def show(self, elapsed: float) -> None:
        sights = [gauge.look() for gauge in self._gauges]
        caption = f'{_tell_losses(self._losses, sights)}; {max(0.0, self._seconds - elapsed):.0f} s left'
        self._live.update(_table(sights, caption), refresh=True)


def _table(sights: Sequence[Sight], caption: str) -> Table:
    from rich.table import Table

    table = Table(title='a pool for threads, a pool for asyncio, three databases', caption=caption)
    table.add_column('\nendpoint')
    for sight in sights:
        for head, width in (('\nidle', 4), (f'{sight.load.workers} {sight.load.name}\nused', 11), ('\nwaiting', 7)):
            table.add_column(head, justify='right', min_width=width)
    for endpoint in ENDPOINTS:
        table.add_row(endpoint, *(cell for sight in sights for cell in _cells(sight.stats.endpoints.get(endpoint))))
    table.add_section()
    for name, figures in (
            ('acquires/s', [sight.rate for sight in sights]),
            ('wait p50', [sight.p50 for sight in sights]),
            ('wait p99', [sight.p99 for sight in sights]),
    ):
        table.add_row(name, *(cell for figure in figures for cell in ('', figure, '')))
    return table


def _cells(counts: EndpointStats[str] | None) -> tuple[str, str, str]:
    if counts is None:
        return '', '', ''
    return f'{counts.idle}', f'[green]{"■" * counts.used}[/] {counts.used:2}', f'[yellow]{counts.waiting}[/]'


def _tell_losses(losses: Losses, sights: Sequence[Sight]) -> str:
    ended = sum(len(pids) for pids in losses.ended.values())
    return f'{ended} backends ended, {sum(noticed(sight.stats) for sight in sights)} noticed'
