"""Every interleaving that matters: real threads over a real pool, one at a time, under a scheduler that decides at each
boundary between transitions which of them goes on, and tries them all.

The threads are the threading pool's own callers and workers. They can be switched before each of the core's transitions
(`Core.on_transition`), at each event that they wait for (all events are replaced by cooperative ones), and wherever a
scenario says so, as in a manager's hooks. In between they run undisturbed; with the GIL no transition can be cut.

The order of exploration is iterative context bounding (M. Musuvathi and S. Qadeer, "Iterative Context Bounding for
Systematic Testing of Multithreaded Programs", PLDI 2007): first all schedules without a preemption, then all with one,
then all with two. A switch away from a thread that cannot go on is free; one away from a thread that could is a
preemption. Most concurrency bugs need few of them, and for a fixed bound the number of schedules is polynomial in the
number of boundaries. The search is stateless: each schedule runs from the beginning, by replaying the choices of an
earlier one up to a point and choosing differently there.

Time stands still while any thread can go on. When all wait, the earliest of their time-outs passes; a thread may also
be told to be *impatient*: its time-out may pass (or a signal handler may raise in it) at any boundary. When no thread
can go on and none has a time-out, that is a deadlock, or a lost wake-up."""

from __future__ import annotations

import gc
import itertools
import os
import threading as real
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf
from types import SimpleNamespace
from typing import Any, NoReturn

BOUNDARIES = 2000
"""More boundaries than any schedule has that ends at all."""

SECONDS = 20.0
"""For how long a schedule may take in real time: a longer one waits for something that is not under control."""


class Stopped(BaseException):
    """Raised in the threads of a schedule that has failed, so that they end."""


class Broken(AssertionError):
    """A schedule went wrong. Says what, and the schedule."""


@dataclass
class Choice:
    """What a scheduler did at one boundary.

    :ivar options: the threads that could go on, the one that costs nothing first
    :ivar chosen: the index of the one that did
    :ivar preempts: whether any other than the first would have been a preemption
    """

    options: list[int]
    chosen: int
    preempts: bool


class Actor:
    """One thread under control."""

    def __init__(
        self, number: int, name: str, target: Callable[[], None], impatience: type[BaseException] | None
    ) -> None:
        self.number = number
        self.name = f'{number}-{name}'
        self.target = target
        self.impatience = impatience
        self.gate = real.Lock()
        self.gate.acquire()
        self.waits_for: Callable[[], bool] | None = None  # what must hold before it goes on
        self.deadline = inf
        self.timed_out = False
        self.is_over = False
        self.error: BaseException | None = None
        self.thread: real.Thread | None = None

    @property
    def is_ready(self) -> bool:
        return not self.is_over and (self.waits_for is None or self.waits_for())


class Scheduler:
    """Runs one schedule: a list of choices to begin with, and the free choice from there on.

    :param prefix: which of the options to take at each boundary; the first one where this ends
    """

    def __init__(self, prefix: tuple[int, ...] = ()) -> None:
        self.prefix = prefix
        self.choices: list[Choice] = []
        self.trace: list[str] = []
        self.now = 0.0
        self.slept = 0.0  # how far time went while a thread in the foreground had to wait for it
        self.actors: list[Actor] = []
        self.foreground: list[Actor] = []
        self.failure: str | None = None
        self._current: Actor | None = None
        self._end = real.Lock()
        self._end.acquire()
        self._boundaries = 0
        self._by_thread: dict[int, Actor] = {}

    # --- for the scenario ---

    def spawn(
        self,
        name: str,
        target: Callable[[], None],
        *,
        foreground: bool = True,
        impatience: type[BaseException] | None = None,
    ) -> None:
        """Add a thread.

        :param foreground: whether the schedule is about it: when only others are left, nothing is explored any more
        :param impatience: what may happen to it in any wait: `TimeoutError` for its time-out, another error to be
                           raised there, as by a signal handler
        """
        actor = Actor(len(self.actors), name, target, impatience)
        self.actors.append(actor)
        if foreground:
            self.foreground.append(actor)
        if self._current is not None:
            self._launch(actor)

    def run(self) -> None:
        """Run the schedule to its end.

        :raises Broken: when a thread raised, or all of them waited for ever
        """
        for actor in list(self.actors):
            self._launch(actor)
        self._current = Actor(-1, 'begin', lambda: None, None)
        self._current.is_over = True
        self._pass_on()
        if not self._end.acquire(timeout=SECONDS):
            self.failure = self.failure or 'a thread waits for something that is not under control'
            self._stop()
        for actor in self.actors:
            assert actor.thread is not None
            actor.thread.join(SECONDS)
        errors = [f'{actor.name} raised {actor.error!r}' for actor in self.actors if actor.error is not None]
        if self.failure or errors:
            raise Broken(f'{self.failure or "; ".join(errors)}\n' + self.story()) from next(
                (actor.error for actor in self.actors if actor.error is not None), None
            )

    def story(self) -> str:
        """Write down what the threads did."""
        return '\n'.join(f'    {line}' for line in self.trace)

    # --- at the boundaries ---

    @property
    def me(self) -> Actor | None:
        """The actor that this thread is, if it is one."""
        return self._by_thread.get(real.get_ident())

    def pause(self, label: str) -> None:
        """Let the scheduler decide which thread goes on."""
        me = self.me
        if me is None or me.is_over or self.failure is not None:
            return
        self.trace.append(f'{me.name}: {label}')
        self._pass_on()

    def wait(self, label: str, ready: Callable[[], bool], timeout: float) -> bool:
        """Wait until something holds. Returns whether it does: `False` means a time-out.

        :param timeout: seconds; ``inf``: no limit
        """
        me = self.me
        if me is None:  # the scenario itself: it never waits
            return ready()
        if self.failure is not None:
            raise Stopped
        self.trace.append(f'{me.name}: {label}')
        me.waits_for, me.deadline = ready, self.now + round(timeout, 3)
        me.timed_out = False
        try:
            self._pass_on()
        finally:
            me.waits_for, me.deadline = None, inf
        if me.timed_out:
            self.trace.append(f'{me.name}: ... timed out')
            if me.impatience is not None and me.impatience is not TimeoutError:
                error, me.impatience = me.impatience, None
                raise error
        return not me.timed_out

    def _pass_on(self) -> None:
        """Choose the thread that goes on, and wait until this one is chosen."""
        me = self.me
        chosen = self._choose()
        if chosen is me:
            return
        if chosen is not None:
            self._current = chosen
            self.trace.append(f'{chosen.name}:')
            chosen.gate.release()
        else:
            self._end.release()
        if me is not None and not me.is_over:
            me.gate.acquire()
            if self.failure is not None:
                raise Stopped

    def _choose(self) -> Actor | None:
        current = self._current
        assert current is not None
        self._boundaries += 1
        if self._boundaries > BOUNDARIES:
            self._fail('it goes on and on')
        ready = [actor for actor in self.actors if actor.is_ready]
        impatient = [
            actor for actor in self.actors
            if not actor.is_over and not actor.is_ready and actor.impatience is not None and actor.waits_for is not None
        ]  # fmt: skip
        if not ready and not impatient:
            return self._let_time_pass()
        # the current one first, then those who can go on, then those who may lose patience
        options = sorted(ready, key=lambda actor: (actor is not current, actor.number)) + impatient
        chosen = options[self._pick([actor.number for actor in options], preempts=current in ready)]
        chosen.timed_out = chosen in impatient
        return chosen

    def _pick(self, options: list[int], *, preempts: bool) -> int:
        if len(options) == 1 or all(actor.is_over for actor in self.foreground):
            return 0
        position = len(self.choices)
        chosen = self.prefix[position] if position < len(self.prefix) else 0
        if chosen >= len(options):
            raise Broken(f'not reproducible: choice {chosen} of {options}\n' + self.story())
        self.choices.append(Choice(options, chosen, preempts))
        return chosen

    def _let_time_pass(self) -> Actor | None:
        """All wait: the first time-out passes."""
        waiting = [actor for actor in self.actors if not actor.is_over]
        if not waiting:
            return None
        first = min(waiting, key=lambda actor: (actor.deadline, actor.number))
        if first.deadline == inf:
            self._fail('all wait for ever: ' + ', '.join(actor.name for actor in waiting))
        if not all(actor.is_over for actor in self.foreground):
            self.slept += first.deadline - self.now
        self.now = max(self.now, first.deadline)
        first.timed_out = True
        return first

    def _fail(self, failure: str) -> NoReturn:
        self.failure = failure
        self._stop()
        raise Stopped

    def _stop(self) -> None:
        """Let all threads go, to raise `Stopped`."""
        me = self.me
        for actor in self.actors:
            if actor is not me and not actor.is_over and actor.gate.locked():
                actor.gate.release()
        if me is not None:
            self._end.release()

    # --- threads ---

    def _launch(self, actor: Actor) -> None:
        actor.thread = real.Thread(target=self._run, args=(actor,), name=actor.name, daemon=True)
        actor.thread.start()

    def _run(self, actor: Actor) -> None:
        self._by_thread[real.get_ident()] = actor
        actor.gate.acquire()
        try:
            if self.failure is None:
                actor.target()
        except Stopped:
            pass
        except BaseException as error:
            actor.error = error
        actor.is_over = True
        if self.failure is None:
            self.trace.append(f'{actor.name}: over')
            try:
                self._pass_on()
            except Stopped:
                pass


# --- what the pool waits for, cooperative ---


class Event:
    """In place of the core's events: a wait that succeeds clears it.

    :param switches: whether threads can be switched after it was set: where Python code sets it
    """

    def __init__(self, scheduler: Scheduler, *, switches: bool = False) -> None:
        self._scheduler = scheduler
        self._switches = switches
        self._is_set = False

    def set(self) -> None:
        self._is_set = True
        if self._switches:
            self._scheduler.pause('set')

    __call__ = set

    def wait(self, seconds: float = inf) -> bool:
        if not self._is_set and (seconds <= 0 or not self._scheduler.wait('wait', lambda: self._is_set, seconds)):
            return False
        self._is_set = False
        return True


@contextmanager
def cooperative(scheduler: Scheduler) -> Iterator[None]:
    """Put the threading pool, its background and its disposer under a scheduler's control, for the pools made
    meanwhile."""
    import gcp.background.threads as background
    import gcp.disposal.threads as disposal
    import gcp.threading as front

    class Thread:
        def __init__(self, target: Callable[[], None], name: str = '', daemon: bool = True) -> None:
            self._target, self._name = target, name
            self._has_begun = False

        def start(self) -> None:
            scheduler.spawn(self._name, self._run, foreground=False)
            scheduler.wait(f'start {self._name}', lambda: self._has_begun, inf)

        def _run(self) -> None:
            self._has_begun = True
            self._target()

    class Worker:
        """Between what a worker does there is Python code, in which threads can be switched."""

        def __init__(self, *args: Any) -> None:
            self._worker = real_worker(*args)

        def __getattr__(self, name: str) -> Any:
            scheduler.pause(f'worker.{name}')
            return getattr(self._worker, name)

    def now() -> float:
        return scheduler.now

    def new_event() -> Event:
        return Event(scheduler)

    def new_closers_event() -> Event:
        return Event(scheduler, switches=True)

    def wait_for(event: Event, seconds: float) -> bool:
        return event.wait(seconds)

    def set_up(pool: front.ConnectionPool[Any, Any], *args: Any, **kwargs: Any) -> None:
        real_init(pool, *args, **kwargs)
        pool._make_event = new_event

    real_worker = disposal.Worker
    real_init = front.ConnectionPool.__init__
    replacements: list[tuple[Any, str, Any]] = [
        (front, 'event_class', lambda: new_closers_event),
        (front, 'wait_for', wait_for),
        (front, 'monotonic', now),
        (front.ConnectionPool, '__init__', set_up),
        (background, 'event_class', lambda: new_closers_event),
        (background, 'wait_for', wait_for),
        (disposal, 'threading', SimpleNamespace(Thread=Thread)),
        (disposal, 'Worker', Worker),
        (disposal, 'event_class', lambda: new_event),
        (disposal, 'wait_for', wait_for),
        (disposal, 'clock', now),
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in replacements]
    for module, name, value in replacements:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


# --- the search ---

Scenario = Callable[[Scheduler], Callable[[], None]]
"""Sets a world up under a scheduler, and returns what is to hold afterwards."""


@dataclass
class Report:
    """What an exploration did.

    :ivar schedules: how many schedules were run, by the number of their preemptions
    :ivar longest: the most boundaries of one schedule at which there was a choice
    """

    schedules: list[int] = field(default_factory=list)
    longest: int = 0

    @property
    def total(self) -> int:
        return sum(self.schedules)


def explore(scenario: Scenario, *, preemptions: int = 2, most: float = inf) -> Report:
    """Run a scenario under all its interleavings with so many preemptions at most, those with fewer first.

    :param scenario: sets a world up under a scheduler, and returns what is to hold afterwards
    :param most: how many schedules to run at most
    :raises Broken: for the first schedule that goes wrong; no schedule with fewer preemptions does
    """
    report = Report()
    now: deque[tuple[int, ...]] = deque([()])
    with undisturbed():
        for bound in range(preemptions + 1):
            report.schedules.append(0)
            later: deque[tuple[int, ...]] = deque()
            while now and report.total < most:
                prefix = now.popleft()
                scheduler = run(scenario, prefix)
                report.schedules[bound] += 1
                if not report.total % 1000:
                    gc.collect()
                report.longest = max(report.longest, len(scheduler.choices))
                chosen = tuple(choice.chosen for choice in scheduler.choices)
                for position, choice in itertools.islice(enumerate(scheduler.choices), len(prefix), None):
                    for other in range(1, len(choice.options)):
                        (later if choice.preempts else now).append((*chosen[:position], other))
            if not later or report.total >= most:
                break
            now = later
    return report


@contextmanager
def undisturbed() -> Iterator[None]:
    """Without garbage collections: a finalizer in the middle of a schedule would not be there in its replay. And on one
    processor: threads of which only one runs are switched several times as fast there."""
    collecting = gc.isenabled()
    processors = os.sched_getaffinity(0) if hasattr(os, 'sched_getaffinity') else None
    gc.disable()
    try:
        if processors:
            os.sched_setaffinity(0, {min(processors)})
        yield
    finally:
        if processors:
            os.sched_setaffinity(0, processors)
        if collecting:
            gc.enable()


def run(scenario: Scenario, prefix: tuple[int, ...] = ()) -> Scheduler:
    """Run one schedule of a scenario.

    :raises Broken: when it goes wrong
    """
    scheduler = Scheduler(prefix)
    with cooperative(scheduler):
        verify = scenario(scheduler)
        scheduler.run()
        try:
            verify()
        except Exception as error:
            raise Broken(f'afterwards: {error!r}; choices {prefix}\n' + scheduler.story()) from error
    return scheduler
