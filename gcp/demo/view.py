"""The output of a running demo: a table that changes in place on a terminal, a line each second on a pipe."""

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
class Sample:
    """The figures of a load. Rate and waits cover the time since the previous sample.

    :ivar load: the load
    :ivar stats: the statistics of its pool
    :ivar rate: acquires per second
    :ivar p50: the median wait
    :ivar p99: the 99th percentile of waits
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


class Sampler:
    """Takes samples of a load."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._seen, self._at = load.tally.read(), time.monotonic()

    def sample(self) -> Sample:
        seen, at = self._load.tally.read(), time.monotonic()
        served, waits, since = seen.served - self._seen.served, seen.waits - self._seen.waits, at - self._at
        self._seen, self._at = seen, at
        rate = f'{served / max(since, 1e-3):,.0f}'
        return Sample(self._load, self._load.stats(), rate, milliseconds(waits, 0.5), milliseconds(waits, 0.99))


class View(Protocol):
    """Shows the loads while its context is entered.

    :ivar interval: the interval between updates, seconds
    """

    interval: float

    def __enter__(self) -> View: ...

    def __exit__(self, *exc_info: object) -> None: ...

    def show(self, elapsed: float) -> None:
        """Show the loads' current figures.

        :param elapsed: the time since the start of the run, seconds
        """


def open_view(loads: Sequence[Load], losses: Losses, seconds: float) -> View:
    """Return the view for the current output: a terminal or a pipe."""
    return TableView(loads, losses, seconds) if sys.stdout.isatty() else LineView(loads, losses)


class LineView:
    """Prints a line each second."""

    interval = 1.0

    def __init__(self, loads: Sequence[Load], losses: Losses) -> None:
        self._samplers = [Sampler(load) for load in loads]
        self._losses = losses

    def __enter__(self) -> LineView:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass

    def show(self, elapsed: float) -> None:
        samples = [sampler.sample() for sampler in self._samplers]
        print(f'{elapsed:5.1f} s', *samples, _format_losses(self._losses, samples), sep=' | ', flush=True)


class TableView:
    """Shows a table that changes in place, drawn with rich."""

    interval = 0.25

    def __init__(self, loads: Sequence[Load], losses: Losses, seconds: float) -> None:
        from rich.live import Live

        self._samplers = [Sampler(load) for load in loads]
        self._losses = losses
        self._seconds = seconds
        self._live = Live(auto_refresh=False)

    def __enter__(self) -> TableView:
        self._live.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._live.stop()

    def show(self, elapsed: float) -> None:
        samples = [sampler.sample() for sampler in self._samplers]
        caption = f'{_format_losses(self._losses, samples)}; {max(0.0, self._seconds - elapsed):.0f} s left'
        self._live.update(_table(samples, caption), refresh=True)


def _table(samples: Sequence[Sample], caption: str) -> Table:
    from rich.table import Table

    table = Table(title='a pool for threads, a pool for asyncio, three databases', caption=caption)
    table.add_column('\nendpoint')
    for sample in samples:
        for head, width in (('\nidle', 4), (f'{sample.load.workers} {sample.load.name}\nused', 11), ('\nwaiting', 7)):
            table.add_column(head, justify='right', min_width=width)
    for endpoint in ENDPOINTS:
        table.add_row(endpoint, *(cell for sample in samples for cell in _cells(sample.stats.endpoints.get(endpoint))))
    table.add_section()
    for name, figures in (
        ('acquires/s', [sample.rate for sample in samples]),
        ('wait p50', [sample.p50 for sample in samples]),
        ('wait p99', [sample.p99 for sample in samples]),
    ):
        table.add_row(name, *(cell for figure in figures for cell in ('', figure, '')))
    return table


def _cells(counts: EndpointStats[str] | None) -> tuple[str, str, str]:
    if counts is None:
        return '', '', ''
    return f'{counts.idle}', f'[green]{"■" * counts.used}[/] {counts.used:2}', f'[yellow]{counts.waiting}[/]'


def _format_losses(losses: Losses, samples: Sequence[Sample]) -> str:
    ended = sum(len(pids) for pids in losses.ended.values())
    return f'{ended} backends ended, {sum(noticed(sample.stats) for sample in samples)} noticed'
