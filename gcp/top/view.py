"""Draws pools with rich, a block of lines for each."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import inf, isnan
from typing import Final

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from gcp.stats import Histogram
from gcp.top.page import printable
from gcp.top.watch import PoolFigures, Watch

__all__ = ['console', 'frame', 'open_view']

NAMES: Final = 13
FIGURES: Final = 44  # the width of the figures beside a bar
SHORTEST, LONGEST = 8, 30
ENDPOINTS: Final = 3
ENDLESS: Final = 10_000
STYLES: Final = {'used': 'yellow', 'creating': 'magenta', 'idle': 'green', 'free': 'bright_black'}
HEALTH: Final = ('green', 'yellow', 'yellow', 'bold red')
QUANTILES: Final = (0.5, 0.95, 0.99)

Line = tuple[str, Text]


def console() -> Console:
    """Return the console. Without a terminal, lines are plain and not cut."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors='replace')  # a pool's name may contain any character
    if sys.stdout.isatty():
        return Console(highlight=False, emoji=False)
    return Console(highlight=False, emoji=False, force_terminal=False, color_system=None, width=ENDLESS)


@contextlib.contextmanager
def open_view() -> Iterator[Callable[[Sequence[Watch]], None]]:
    """Yield a function that shows a frame: on a terminal in place of the previous one, elsewhere below it."""
    screen = console()
    if not screen.is_terminal:
        yield lambda watches: screen.print(frame(watches, screen), '')
        return
    with Live(console=screen, auto_refresh=False, screen=True, vertical_overflow='crop') as live:
        yield lambda watches: live.update(frame(watches, screen, screen.height), refresh=True)


def frame(watches: Sequence[Watch], screen: Console, room: float = inf) -> Group:
    """Draw all pools. If they do not fit, draw the least healthy in full, and the others in one line each.

    :param room: the number of lines available
    """
    symbols = Symbols(screen)
    heads = [line((f'{watch.error}; trying again', 'red')) for watch in watches if watch.error]
    blocks = [
        (figures, block(watch, figures, symbols, len(watches) > 1)) for watch in watches for figures in watch.pools
    ]
    full = fitting(blocks, room - len(heads))
    return Group(
        *heads,
        *(part for index, (_, parts) in enumerate(blocks) if index in full for part in parts),
        *(summary_line(figures, symbols) for index, (figures, _) in enumerate(blocks) if index not in full),
    )


def fitting(blocks: Sequence[tuple[PoolFigures, Sequence[Text]]], room: float) -> set[int]:
    """Return the indexes of the pools that are drawn in full; each of the others takes one line."""
    chosen: set[int] = set()
    room -= len(blocks)
    for index in sorted(range(len(blocks)), key=lambda index: -blocks[index][0].health[0]):
        room -= len(blocks[index][1]) - 1
        if room < 0:
            break
        chosen.add(index)
    return chosen


def line(*parts: str | tuple[str, str] | Text) -> Text:
    """Return a line that is cut, not wrapped, if it is too long."""
    return Text.assemble(*parts, no_wrap=True, overflow='ellipsis')


class Symbols:
    """The characters of bars: block characters, or ASCII if the output cannot encode them."""

    def __init__(self, screen: Console) -> None:
        try:
            '■▪□·µ'.encode(screen.encoding)
            self.used, self.creating, self.idle, self.free, self.micro = '■▪□·µ'
        except (UnicodeEncodeError, LookupError):
            self.used, self.creating, self.idle, self.free, self.micro = '#+o.u'
        self.width = max(SHORTEST, min(LONGEST, screen.width - NAMES - FIGURES))


# --- a pool ---


def block(watch: Watch, figures: PoolFigures, symbols: Symbols, several: bool) -> list[Text]:
    return [
        head(watch, figures, symbols, several),
        *(line((f'{name:<{NAMES}}', 'bright_black'), text) for name, text in lines(figures, symbols)),
    ]


def head(watch: Watch, figures: PoolFigures, symbols: Symbols, several: bool) -> Text:
    level, words = figures.health
    where = [f'{label}={value}' for label, value in figures.pool.target] or [watch.shown] * several
    period = duration(figures.seconds, symbols)
    period = ', '.join(filter(None, ['since its start', period])) if figures.is_first else f'in the last {period}'
    details = ' '.join(filter(None, [figures.info('frontend'), *where]))
    return line(
        (printable(figures.pool.name), 'bold'),
        f'  {printable(details)}  ' if details else '  ',
        (words, HEALTH[level]),
        (f'  {period}', 'bright_black'),
    )


def summary_line(figures: PoolFigures, symbols: Symbols) -> Text:
    """Return the most important figures in one line."""
    level, words = figures.health
    states, limit = figures.states(), figures.limit('gcpool_capacity')
    return line(
        (printable(figures.pool.name), 'bold'),
        '  ',
        (words, HEALTH[level]),
        f'  {states["used"]} used of {"-" if limit is None else limit}, {figures.gauge("gcpool_waiters"):.0f} waiting',
    )


def lines(figures: PoolFigures, symbols: Symbols) -> Iterator[Line]:
    yield 'connections', bar(figures.states(), figures.limit('gcpool_capacity'), symbols)
    yield from endpoint_lines(figures, symbols)
    yield 'waiting', waiting(figures, symbols)
    yield 'acquires', acquires(figures)
    yield 'wait', quantiles(figures.histogram('gcpool_acquire_wait_seconds'), symbols)
    held = figures.gauge('gcpool_oldest_checkout_seconds')
    yield (
        'use',
        quantiles(figures.histogram('gcpool_use_seconds'), symbols).append(
            f'   longest held {duration(held, symbols)}' if held else ''
        ),
    )
    yield 'churn', churn(figures)
    yield 'timeouts', alarm(figures.by('gcpool_acquires_total', 'result').get('timeout', 0), figures)
    yield 'hook errors', hook_errors(figures)
    trouble = connecting(figures, symbols)
    if trouble:
        yield 'connecting', trouble


def bar(states: Mapping[str, int], limit: int | None, symbols: Symbols) -> Text:
    """Draw connections by state against their limit, with the numbers beside the bar."""
    counts = ', '.join(f'{states[state]} {state}' for state in ('used', 'creating', 'idle'))
    if limit is None:
        return Text(f'{counts}; no pool of this name is open')
    text, done, so_far = Text(), 0, 0
    for state in ('used', 'creating', 'idle'):
        so_far += states[state]
        upto = min(symbols.width, max(round(symbols.width * so_far / max(limit, 1)), done + bool(states[state])))
        text.append(getattr(symbols, state) * (upto - done), STYLES[state])
        done = upto
    return text.append(symbols.free * (symbols.width - done), STYLES['free']).append(f'  {counts} of {limit}')


def endpoint_lines(figures: PoolFigures, symbols: Symbols) -> Iterator[Line]:
    """Draw the fullest endpoints."""
    labels = figures.endpoints()
    for label in sorted(labels[:ENDPOINTS]):  # by name, so that they keep their place on the screen
        limit = figures.limit('gcpool_endpoint_max_connections', pool_endpoint=label)
        if limit is None:  # a page of an older version
            limit = figures.limit('gcpool_max_connections_per_endpoint')
        text = bar(figures.states(label), limit, symbols)
        waiters = figures.gauge('gcpool_waiters', pool_endpoint=label)
        text.append(f', {waiters:.0f} waiting' if waiters else '')
        if figures.gauge('gcpool_breaker_open', pool_endpoint=label):
            text.append(', unavailable', 'red')
        if figures.gauge('gcpool_suspended', pool_endpoint=label):
            text.append(', suspended', 'yellow')
        yield f'  {shortened(printable(label))}', text
    if len(labels) > ENDPOINTS:
        yield '', Text(f'and {len(labels) - ENDPOINTS} endpoints less full', STYLES['free'])


def shortened(label: str) -> str:
    """Shorten a label at its beginning: the port and the distinctive part of a host are at its end."""
    room = NAMES - 3
    return label if len(label) <= room else f'*{label[1 - room :]}'


def waiting(figures: PoolFigures, symbols: Symbols) -> Text:
    waiters = figures.gauge('gcpool_waiters')
    if not waiters:
        return Text('0')
    oldest = figures.gauge('gcpool_oldest_waiter_seconds')
    return Text(f'{waiters:,.0f}, the oldest for {duration(oldest, symbols)}', 'yellow')


def acquires(figures: PoolFigures) -> Text:
    results = figures.by('gcpool_acquires_total', 'result')
    total = sum(results.values())
    parts = [f'{result} {percent(count / total)}' for result, count in results.items()] if total > 0 else []
    return Text('   '.join([speed(figures, total), *parts]))


def quantiles(histogram: Histogram, symbols: Symbols) -> Text:
    return Text('  '.join(f'p{q * 100:g} {quantile(histogram, q, symbols):<{8 if q < 0.99 else 0}}' for q in QUANTILES))


def quantile(histogram: Histogram, q: float, symbols: Symbols) -> str:
    """Estimate a quantile. In the first and the last bucket, only one bound is known."""
    value, bounds = histogram.quantile(q), histogram.bounds
    if isnan(value) or not bounds:
        return '-'
    if value >= bounds[-1] and q * histogram.count > sum(histogram.counts[:-1]):
        return f'>{duration(bounds[-1], symbols)}'
    if value <= bounds[0]:
        return f'<{duration(bounds[0], symbols)}'
    return duration(value, symbols)


def churn(figures: PoolFigures) -> Text:
    created = figures.count('gcpool_hook_calls_total', hook='create', outcome='ok')
    reasons = figures.by('gcpool_connections_closed_total', 'reason')
    text = Text(f'{speed(figures, created)} created, {speed(figures, sum(reasons.values()))} closed')
    if reasons:
        ranked = sorted(reasons.items(), key=lambda item: -item[1])
        text.append(f': {", ".join(f"{reason} {count:,.0f}" for reason, count in ranked)}')
    return text


def connecting(figures: PoolFigures, symbols: Symbols) -> Text:
    """Say how many connects fail, who is refused or waits because of that, and when the next one is due. Empty if there
    is nothing to say."""
    failures = figures.by('gcpool_connect_failures_total', 'class')
    delay = figures.greatest('gcpool_retry_delay_seconds')
    found = [Text(f'failed {", ".join(f"{kind} {count:,.0f}" for kind, count in failures.items())}', 'red')] * bool(
        failures
    )
    for count, what, style in (
        (figures.gauge('gcpool_breaker_open'), 'unavailable', 'bold red'),
        (figures.by('gcpool_acquires_total', 'result').get('rejected', 0), 'refused', 'bold red'),
        (figures.gauge('gcpool_connect_waiters'), 'waiting to connect', 'yellow'),
        (figures.gauge('gcpool_missing_connections'), 'below min_idle', 'yellow'),
        (figures.gauge('gcpool_suspended'), 'suspended', 'yellow'),
        (figures.gauge('gcpool_stale_connections'), 'expired but not gone', 'yellow'),
    ):
        if count:
            found.append(Text(f'{count:,.0f} {what}', style))
    if delay:
        found.append(Text(f'next in {duration(delay, symbols)}'))
    return Text('   ').join(found)


def hook_errors(figures: PoolFigures) -> Text:
    found = [
        f'{hook} {outcome} {count:,.0f}'
        for outcome in ('error', 'timeout')
        for hook, count in figures.by('gcpool_hook_calls_total', 'hook', outcome=outcome).items()
    ]
    return Text(', '.join(found), 'red') if found else Text('0')


def alarm(count: float, figures: PoolFigures) -> Text:
    text = Text(f'{count:,.0f}', 'bold red' if count else '')
    return text.append(f', {speed(figures, count)}') if count and figures.seconds else text


# --- figures ---


def speed(figures: PoolFigures, count: float) -> str:
    """Format a count per second, or the count if the interval is not known."""
    rate = figures.rate(count)
    if rate is None:
        return f'{count:,.0f}'
    if 0 < rate < 0.01:
        return '<0.01/s'
    return f'{rate:,.0f}/s' if rate >= 99.5 or not rate else f'{rate:.2g}/s'


def percent(part: float) -> str:
    return f'{part:.0%}' if part >= 0.995 else f'{part:.1%}' if part >= 0.001 else '<0.1%'


def duration(seconds: float | None, symbols: Symbols) -> str:
    """Format a duration with three digits."""
    if seconds is None:
        return ''
    for upto, factor, unit in ((1e-3, 1e-6, f'{symbols.micro}s'), (1.0, 1e-3, 'ms'), (120.0, 1.0, 's')):
        if seconds < 0.9995 * upto:
            value = seconds / factor
            return f'{value:.0f} {unit}' if value >= 99.5 else f'{value:.3g} {unit}'
    for upto, factor, unit in ((7200.0, 60.0, 'min'), (172800.0, 3600.0, 'h')):
        if seconds < upto:
            return f'{seconds / factor:.0f} {unit}'
    return f'{seconds / 86400:.0f} d'
