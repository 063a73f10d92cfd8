"""What is measured of each peer. Peers take turns, round after round; figures are medians over the rounds.

An idle hit is measured in processor time, in multiples of what a bare deque takes. Loads run for some time each, and
are given as a part of what a bare queue serves in the same round, which lets newcomers overtake and has the least to
do."""

from __future__ import annotations

import asyncio
import contextlib
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks import loads, turns
from benchmarks.adapters import TASKS, THREADS, UNIT, Peer
from benchmarks.adapters.contests import hold_in_tasks, hold_in_threads, race_in_threads

CONNECTIONS = 10
"""Size of the pool for idle hits; only one of them is ever used."""


@dataclass(frozen=True)
class Effort:
    """How long a measurement may take.

    :ivar hits: rounds of the idle hit
    :ivar rounds: rounds of each load
    :ivar stretch: factor for the time of a round
    """

    hits: int = 101
    rounds: int = 7
    stretch: float = 1.0


QUICK = Effort(hits=15, rounds=3, stretch=0.4)


@dataclass(frozen=True)
class Case:
    """A load: more workers than connections.

    :ivar title: heads its column
    :ivar ideal: how long each waits, at best, when all are served in turn, seconds; None when waits are not measured
    :ivar run: runs it with a peer, for a multiple of its time
    """

    title: str
    ideal: float | None
    run: Callable[[Peer, float], loads.Seen]


THREAD_CASES = (
    Case(
        '32 threads, 8 connections, 1 ms',
        32 / 8 * 0.001,
        lambda peer, stretch: hold_in_threads(peer, 32, 8, hold=0.001, seconds=0.5 * stretch, warm_up=0.1),
    ),
    Case(
        '200 threads, 10 connections, 1 ms',
        200 / 10 * 0.001,
        lambda peer, stretch: hold_in_threads(peer, 200, 10, hold=0.001, seconds=0.6 * stretch, warm_up=0.1),
    ),
    Case(
        '8 threads, 4 connections, no hold',
        None,
        lambda peer, stretch: race_in_threads(peer, 8, 4, seconds=0.6 * stretch, warm_up=0.1),
    ),
)
TASK_CASES = (
    Case(
        '1000 tasks, 10 connections, 1 ms',
        1000 / 10 * 0.001,
        lambda peer, stretch: hold_in_tasks(peer, 1000, 10, hold=0.001, seconds=1.4 * stretch, warm_up=0.3),
    ),
)


@dataclass(frozen=True)
class Load:
    """The measurements of a peer under a load.

    :ivar part: of what the bare queue served, this part
    :ivar fairness: Jain's index of how often each worker was served
    :ivar wait: the longest wait, in multiples of the ideal; inf: a worker was never served; None: not measured
    """

    part: float
    fairness: float
    wait: float | None


@dataclass
class Line:
    """The measurements of one peer.

    :ivar reason: why it was not measured; empty if it was
    :ivar pair: time of an acquire and a release, nanoseconds
    :ivar context: time of a `with`, nanoseconds; None when the peer has none
    :ivar loads: by their cases' titles
    """

    peer: Peer
    reason: str = ''
    pair: float | None = None
    context: float | None = None
    loads: dict[str, Load] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.reason = self.reason or self.peer.missing


@dataclass(frozen=True)
class Comparison:
    """All that was measured in one run.

    :ivar unit: what a bare deque takes to pop and append, nanoseconds
    """

    unit: float
    threads: Sequence[Line]
    tasks: Sequence[Line]

    @property
    def lines(self) -> list[Line]:
        return [*self.threads, *self.tasks]


def compare(effort: Effort, step: Callable[[str], object] = lambda what: None) -> Comparison:
    """Measure all peers that can be.

    :param step: is called with the name of what comes next
    """
    threads = [Line(peer) for peer in THREADS.values()]
    tasks = [Line(peer) for peer in TASKS.values()]
    step('idle hits')
    unit = hit_all(threads, tasks, effort.hits)
    for cases, lines in ((THREAD_CASES, threads), (TASK_CASES, tasks)):
        for case in cases:
            load_all(case, lines, effort, step)
    return Comparison(unit, threads, tasks)


# --- idle hits ---


def hit_all(threads: Sequence[Line], tasks: Sequence[Line], rounds: int) -> float:
    """Measure idle hits. Returns the time of the deque, nanoseconds."""
    with contextlib.ExitStack() as stack:
        loop = asyncio.new_event_loop()
        stack.callback(loop.close)
        later = contextlib.AsyncExitStack()
        stack.callback(lambda: loop.run_until_complete(later.aclose()))

        contenders: dict[str, turns.Contender] = {'': UNIT.pair(stack.enter_context(UNIT.open(CONNECTIONS)))}
        for line in running(threads):
            with telling(line):
                pool = stack.enter_context(line.peer.open(CONNECTIONS))
                contenders |= trying({f'{kind} {line.peer.name}': run for kind, run in loops(line.peer, pool)})
        for line in running(tasks):
            with telling(line):
                pool = loop.run_until_complete(later.enter_async_context(line.peer.open(CONNECTIONS)))
                contenders |= trying(
                    {f'await {kind} {line.peer.name}': turns.in_loop(loop, run) for kind, run in loops(line.peer, pool)}
                )
        seen = turns.take_turns(contenders, rounds)

    for prefix, lines in (('', threads), ('await ', tasks)):
        for line in running(lines):
            line.pair = seen[f'{prefix}pair {line.peer.name}']
            line.context = seen.get(f'{prefix}with {line.peer.name}')
    return seen['']


def loops(peer: Peer, pool: object) -> Iterator[tuple[str, Callable[[int], object]]]:
    yield 'pair', peer.pair(pool)
    if peer.context:
        yield 'with', peer.with_(pool)


def trying(contenders: dict[str, turns.Contender]) -> dict[str, turns.Contender]:
    """Run each once, so that one that cannot run fails before the turns begin."""
    for run in contenders.values():
        run(1)
    return contenders


# --- loads ---


def load_all(case: Case, lines: Sequence[Line], effort: Effort, step: Callable[[str], object]) -> None:
    """Measure the peers under a load."""
    seen: dict[str, list[loads.Seen]] = {line.peer.name: [] for line in lines}
    for turn in range(effort.rounds):
        step(f'{case.title}: {turn + 1} of {effort.rounds}')
        for line in running(lines):
            with telling(line):
                seen[line.peer.name].append(case.run(line.peer, effort.stretch))
    barging = seen[BARGING[lines[0].peer.is_async]]
    for line in running(lines):
        rounds = seen[line.peer.name]
        line.loads[case.title] = Load(
            part=statistics.median(one.rate / bare.rate for one, bare in zip(rounds, barging, strict=True)),
            fairness=statistics.median(one.fairness for one in rounds),
            wait=None if case.ideal is None else statistics.median(longest(one) / case.ideal for one in rounds),
        )


BARGING = {False: 'queue.SimpleQueue', True: 'asyncio.Queue'}
"""The bare queues that loads are compared with, for threads and for tasks."""


def longest(seen: loads.Seen) -> float:
    return seen.longest_wait if all(seen.served) else math.inf


# --- those that cannot ---


def running(lines: Sequence[Line]) -> Iterator[Line]:
    return (line for line in lines if not line.reason)


@contextlib.contextmanager
def telling(line: Line) -> Iterator[None]:
    """Record why a peer cannot be measured, and go on with the others. Its incomplete figures are dropped."""
    try:
        yield
    except Exception as error:
        line.reason = f'{type(error).__name__}: {error}'.splitlines()[0]
        line.pair = line.context = None
        line.loads.clear()
