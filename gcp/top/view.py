"""How pools are drawn: a block of lines for each, by rich. Decides nothing about them."""

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
from gcp.top.sight import Sight, Watch

__all__ = ['console', 'frame', 'open_view']

NAMES: Final = 13
FIGURES: Final = 44     # what stands beside a bar
SHORTEST, LONGEST = 8, 30
ENDPOINTS: Final = 3
ENDLESS: Final = 10_000
STYLES: Final = {'used': 'yellow', 'creating': 'magenta', 'idle': 'green', 'free': 'bright_black'}
HEALTH: Final = ('green', 'yellow', 'yellow', 'bold red')
QUANTILES: Final = (0.5, 0.95, 0.99)

Line = tuple[str, Text]


def console() -> Console:
    """Return where to draw. What is no terminal gets plain lines, as long as they are."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors='replace')    # a pool's name is anybody's
    if sys.stdout.isatty():
        return Console(highlight=False, emoji=False)
    return Console(highlight=False, emoji=False, force_terminal=False, color_system=None, width=ENDLESS)


@contextlib.contextmanager
def open_view() -> Iterator[Callable[[Sequence[Watch]], None]]:
    """Return what shows a frame: in place of the last one on a terminal, below it elsewhere."""
    screen = console()
    if not screen.is_terminal:
        yield lambda watches: screen.print(frame(watches, screen), '')
        return
    with Live(console=screen, auto_refresh=False, screen=True, vertical_overflow='crop') as live:
        yield lambda watches: live.update(frame(watches, screen, screen.height), refresh=True)


def frame(watches: Sequence[Watch], screen: Console, room: float = inf) -> Group:
    """Draw all pools. Where they do not fit, those in most trouble in full, and the others in a line each.

    :param room: how many lines there may be
    """
    marks = Marks(screen)
    heads = [line((f'{watch.trouble}; trying again', 'red')) for watch in watches if watch.trouble]
    blocks = [(sight, block(watch, sight, marks, len(watches) > 1)) for watch in watches for sight in watch.sights]
    full = fitting(blocks, room - len(heads))
    return Group(
        *heads,
        *(part for index, (_, parts) in enumerate(blocks) if index in full for part in parts),
        *(brief(sight, marks) for index, (sight, _) in enumerate(blocks) if index not in full),
    )


def fitting(blocks: Sequence[tuple[Sight, Sequence[Text]]], room: float) -> set[int]:
    """Choose the pools that are drawn in full; the others need a line each."""
    chosen: set[int] = set()
    room -= len(blocks)
    for index in sorted(range(len(blocks)), key=lambda index: -blocks[index][0].health[0]):
        room -= len(blocks[index][1]) - 1
        if room < 0:
            break
        chosen.add(index)
    return chosen


def line(*parts: str | tuple[str, str] | Text) -> Text:
    """Make a line that is cut, not wrapped, where it is too long."""
    return Text.assemble(*parts, no_wrap=True, overflow='ellipsis')


class Marks:
    """The characters of bars, as far as the output can show them."""

    def __init__(self, screen: Console) -> None:
        try:
            '■▪□·µ'.encode(screen.encoding)
            self.used, self.creating, self.idle, self.free, self.micro = '■▪□·µ'
        except (UnicodeEncodeError, LookupError):
            self.used, self.creating, self.idle, self.free, self.micro = '#+o.u'
        self.width = max(SHORTEST, min(LONGEST, screen.width - NAMES - FIGURES))


# --- a pool ---

def block(watch: Watch, sight: Sight, marks: Marks, several: bool) -> list[Text]:
    return [
        head(watch, sight, marks, several),
        *(line((f'{name:<{NAMES}}', 'bright_black'), text) for name, text in lines(sight, marks)),
    ]


def head(watch: Watch, sight: Sight, marks: Marks, several: bool) -> Text:
    level, words = sight.health
    where = [f'{label}={value}' for label, value in sight.pool.target] or [watch.shown] * several
    spell = duration(sight.seconds, marks)
    spell = f'in the last {spell}' if not sight.is_first else ', '.join(filter(None, ['since its start', spell]))
    told = ' '.join(filter(None, [sight.info('frontend'), *where]))
    return line(
        (printable(sight.pool.name), 'bold'), f'  {printable(told)}  ' if told else '  ', (words, HEALTH[level]),
        (f'  {spell}', 'bright_black'))


def brief(sight: Sight, marks: Marks) -> Text:
    """Tell all that matters in a line."""
    level, words = sight.health
    states, limit = sight.states(), sight.limit('gcpool_max_connections')
    return line(
        (printable(sight.pool.name), 'bold'), '  ', (words, HEALTH[level]),
        f'  {states["used"]} used of {"-" if limit is None else limit}, '
        f'{sight.gauge("gcpool_waiters"):.0f} waiting')


def lines(sight: Sight, marks: Marks) -> Iterator[Line]:
    yield 'connections', bar(sight.states(), sight.limit('gcpool_max_connections'), marks)
    yield from endpoint_lines(sight, marks)
    yield 'waiting', waiting(sight, marks)
    yield 'acquires', acquires(sight)
    yield 'wait', quantiles(sight.histogram('gcpool_acquire_wait_seconds'), marks)
    held = sight.gauge('gcpool_oldest_checkout_seconds')
    yield 'use', quantiles(sight.histogram('gcpool_use_seconds'), marks).append(
        f'   longest held {duration(held, marks)}' if held else '')
    yield 'churn', churn(sight)
    yield 'timeouts', alarm(sight.by('gcpool_acquires_total', 'result').get('timeout', 0), sight)
    yield 'hook errors', hook_errors(sight)


def bar(states: Mapping[str, int], limit: int | None, marks: Marks) -> Text:
    """Draw connections by state against their limit, and say the same in figures."""
    counts = ', '.join(f'{states[state]} {state}' for state in ('used', 'creating', 'idle'))
    if limit is None:
        return Text(f'{counts}; no pool of this name is open')
    text, done, so_far = Text(), 0, 0
    for state in ('used', 'creating', 'idle'):
        so_far += states[state]
        upto = min(marks.width, max(round(marks.width * so_far / max(limit, 1)), done + bool(states[state])))
        text.append(getattr(marks, state) * (upto - done), STYLES[state])
        done = upto
    return text.append(marks.free * (marks.width - done), STYLES['free']).append(f'  {counts} of {limit}')


def endpoint_lines(sight: Sight, marks: Marks) -> Iterator[Line]:
    """Draw the fullest endpoints, where there is more to see than of all together."""
    labels = sight.endpoints()
    limit = sight.limit('gcpool_max_connections_per_endpoint')
    for label in sorted(labels[:ENDPOINTS]):    # of one order: they would jump about
        text = bar(sight.states(label), limit, marks)
        waiters = sight.gauge('gcpool_waiters', pool_endpoint=label)
        yield f'  {shortened(printable(label))}', text.append(f', {waiters:.0f} waiting' if waiters else '')
    if len(labels) > ENDPOINTS:
        yield '', Text(f'and {len(labels) - ENDPOINTS} endpoints less full', STYLES['free'])


def shortened(label: str) -> str:
    """Keep the end of a label: hosts tend to differ there, and ports are there."""
    room = NAMES - 3
    return label if len(label) <= room else f'*{label[1 - room:]}'


def waiting(sight: Sight, marks: Marks) -> Text:
    waiters = sight.gauge('gcpool_waiters')
    if not waiters:
        return Text('0')
    oldest = sight.gauge('gcpool_oldest_waiter_seconds')
    return Text(f'{waiters:,.0f}, the oldest for {duration(oldest, marks)}', 'yellow')


def acquires(sight: Sight) -> Text:
    results = sight.by('gcpool_acquires_total', 'result')
    all_of_them = sum(results.values())
    parts = [f'{result} {percent(count / all_of_them)}' for result, count in results.items()] if all_of_them > 0 else []
    return Text('   '.join([speed(sight, all_of_them), *parts]))


def quantiles(histogram: Histogram, marks: Marks) -> Text:
    return Text('  '.join(
        f'p{q * 100:g} {quantile(histogram, q, marks):<{8 if q < 0.99 else 0}}' for q in QUANTILES))


def quantile(histogram: Histogram, q: float, marks: Marks) -> str:
    """Estimate a quantile. What is in the first or in the last bucket has no two bounds to be estimated between."""
    value, bounds = histogram.quantile(q), histogram.bounds
    if isnan(value) or not bounds:
        return '-'
    if value >= bounds[-1] and q * histogram.count > sum(histogram.counts[:-1]):
        return f'>{duration(bounds[-1], marks)}'
    if value <= bounds[0]:
        return f'<{duration(bounds[0], marks)}'
    return duration(value, marks)


def churn(sight: Sight) -> Text:
    created = sight.count('gcpool_hook_calls_total', hook='create', outcome='ok')
    reasons = sight.by('gcpool_connections_closed_total', 'reason')
    text = Text(f'{speed(sight, created)} created, {speed(sight, sum(reasons.values()))} closed')
    if reasons:
        ranked = sorted(reasons.items(), key=lambda item: -item[1])
        text.append(f': {", ".join(f"{reason} {count:,.0f}" for reason, count in ranked)}')
    return text


def hook_errors(sight: Sight) -> Text:
    found = [
        f'{hook} {outcome} {count:,.0f}'
        for outcome in ('error', 'timeout')
        for hook, count in sight.by('gcpool_hook_calls_total', 'hook', outcome=outcome).items()
    ]
    return Text(', '.join(found), 'red') if found else Text('0')


def alarm(count: float, sight: Sight) -> Text:
    text = Text(f'{count:,.0f}', 'bold red' if count else '')
    return text.append(f', {speed(sight, count)}') if count and sight.seconds else text


# --- figures ---

def speed(sight: Sight, count: float) -> str:
    """Tell how many there were a second; how many, where that is not known."""
    rate = sight.rate(count)
    if rate is None:
        return f'{count:,.0f}'
    if 0 < rate < 0.01:
        return '<0.01/s'
    return f'{rate:,.0f}/s' if rate >= 99.5 or not rate else f'{rate:.2g}/s'


def percent(part: float) -> str:
    return f'{part:.0%}' if part >= 0.995 else f'{part:.1%}' if part >= 0.001 else '<0.1%'


def duration(seconds: float | None, marks: Marks) -> str:
    """Tell how long, to three digits."""
    if seconds is None:
        return ''
    for upto, factor, unit in ((1e-3, 1e-6, f'{marks.micro}s'), (1.0, 1e-3, 'ms'), (120.0, 1.0, 's')):
        if seconds < 0.9995 * upto:
            value = seconds / factor
            return f'{value:.0f} {unit}' if value >= 99.5 else f'{value:.3g} {unit}'
    for upto, factor, unit in ((7200.0, 60.0, 'min'), (172800.0, 3600.0, 'h')):
        if seconds < upto:
            return f'{seconds / factor:.0f} {unit}'
    return f'{seconds / 86400:.0f} d'
