"""The page: the facts as HTML that needs no other file, and no script to be read."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any, NamedTuple
from urllib.parse import quote

from gcp.debug.charts import bar, chart
from gcp.debug.pace import Pace
from gcp.debug.problems import by, site
from gcp.explanation import span

__all__ = ['POLICY', 'as_json', 'message', 'policy', 'render']

Facts = Mapping[str, Any]

CHARTED = 12  # pools whose histograms are drawn
POLICY = (
    "default-src 'none'; style-src '{style}'; script-src '{script}'; connect-src 'self'; form-action 'self'; "
    "img-src data:; base-uri 'none'; frame-ancestors 'none'"
)
LEGEND = (('used', 'used'), ('creating', 'connecting'), ('idle', 'idle'), ('disposing', 'closing'))


@cache
def asset(name: str) -> str:
    """Return a file of this package."""
    return files('gcp.debug').joinpath(name).read_text(encoding='utf-8')


def hash_of(text: str) -> str:
    return 'sha256-' + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def policy() -> str:
    """Return the content security policy: this style, this script, nothing else."""
    return POLICY.format(style=hash_of(asset('page.css')), script=hash_of(asset('page.js')))


class View(NamedTuple):
    """How the page is made.

    :ivar token: of actions; ``None``: there are no buttons
    :ivar pace: when others may run
    """

    token: str | None
    pace: Pace


def as_json(facts: Facts) -> str:
    """Write facts as JSON that is harmless within HTML, too. The members of its lists are written one at a time."""
    pace = Pace()
    members = []
    for name, value in facts.items():
        several = isinstance(value, list)
        text = f'[{",".join([dumped(one) for one in pace.over(value)])}]' if several else dumped(value)
        members.append(f'{dumped(name)}:{text}')
    return f'{{{",".join(members)}}}'


def dumped(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(',', ':'))
    return text.translate(HARMLESS) if UNSAFE.search(text) else text


HARMLESS = {ord(character): f'\\u{ord(character):04x}' for character in '<>&\u2028\u2029'}
UNSAFE = re.compile('[<>&\u2028\u2029]')


def document(title: str, body: Iterable[str]) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="robots" content="noindex">'
        f'<title>{escape(title)}</title><link rel="icon" href="data:,"><style>{asset("page.css")}</style></head>\n'
        f'<body>{"".join(body)}<script>{asset("page.js")}</script></body></html>\n'
    )


def message(title: str, text: str) -> str:
    """Make the page that answers a form."""
    back = f'<main><section><h1>{escape(title)}</h1><p>{escape(text)}</p><p><a href="?">Back to the pools</a></p>'
    return document(title, [back, '</section></main>'])


def render(facts: Facts, token: str | None) -> str:
    """Make the page.

    :param token: of actions; ``None``: there are no buttons
    """
    view = View(token, Pace())
    parts = [section(facts, view) for section in view.pace.over(SECTIONS)]
    bad = sum(one['level'] == 'bad' for one in facts['problems'])
    title = f'{f"({bad}) " if bad else ""}Pools of {facts["process"]["program"]} {facts["process"]["pid"]}'
    return document(title, [header(facts), '<main>', *parts, footer(facts), '</main>'])


# --- the frame ---


def header(facts: Facts) -> str:
    process = facts['process']
    when = time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(process['time']))
    only = f' <a class="chip" href="?">only {escape(facts["only"])} &times;</a>' if facts['only'] is not None else ''
    query = '' if facts['only'] is None else f'&amp;pool={quote(facts["only"])}'
    return (
        f'<header><h1>Connection pools{only}</h1>'
        f'<p id="process" data-part><b>{escape(process["program"])}</b> · pid {process["pid"]} on '
        f'{escape(process["host"])} · {process["threads"]} threads · gcp {escape(process["gcp"])}, Python '
        f'{escape(process["python"])} · <time>{when} UTC</time></p>'
        f'<nav><span id="live" role="status" hidden></span><button id="pause" type="button" hidden>Pause</button>'
        f'<a href="">Refresh</a><a href="?format=json{query}">JSON</a></nav></header>'
    )


def footer(facts: Facts) -> str:
    return f'<footer>Times are by the clock of the pools. This look took {span(facts["took"])}.</footer>'


def section(name: str, title: str, body: str, note: str = '') -> str:
    said = f'<p class="note">{note}</p>' if note else ''
    return f'<section id="{name}"><h2>{title}</h2><div id="{name}-part" data-part>{body}</div>{said}</section>\n'


def table(view: View, heads: Sequence[str], rows: Iterable[Sequence[str]], empty: str, more: str = '') -> str:
    """Make a table. On narrow screens each row is a card, whose lines are named by the heads."""
    made = ''.join([row_of(heads, row) for row in view.pace.over(rows)])
    if not made:
        return f'<p class="empty">{empty}</p>'
    rest = f'<p class="more">{more}</p>' if more else ''
    head = ''.join(f'<th>{head}</th>' for head in heads)
    return f'<table><thead><tr>{head}</tr></thead><tbody>{made}</tbody></table>{rest}'


def row_of(heads: Sequence[str], cells: Sequence[str]) -> str:
    made = (f'<td data-h="{head}">{cell}</td>' for head, cell in zip(heads, cells, strict=True))
    return f'<tr>{"".join(made)}</tr>'


def more(count: int, what: str, of: str = '') -> str:
    return f'{count:,} more {what}{of}' if count else ''


# --- cells ---


def number(value: int, kind: str = '') -> str:
    """Write a count; 0 is faint, others may be marked."""
    return f'<span class="num {kind if value else "zero"}">{value:,}</span>'


def duration(seconds: float | None, none: str = '&ndash;') -> str:
    return f'<span class="zero">{none}</span>' if not seconds else span(seconds)


def link(name: str) -> str:
    return f'<a href="?pool={escape(quote(name, safe=""))}">{escape(name)}</a>'


def name_of(endpoint: str | None) -> str:
    return '<span class="zero">&ndash;</span>' if endpoint is None else f'<code>{escape(endpoint)}</code>'


def connections(counts: Facts, limit: int) -> str:
    """Draw connections against their limit, and say the numbers."""
    said = ', '.join(f'{counts[state]} {word}' for state, word in LEGEND if counts[state] or state in ('used', 'idle'))
    drawn = bar([(state, counts[state]) for state, _ in LEGEND], limit, f'{said}, of {limit}')
    full = ' full' if counts['used'] + counts['creating'] >= limit else ''
    return f'<div class="level{full}">{drawn}<span>{said} <i>of {limit:,}</i></span></div>'


def buttons(pool: Facts, view: View, endpoint: Facts | None = None) -> str:
    """Make a form of what can be done. It is folded, so that one click does nothing."""
    actions = [action for action in pool['actions'] if endpoint is not None or action != 'retire']
    if view.token is None or not actions:
        return ''
    which = '' if endpoint is None else f'<input type="hidden" name="id" value="{endpoint["id"]}">'
    made = ''.join(f'<button name="action" value="{action}">{action}</button>' for action in actions)
    key = f'act-{escape(pool["name"])}-{"" if endpoint is None else endpoint["id"]}'
    return (
        f'<details data-key="{key}"><summary>act…</summary><form method="post" action="?">'
        f'<input type="hidden" name="token" value="{escape(view.token)}">'
        f'<input type="hidden" name="pool" value="{escape(pool["name"])}">{which}{made}</form></details>'
    )


# --- the sections ---


def attention(facts: Facts, view: View) -> str:
    found = ''.join(f'<li class="{one["level"]}">{where(one)}{escape(one["text"])}</li>' for one in facts['problems'])
    well = '<p class="well">Nothing: no acquire waits for long, no endpoint is unavailable.</p>'
    return section('attention', 'Needs attention', f'<ul>{found}</ul>' if found else well)


def where(one: Facts) -> str:
    if one['pool'] is None:
        return ''
    endpoint = f' {name_of(one["endpoint"])}' if one['endpoint'] else ''
    return f'<b>{link(one["pool"])}{endpoint}</b> '


def pools(facts: Facts, view: View) -> str:
    heads = ['Pool', 'Connections', 'Waiting', 'Longest wait', 'Longest held', 'Acquires', 'Timed out', 'Failed']
    if view.token is not None:
        heads.append('Act')
    rest = facts['other_pools']
    said = more(rest['count'], 'pools', f': {rest["used"]:,} used, {rest["idle"]:,} idle, {rest["waiting"]:,} waiting')
    rows = (pool_row(pool, view) for pool in facts['pools'])
    legend = ' '.join(f'<span class="key {state}"></span>{word}' for state, word in LEGEND)
    made = table(view, heads, rows, 'This process has no pool.', said)
    return section('pools', 'Pools', made, f'Bars: {legend}, of total_max_size.')


def pool_row(pool: Facts, view: View) -> list[str]:
    acquires = pool['acquires']
    failed = acquires.get('error', 0) + acquires.get('rejected', 0)
    closed = ' <span class="bad">closed</span>' if pool['is_closed'] else ''
    row = [
        f'{link(pool["name"])}{closed} <small>{pool["frontend"]}</small>',
        connections(pool, pool['limits']['total_max_size']),
        number(pool['waiting'], 'bad'),
        duration(pool['oldest_waiter']),
        duration(pool['oldest_checkout']),
        number(sum(acquires.values())),
        number(acquires.get('timeout', 0), 'bad'),
        number(failed, 'bad'),
    ]
    return row if view.token is None else [*row, buttons(pool, view)]


def endpoints(facts: Facts, view: View) -> str:
    heads = ['Pool', 'Endpoint', 'Connections', 'Waiting', 'Expected wait', 'An acquire now']
    if view.token is not None:
        heads.append('Act')
    rows = (endpoint_row(pool, one, view) for pool in facts['pools'] for one in pool['endpoints'])
    hidden = sum(pool['other_endpoints']['count'] for pool in facts['pools'])
    idle, used = (sum(pool['other_endpoints'][state] for pool in facts['pools']) for state in ('idle', 'used'))
    said = more(hidden, 'endpoints', f' of these pools: {used:,} used, {idle:,} idle; select a pool to see more of it')
    return section(
        'endpoints', 'Endpoints', table(view, heads, rows, 'No endpoint has a connection or a waiter.', said)
    )


def endpoint_row(pool: Facts, one: Facts, view: View) -> list[str]:
    row = [
        link(pool['name']),
        name_of(one['endpoint']),
        connections(one, one['limits']['max_size']),
        number(one['waiting'], 'bad'),
        duration(one['expected_wait'], 'none' if one['blocked_by'] is None else 'not known'),
        outlook(one),
    ]
    return row if view.token is None else [*row, buttons(pool, view, one)]


def outlook(one: Facts) -> str:
    """Say what an acquire would get."""
    marks = ''.join(f'<span class="mark">{word}</span> ' for word in ('suspended', 'retiring') if one[word])
    if one['blocked_by'] is None:
        return marks + ('gets an idle connection' if one['idle'] else 'connects')
    kind = 'bad' if one['waiting'] or one['breaker'] != 'closed' else 'warn'
    return f'{marks}<span class="{kind}">{escape(one["reason"])}</span>'


def holders(facts: Facts, view: View) -> str:
    heads = ['Pool', 'Endpoint', 'Held for', 'By', 'Acquired at', 'Where it is now']
    found = [(pool, one) for pool in facts['pools'] for one in pool['holders']]
    found.sort(key=lambda both: -both[1]['age'])
    hidden = sum(pool['other_holders'] for pool in facts['pools'])
    rows = (holder_row(pool, one) for pool, one in found)
    empty = 'No connection is held.'
    if hidden and not found:
        empty = f'{hidden:,} connections are held; by whom is not known.'
    return section(
        'holders', 'Who holds connections', table(view, heads, rows, empty, more(hidden, 'held connections'))
    )


def holder_row(pool: Facts, one: Facts) -> list[str]:
    limit = pool['limits']['leak_threshold']
    late = ' class="bad"' if limit is not None and one['age'] > limit else ''
    gone = '' if one['alive'] else '<span class="bad">has ended</span> '
    extra = ''.join(
        f'<br><small>{word} {escape(one[name])}</small>'
        for name, word in (('tag', 'tag'), ('trace_id', 'trace'))
        if one[name]
    )
    last = one['stack'].rstrip().splitlines()[-1:] or ['']
    key = f'{pool["name"]}-{one["id"]}-{one["thread_ident"]}-{one["task_name"]}-{one["line"]}'
    return [
        link(pool['name']),
        name_of(one['endpoint']),
        f'<span{late}>{span(one["age"])}</span>',
        f'{gone}{escape(by(one))}{extra}',
        f'<code>{escape(site(one))}</code>',
        f'<details data-key="{escape(key)}"><summary><code>{escape(last[0].strip()[:80])}</code></summary>'
        f'<pre>{escape(one["stack"])}</pre></details>',
    ]


def queue(facts: Facts, view: View) -> str:
    heads = ['Pool', 'Endpoint', 'Position', 'Waiting for', 'Gives up in', 'Blocked by']
    found = [(pool, one) for pool in facts['pools'] for one in pool['queue']]
    found.sort(key=lambda both: -both[1]['age'])
    rows = (
        [
            link(pool['name']),
            name_of(one['endpoint']),
            f'{one["position"]:,}',
            span(one['age']),
            '<span class="zero">never</span>' if one['remaining'] is None else span(max(0.0, one['remaining'])),
            f'{escape(one["cap"] or "")} <small>{escape(one["blocked_by"])}</small>',
        ]
        for pool, one in found
    )
    hidden = sum(pool['other_waiters'] for pool in facts['pools'])
    return section('queue', 'Who waits', table(view, heads, rows, 'No acquire waits.', more(hidden, 'acquires wait')))


def failures(facts: Facts, view: View) -> str:
    heads = ['Pool', 'Endpoint', 'Breaker', 'Failed in a row', 'Next connect', 'Last error']
    rows = (
        [
            link(pool['name']),
            name_of(one['endpoint']),
            f'<span class="{"bad" if one["breaker"] != "closed" else ""}">{one["breaker"].replace("_", " ")}</span>',
            number(one['failures']),
            next_connect(one),
            name_of(one['last_error']),
        ]
        for pool in facts['pools']
        for one in pool['endpoints']
        if one['failures'] or one['breaker'] != 'closed' or one['last_error']
    )
    return section('failures', 'Breakers and last errors', table(view, heads, rows, 'No connect has failed lately.'))


def next_connect(one: Facts) -> str:
    if one['creating']:
        return 'in progress'
    return f'in {span(one["retry_delay"])}' if one['retry_delay'] else 'at any time'


def recent(facts: Facts, view: View) -> str:
    heads = ['At (UTC)', 'Pool', 'Endpoint', 'What']
    rows = (
        [
            time.strftime('%H:%M:%S', time.gmtime(one['time'])),
            link(one['pool']),
            name_of(one['endpoint']),
            f'<span class="{one["level"]}">{escape(one["what"])}</span>',
        ]
        for one in facts['events']
        if facts['only'] is None or one['pool'] == facts['only']
    )
    empty = 'Nothing has happened since this page was mounted.'
    return section('events', 'Recent events', table(view, heads, rows, empty))


TIMES = (('wait', 'wait of acquires'), ('use', 'use'), ('create', 'create'), ('age', 'age when closed'))


def times(facts: Facts, view: View) -> str:
    drawn = [
        f'<div class="charts"><h3>{link(pool["name"])}</h3>'
        f'{"".join(chart(title, pool["times"][kind]) for kind, title in TIMES)}</div>'
        for pool in view.pace.over(facts['pools'][:CHARTED])
    ]
    hidden = max(0, len(facts['pools']) - CHARTED)
    said = f'<p class="more">{more(hidden, "pools; select one to see its times")}</p>' if hidden else ''
    note = 'Since the pool was made. The height of a column is the logarithm of its count.'
    return section('times', 'Times', (''.join(drawn) + said) or '<p class="empty">This process has no pool.</p>', note)


SECTIONS: tuple[Callable[[Facts, View], str], ...] = (
    attention,
    pools,
    endpoints,
    holders,
    queue,
    failures,
    recent,
    times,
)
