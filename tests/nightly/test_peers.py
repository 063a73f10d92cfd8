"""The comparison with other pools: each is really used, what cannot run is reported, and the docs show what is made."""

from __future__ import annotations

import asyncio
import contextlib
import io
import math
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
if not (ROOT / 'asv_bench').exists():
    pytest.skip('no benchmarks beside the tests: this is not a checkout', allow_module_level=True)
sys.path.insert(0, str(ROOT / 'asv_bench'))

pytest.importorskip('rich')

import bench_peers  # noqa: E402
from benchmarks import loads, peers  # noqa: E402
from benchmarks.adapters import TASKS, THREADS, UNIT, Peer, stop_servers  # noqa: E402
from benchmarks.adapters.contests import race_in_threads  # noqa: E402
from comparison import figures, measure, table  # noqa: E402
from comparison.measure import TASK_CASES, THREAD_CASES, Comparison, Effort, Line, Load  # noqa: E402
from rich.console import Console  # noqa: E402

PATIENCE = 10.0


@pytest.fixture(scope='module', autouse=True)
def servers_end() -> Iterator[None]:
    yield
    stop_servers()


def those(kind: dict[str, Peer]) -> Any:
    return pytest.mark.parametrize(
        'peer',
        [
            pytest.param(peer, id=name, marks=pytest.mark.skipif(bool(peer.missing), reason=peer.missing))
            for name, peer in kind.items()
        ],
    )


# --- each peer is a pool ---


@those(THREADS)
def test_a_peer_lends_no_more_than_it_has_and_lends_again_what_it_gets_back(peer: Peer) -> None:
    with peer.open(2) as pool:
        take, give = peer.worker(pool)
        first, second = take(), take()
        assert first is not second
        got = threading.Event()

        def wait() -> None:
            conn = take()
            got.set()
            give(conn)

        waiter = threading.Thread(target=wait, daemon=True)
        waiter.start()
        assert not got.wait(0.05)
        give(first)
        assert got.wait(PATIENCE)
        waiter.join(PATIENCE)
        give(second)


@those(TASKS)
def test_an_asyncio_peer_lends_no_more_than_it_has_and_lends_again_what_it_gets_back(peer: Peer) -> None:
    async def run() -> None:
        async with peer.open(2) as pool:
            take, give = peer.worker(pool)
            first, second = await take(), await take()
            assert first is not second
            waiter = asyncio.ensure_future(take())
            assert not (await asyncio.wait({waiter}, timeout=0.05))[0]
            await give(first)
            await give(await asyncio.wait_for(waiter, PATIENCE))
            await give(second)

    asyncio.run(run())


@those(THREADS | {UNIT.name: UNIT})
def test_the_loops_give_back_each_time(peer: Peer) -> None:
    with peer.open(1) as pool:
        assert peer.pair(pool)(3) >= 0  # with one connection, the second turn would hang
        if peer.context:
            assert peer.with_(pool)(3) >= 0
        else:
            with pytest.raises(ValueError, match=f'{re.escape(peer.name)} has no context manager'):
                peer.with_(pool)


@those(TASKS)
def test_the_loops_for_asyncio_give_back_each_time(peer: Peer) -> None:
    async def run() -> None:
        async with peer.open(1) as pool:
            assert await asyncio.wait_for(peer.pair(pool)(3), PATIENCE) >= 0
            if peer.context:
                assert await asyncio.wait_for(peer.with_(pool)(3), PATIENCE) >= 0

    asyncio.run(run())


def test_a_race_counts_what_each_served_while_it_was_watched() -> None:
    seen = race_in_threads(THREADS['gcp'], threads=3, connections=1, seconds=0.2)
    assert len(seen.served) == 3
    assert seen.seconds >= 0.2
    assert seen.rate > 1000


# --- one that cannot run ---


@contextlib.contextmanager
def refuse(size: int) -> Iterator[Any]:
    raise OSError('no server\nand more lines')
    yield


ABSENT = Peer('absent', refuse, take='pool.get()', give='pool.put(conn)', packages=('no-such-distribution',))
BROKEN = Peer('broken', refuse, take='pool.get()', give='pool.put(conn)')
CLUMSY = Peer('clumsy', THREADS['queue.SimpleQueue'].open, take='pool.fetch()', give='pool.put(conn)')


def test_one_that_is_missing_or_fails_is_told_and_the_others_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    few = [THREADS['gcp'], ABSENT, BROKEN, CLUMSY, THREADS['queue.SimpleQueue']]
    monkeypatch.setattr(measure, 'THREADS', {peer.name: peer for peer in few})
    monkeypatch.setattr(measure, 'TASKS', {name: TASKS[name] for name in ('gcp', 'asyncio.Queue')})
    steps: list[str] = []
    seen = measure.compare(Effort(hits=1, rounds=1, stretch=0.1), steps.append)

    assert {line.peer.name: line.reason for line in seen.threads} == {
        'gcp': '',
        'queue.SimpleQueue': '',
        'absent': 'not installed: no-such-distribution',
        'broken': 'OSError: no server',
        'clumsy': "AttributeError: '_queue.SimpleQueue' object has no attribute 'fetch'",
    }
    assert steps == ['idle hits', *(f'{case.title}: 1 of 1' for case in (*THREAD_CASES, *TASK_CASES))]
    for lines, cases in ((seen.threads, THREAD_CASES), (seen.tasks, TASK_CASES)):
        ours, *_, bare = lines
        assert ours.pair and ours.context and bare.pair and bare.context is None
        assert list(ours.loads) == list(bare.loads) == [case.title for case in cases]
        assert {load.part for load in bare.loads.values()} == {1.0}
        assert all(0 < load.fairness <= 1 and load.part > 0 for load in ours.loads.values())
    assert ours.pair > seen.unit

    shown = io.StringIO()
    bench_peers.show(seen, Console(file=shown, width=132))
    for reason in ('not installed: no-such-distribution', 'OSError: no server'):
        assert reason in ' '.join(shown.getvalue().split())
    assert '| absent | not installed: no-such-distribution |  |  |  |  |' in table.for_page(seen)


def test_one_that_fails_in_the_middle_keeps_no_half_of_its_figures() -> None:
    line = Line(THREADS['gcp'], pair=1.0, context=2.0, loads={'some': Load(1.0, 1.0, None)})
    with measure.telling(line):
        raise RuntimeError('gone')
    assert (line.reason, line.pair, line.context, line.loads) == ('RuntimeError: gone', None, None, {})


# --- how it is told ---


@pytest.mark.parametrize(
    ('seen', 'told'),
    [
        (Load(0.97, 1.0, 1.234), '97 %, 1.00, 1.2 x'),
        (Load(1.004, 0.25, math.inf), '100 %, 0.25, never'),
        (Load(0.0123, 0.996, None), '1.2 %, 1.00'),
    ],
)
def test_a_load_is_told(seen: Load, told: str) -> None:
    assert figures.load(seen) == told


@pytest.mark.parametrize(
    ('nanoseconds', 'told'),
    [
        (129.4, '129 ns, 4.17 x'),
        (2718.0, '2.72 µs, 87.7 x'),
        (93_000.0, '93 µs, 3,000 x'),
        (None, 'n/a'),
    ],
)
def test_a_hit_is_told(nanoseconds: float | None, told: str) -> None:
    assert figures.hit(nanoseconds, 31.0) == told


def made_up() -> Comparison:
    """A comparison of all peers, as if all were here."""

    def lines(kind: dict[str, Peer], cases: Any) -> list[Line]:
        made = [
            Line(
                peer,
                pair=100.0 * number,
                context=150.0 * number if peer.context else None,
                loads={case.title: Load(1 / number, 1 / number, case.ideal and 1.0) for case in cases},
            )
            for number, peer in enumerate(kind.values(), start=1)
        ]
        for line in made:
            line.reason = ''
        return made

    return Comparison(31.0, lines(THREADS, THREAD_CASES), lines(TASKS, TASK_CASES))


def shape(text: str) -> list[list[str]]:
    """The heads of the tables in a text, and the first cell of each of their rows."""
    blocks = re.findall(r'^\|.*\|$(?:\n^\|.*\|$)+', text, flags=re.MULTILINE)
    found = []
    for block in blocks:
        head, rule, *body = [[cell.strip(' *') for cell in line.strip('|').split('|')] for line in block.splitlines()]
        assert {len(row) for row in (rule, *body)} == {len(head)}
        found.append([*head, *(row[0] for row in body)])
    return found


def test_the_page_shows_the_tables_that_the_command_makes() -> None:
    text = (ROOT / 'docs' / 'performance.md').read_text()
    shown = text[text.index(table.BEGIN) : text.index(table.END)]
    assert shape(shown) == shape(table.for_page(made_up()))
    words = ' '.join(shown.split())
    assert re.search(r'Measured on .+, \d+ cores?, .+; CPython 3\.\d+\.\d+; \d{4}-\d\d-\d\d, by `make bench', words)
    for peer in (*THREADS.values(), *TASKS.values()):
        if peer.packages:
            assert re.search(rf'[ ,]{re.escape(peer.packages[0])} \d', words), peer.name
    assert '](peers.svg)' in text


def test_the_table_is_written_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / 'performance.md'
    page.write_text(f'before\n{table.BEGIN}\nold\n{table.END}\nafter\n')
    for text in ('new', 'newer'):
        table.write(page, text)
        assert page.read_text() == f'before\n{table.BEGIN}\n\n{text}\n\n{table.END}\nafter\n'
    page.write_text('before\n')
    with pytest.raises(ValueError, match=r'performance\.md must have the marks'):
        table.write(page, 'new')
    assert page.read_text() == 'before\n'


def test_the_chart_names_all_that_was_measured_and_is_the_same_each_time(tmp_path: Path) -> None:
    pytest.importorskip('matplotlib')
    from comparison import chart

    seen = made_up()
    seen.threads[2].reason = 'not here'
    chart.draw(seen, tmp_path / 'one.svg')
    chart.draw(seen, tmp_path / 'two.svg')
    drawn = (tmp_path / 'one.svg').read_text()
    assert drawn == (tmp_path / 'two.svg').read_text()
    assert len(drawn) < 60_000
    texts = re.findall(r'<text [^>]*>([^<]*)</text>', drawn)
    names = [line.peer.name for line in seen.lines if not line.reason]
    assert [text for text in texts if text in THREADS or text in TASKS] == names
    assert [text for text in texts if text == '100 ns'] == ['100 ns'] * 4  # two scales, and gcp's two bars


# --- the command ---


@pytest.mark.parametrize(
    ('arguments', 'told'),
    [
        (['--fast'], 'unrecognized arguments: --fast'),
        (['psycopg_pool'], 'unrecognized arguments: psycopg_pool'),
        (['--quick', '--write'], '--write is for figures to be trusted: without --quick'),
    ],
)
def test_an_argument_that_makes_no_sense_is_told(
    arguments: list[str],
    told: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        bench_peers.main(arguments)
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize('write', [False, True])
def test_the_command_prints_and_writes_only_when_asked(
    write: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip('matplotlib')
    page, chart = tmp_path / 'performance.md', tmp_path / 'peers.svg'
    page.write_text(f'{table.BEGIN}\n{table.END}\n')
    monkeypatch.setattr(bench_peers, 'ROOT', tmp_path)
    monkeypatch.setattr(bench_peers, 'PAGE', page)
    monkeypatch.setattr(bench_peers, 'CHART', chart)
    monkeypatch.setattr(bench_peers, 'compare', lambda effort, step: made_up())
    assert bench_peers.main(['--write'] if write else []) == 0
    out = capsys.readouterr().out
    for name in (*THREADS, *TASKS, table.UNIT_NAME):
        assert name in out
    assert chart.exists() == write
    assert ('| **gcp** |' in page.read_text()) == write


def await_threads(count: int) -> None:
    """Wait until no more threads run than before: those of a closed pool end by themselves."""
    deadline = time.monotonic() + 60
    while threading.active_count() > count:
        assert time.monotonic() < deadline, threading.enumerate()
        time.sleep(0.01)


@pytest.mark.parametrize('name', ['gcp', 'queue.SimpleQueue'])
def test_an_interrupted_load_leaves_no_thread_behind(name: str) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    before = threading.active_count()
    with THREADS[name].open(2) as pool, pytest.raises(KeyboardInterrupt):
        loads.in_threads([THREADS[name].worker(pool)] * 8, hold=0.001, seconds=60.0, when_warm=interrupt)
    await_threads(before)


def test_a_load_that_is_interrupted_before_it_begins_leaves_no_thread_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(threading.Barrier):
        def wait(self, timeout: float | None = None) -> int:
            if threading.current_thread() is threading.main_thread():
                raise KeyboardInterrupt
            return super().wait(timeout)

    monkeypatch.setattr(threading, 'Barrier', Interrupted)
    before = threading.active_count()
    with THREADS['gcp'].open(2) as pool, pytest.raises(KeyboardInterrupt):
        loads.in_threads([THREADS['gcp'].worker(pool)] * 8, hold=0.001, seconds=60.0)
    await_threads(before)


def test_the_command_stops_when_it_is_asked_to(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(effort: Effort, step: Any) -> Comparison:
        raise KeyboardInterrupt

    monkeypatch.setattr(bench_peers, 'compare', interrupted)
    assert bench_peers.main([]) == 130
    assert capsys.readouterr().err.endswith('Stopped; nothing is written.\n')


# --- the chapter of asv ---


@pytest.mark.parametrize(
    ('chapter', 'queue', 'told'),
    [
        (peers.HitThreads, 'queue.SimpleQueue', 'queue.SimpleQueue has no context manager'),
        (peers.HitTasks, 'asyncio.Queue', 'asyncio.Queue has no context manager'),
    ],
)
def test_what_cannot_be_measured_is_skipped_and_torn_down_as_asv_does(chapter: Any, queue: str, told: str) -> None:
    benchmark = chapter()
    with pytest.raises(NotImplementedError, match=re.escape(told)):
        benchmark.setup(queue, 'with')
    benchmark.teardown(queue, 'with')
    benchmark.setup(queue, 'acquire+release')
    benchmark.time_idle_hit(queue, 'acquire+release')
    benchmark.teardown(queue, 'acquire+release')


def test_a_peer_that_is_not_installed_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(THREADS, ABSENT.name, ABSENT)
    with pytest.raises(NotImplementedError, match='not installed: no-such-distribution'):
        peers.HitThreads().setup(ABSENT.name, 'acquire+release')
    with pytest.raises(NotImplementedError, match='not installed: no-such-distribution'):
        peers.LoadThreads().setup({}, ABSENT.name)
    peers.LoadThreads().setup({ABSENT.name: loads.Seen([1], 1.0)}, ABSENT.name)
