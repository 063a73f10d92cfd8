from asyncio import Future
from collections.abc import Callable, Collection, Coroutine, Generator, Hashable, Iterable, Iterator
from contextvars import Context
from math import inf
from types import CodeType, GenericAlias, TracebackType
from typing import Any, Final, Generic, Literal, NoReturn, SupportsFloat, TypedDict, TypeVar, final, overload

from typing_extensions import Unpack, disjoint_base

from gcp.limits import Limits, Retry
from gcp.listener import PoolListener

_EndpointT = TypeVar('_EndpointT', bound=Hashable)
_ConnectionT = TypeVar('_ConnectionT')

_Reason = Literal[
    'idle_timeout',
    'max_lifetime',
    'dead',
    'discarded',
    'evicted',
    'pool_closed',
    'error',
    'expired',
    'max_uses',
    'retired',
]

HOOKS: Final[tuple[str, ...]]
EVENTS: Final[tuple[str, ...]]
HOOK_OUTCOMES: Final[tuple[str, ...]]
REASONS: Final[tuple[str, ...]]
RESULTS: Final[tuple[str, ...]]
CONNECT_FAILURES: Final[tuple[str, ...]]
BREAKER_STATES: Final[tuple[str, ...]]
OUTCOMES: Final[tuple[str, ...]]
WAIT_BOUNDS: Final[tuple[float, ...]]
USE_BOUNDS: Final[tuple[float, ...]]
AGE_BOUNDS: Final[tuple[float, ...]]

TODOS: Final[tuple[str, ...]]
TODO_DISPOSE: Final[int]
TODO_WAIT: Final[int]
TODO_DONE: Final[int]
DISPOSE_GRACE: Final[float]
NO_ENDPOINT: Final[object]

# --- events ---

def set_main_thread(ident: int) -> None:
    """Say which thread runs signal handlers. A forked child sets it itself.

    :param ident: its `threading.get_ident`
    """

@final
class Event:
    """An event for one waiter. A wait that succeeds clears it; setting it twice is the same as once.

    It is a lock that is held while the event is not set, so that it needs neither a condition nor a Python frame."""

    def __call__(self, *args: object, **kwargs: object) -> None: ...
    def set(self) -> None:
        """Wake the waiter, or the next one."""
    def wait(self, seconds: float = inf) -> bool:
        """Wait until the event is set, and clear it. Signal handlers run meanwhile, and may raise.

        :param seconds: how long to wait at most; ``inf``: without a limit
        :return: whether it was set
        """
    @property
    def awaited(self) -> bool:
        """Whether a thread waits for it at this moment, and has not been woken. (A bool.)"""

@final
class FutureEvent:
    """Ends a task's wait: its future's result says whether it was set, or its time ran out."""

    def __init__(self, future: Future[bool]) -> None: ...
    def __call__(self, *args: object, **kwargs: object) -> None: ...
    @property
    def future(self) -> Future[bool]:
        """What the task waits for."""

def time_out(future: Future[bool]) -> None:
    """End a wait without success."""

# --- arguments ---

def describe(endpoint: object) -> str:
    """Show an endpoint in a message: what can be recognised, but nothing that may carry credentials (a URL, a DSN)."""

@overload
def check_timeout(timeout: None, name: str = 'timeout') -> None:
    """Check a time-out given by a caller: seconds as a float, or None."""

@overload
def check_timeout(timeout: SupportsFloat, name: str = 'timeout') -> float:
    """Check a time-out given by a caller: seconds as a float, or None."""

def chain(body: BaseException, error: BaseException) -> None:
    """Append an error to the context of the one that is raised, so that neither hides the other."""

# --- the core ---

@final
class HookCall:
    """A hook call in progress. It ends once: the first outcome counts.

    A creation is not counted here but by `book_connection`, in one transition with its connection."""

@final
class EndpointCounts:
    """The endpoints of a pool and their counts at one moment: a sequence of ``(endpoint, counts)``. The counts of an
    endpoint become Python objects when they are asked for.

    :ivar endpoints: the endpoints, in the same order"""

    @property
    def endpoints(self) -> list[Any]:
        """The endpoints, in the order in which they were registered."""
    def __len__(self) -> int: ...
    def __getitem__(self, i: int, /) -> tuple[Any, dict[str, Any]]: ...
    def __iter__(self) -> Iterator[tuple[Any, dict[str, Any]]]: ...

@final
class FinalCounts:
    """What a pool has counted, once it is gone: the totals of all pools must never step back."""

    @property
    def core(self) -> Core | None:
        """The core, or None once it is gone. It may outlive its pool while a lease is held."""
    def read(self) -> dict[str, Any] | None:
        """Return the totals as `Core.snapshot` does, or None while there is a core to ask."""

@final
class Core:
    """The state of one pool.

    :param max_size: connections of one endpoint, at most
    :param total_max_size: connections of all endpoints together, at most
    :param min_idle: idle connections of an endpoint that are kept (its base); the others are extras
    :param idle_timeout: seconds after which an idle extra expires
    :param max_lifetime: seconds after which any connection expires
    :param lifetime_jitter: the largest part of a lifetime that is taken off at random, 0 to 1
    :param leak_threshold: seconds after which a connection that is still held counts as leaked
    :param clock: returns seconds; for tests. ``None``: the monotonic clock
    :param max_uses: after so many uses a connection is disposed of; None: no limit
    :param keepalive_interval: seconds after which an idle connection is checked in the background; ``inf``: never
    :param check_interval: seconds for which a connection that was used or checked needs no check
    :param refill: whether kept endpoints are brought back to `min_idle` connections
    :param connect_workers: how many connections are created at a time in the background; 0: callers create them
    :param connect_timeout: how long one connect may take, seconds; None: no limit
    :param max_connecting: connects of one endpoint at a time; None: no limit
    :param max_connecting_total: connects of all endpoints at a time; None: no limit
    :param connect_retry: ``(initial, maximum, factor, jitter)``, or None: a failed connect ends its acquire
    :param breaker_threshold: after so many failed connects of an endpoint in a row, others fail at once; None: never
    :param max_waiting: acquires of an endpoint that may wait; None: no limit
    :param admission: ``'deadline'``: an acquire whose wait is expected to outlast its deadline fails at once
    """

    wake_collector: Callable[[], object] | None
    workers_rest: bool
    wake_background: Callable[[], object] | None
    on_abandoned: Callable[[], object] | None
    on_drained: Callable[[], object] | None
    on_fork: Callable[[], object] | None
    on_transition: Callable[[str], object] | None
    limits_of: Callable[[Any], tuple[Any, ...] | None] | None
    listener_thread: Any
    describe_holders: Callable[[list[Any]], list[Any]] | None
    on_lost: Callable[[Any], object] | None
    report: Callable[[str, Any, BaseException], object] | None
    tracer: Any
    traces_hits: bool
    def __new__(
        cls,
        *,
        max_size: int = 10,
        total_max_size: int = 100,
        min_idle: int = 1,
        idle_timeout: float = 60.0,
        max_lifetime: float = 3600.0,
        lifetime_jitter: float = 0.0,
        leak_threshold: float = inf,
        clock: Callable[[], float] | None = None,
        max_uses: int | None = None,
        keepalive_interval: float = inf,
        check_interval: float = 0.0,
        refill: bool = False,
        connect_workers: int = 0,
        connect_timeout: float | None = None,
        max_connecting: int | None = None,
        max_connecting_total: int | None = None,
        connect_retry: tuple[float, float, float, float] | None = None,
        breaker_threshold: int | None = None,
        max_waiting: int | None = None,
        admission: str | None = None,
        reserve: int = 0,
        reserve_timeout: float = ...,
    ) -> Core: ...
    def time(self) -> float:
        """Read the core's clock, seconds."""
    # expiry and closing
    def drain(self) -> None:
        """Reclaim what finalizers left: leases that were never released, acquires that were dropped."""
    def collect(self, limit: int) -> int:
        """Make up to `limit` expired idle connections victims, in the order of their expiry. Returns how many."""
    def next_expiry(self) -> float:
        """Return when the next connection may expire, or something is to be done in the background, by the core's clock
        (``inf``: never). The collector is woken, from now on, by what comes before that."""
    def close(self) -> None:
        """Close: waiters are turned away, idle connections become victims, held ones will when they are released."""
    def force(self) -> None:
        """Make victims of the connections that are still held."""
    # looking
    @property
    def final_counts(self) -> FinalCounts:
        """What the counts of the pool were at its end; it outlives the core."""
    @property
    def size(self) -> int:
        """Places taken: connections idle, used, being created and being disposed of."""
    @property
    def limits(self) -> tuple[int, int, int]:
        """``(total_max_size, max_size, min_idle)`` of the pool."""
    @property
    def disposing(self) -> int:
        """Connections that are being disposed of."""
    @property
    def closed(self) -> bool:
        """Whether the pool was closed."""
    @property
    def has_victims(self) -> bool:
        """Whether there are connections whose disposal has not begun."""
    def counts(self) -> tuple[int, int, int, int, int]:
        """Return ``(idle, used, creating, disposing, waiting)``."""
    def endpoint_size(self, endpoint: Hashable, acquired: bool | None = None) -> int:
        """Count an endpoint's connections: used ones, idle ones, or all places taken."""
    def snapshot(self) -> tuple[dict[str, Any], EndpointCounts]:
        """Return one consistent copy of all counts: ``(total, counts of the endpoints)``."""

@final
class LabelReader:
    """The endpoints of one core as one exporter sees them: which of them have a label, a number chosen by the exporter,
    and what was last read of those. Not for several threads at a time.

    A reading consists of `read`, `departed`, `settle`, and any number of calls of `sums`. One that is not carried on
    after `read` has no consequence.

    :ivar endpoints: how many endpoints the last reading has found"""

    @property
    def endpoints(self) -> int:
        """How many endpoints the last reading has found."""
    def read(self, core: Core, labelled: bool) -> tuple[dict[str, Any], list[Any], int]:
        """Read a core: all at one moment.

        :param labelled: whether endpoints may have labels
        :return: ``(total, endpoints listed since the last reading, sum of the max_size of all endpoints)``
        """
    def departed(self) -> dict[int, tuple[int, list[int]]]:
        """Return the endpoints with a label that are gone since the last reading, by label: ``{label: (how many, their
        counters as last read)}``. They are returned once."""
    def settle(self, labels: list[int]) -> None:
        """Give the endpoints that `read` has returned their labels.

        :param labels: the number of each one's label, from 0; negative: it has none
        """
    def sums(self, label: int) -> tuple[list[int], tuple[float, ...]]:
        """Return what was read of the endpoints with a label, added up: ``(row, states)``.

        :param label: its number; negative: of the endpoints without a label
        """
    def drop(self) -> dict[int, tuple[int, list[int]]]:
        """Return all endpoints with a label as departed."""

def explain_endpoint(core: Core, key: Any) -> dict[str, Any] | None:
    """Return what an acquire of an endpoint would wait for now, as plain values; None if the pool does not know it.

    :param key: the endpoint
    :raises TypeError: if it cannot be hashed
    """

def inspect_pool(core: Core, room: int) -> tuple[dict[str, Any], list[dict[str, Any]], int]:
    """Return ``(total, endpoints, how many endpoints there are)``: the counts of the whole pool, and what is to be said
    of the endpoints that matter most: those with waiters, those that fail, the fullest.

    :param room: how many endpoints at most
    """

def known_endpoints(core: Core) -> list[Any]:
    """Return the endpoints that the pool knows: those that have connections or waiters, are kept, or have failed."""

def list_waiters(
    core: Core, endpoints: tuple[Any] | None, room: int
) -> list[tuple[Any, int, float, float | None, str, str | None]]:
    """Return the acquires that wait, the oldest first, each as ``(endpoint, position, age, remaining, blocked_by,
    cap)``: its place in the wait queue of its endpoint, from 1, how long it has waited, how long it may still wait
    (None: without a limit), what holds it up.

    :param endpoints: None: those of all endpoints; else a tuple of one endpoint
    :param room: how many at most; negative: all
    """

def follow_up(pool: BaseConnectionPool[Any, Any]) -> None:
    """Wake those that are served by the new limits, and have what these leave no room for disposed of."""

# --- what holds a connection ---

@disjoint_base
class Holder:
    """Holds a slot, as the use that has this lease number."""

    @property
    def core(self) -> Core:
        """The core of the pool."""
    @property
    def endpoint(self) -> Any:
        """The endpoint."""
    @property
    def conn(self) -> Any:
        """The connection, or None."""
    @property
    def is_current(self) -> bool:
        """Whether the connection is still held by this. It is, too, after its release has begun."""
    @property
    def inherited(self) -> bool:
        """Whether this was made by the parent of this forked process."""

@final
class Acquire(Holder):
    # for the driver
    """An acquire in progress that is no idle hit. A driver asks `next`, does that, and tells `completed` or `failed`,
    until `next` returns `TODO_DONE`; whatever leaves the driver goes to `abandon`."""

    def next(self) -> int:
        """Return what is to be done now: a hook to call, `TODO_DISPOSE`, `TODO_WAIT` or `TODO_DONE`. It returns the
        same until it is told how that ended.

        :raises AcquireTimeoutError: if there is no time left
        :raises ConnectionPoolClosedError: if the pool is closed
        """
    def completed(self, result: object = None) -> int:
        """Say that what `next` asked for has ended well.

        :param result: what the hook returned; of a wait: whether the event was set in time
        """
    def failed(self, error: BaseException) -> int:
        """Say that the hook which `next` asked for has raised. Raises what ends the acquire: the error itself, or that
        time ran out. Errors of `on_connection_dead` are reported, and the acquire goes on; so it does after an error of
        `create`, if the pool retries."""
    def abandon(self, error: BaseException) -> int:
        """End an acquire that a driver left with an error: leave the wait queue, return the permit or the connection.
        Does nothing for one that has ended."""
    def begin_call(self) -> Any:
        """Call the asynchronous hook that `next` asked for; return what is to be awaited."""
    def make_call(self) -> None:
        """Call the blocking hook that `next` asked for, and say how it ended. All in one compiled piece: no signal
        handler can run between a connection's birth and its booking, and lose it."""
    def remaining(self) -> float | None:
        """Return the seconds that are left for the hook that `next` asked for; None: there is no limit."""
    def time_to_wait(self) -> float:
        """Return for how long to wait, seconds: in the queue until the deadline, or until it is time to look whether
        the endpoint may connect again; for a disposal a moment, and none if the acquire has to wait in the queue
        anyway."""
    @property
    def own(self) -> object:
        """The endpoint whose connections this caller may dispose of by itself."""
    @property
    def event(self) -> Any:
        """What the waiter waits on; ``None``: it does not wait."""
    # looking
    @property
    def todo(self) -> str:
        """The name of what `next` returned last."""
    @property
    def timeout(self) -> float | None:
        """The time limit, seconds; ``None``: there is none."""
    @property
    def nowait(self) -> bool:
        """Whether it does not wait for other users."""
    @property
    def age(self) -> float:
        """How long ago it was called, seconds."""
    @property
    def ahead(self) -> int:
        """How many acquires were in the wait queue when it came."""
    @property
    def blocked_by(self) -> str | None:
        """Which limit it waits for."""
    @property
    def block(self) -> tuple[int, int, int, int, int, float] | None:
        """Of that limit: idle, used, creating, waiting, the limit itself, and when the oldest use began."""
    @property
    def caller(self) -> Any:
        """The span that was current where it was called."""
    @property
    def created_by(self) -> Any:
        """The span in which its connection was created, where spans are recorded."""
    @property
    def released_by(self) -> Any:
        """The span of the use after which its connection was released."""
    @property
    def last_error(self) -> BaseException | None:
        """What the endpoint's latest creation failed with, while an acquire waits for one."""

@final
class Job(Holder):
    # for the driver
    """A connect or a check in the background. A driver asks `next`, does that, and tells `completed` or `failed`, until
    `next` returns `TODO_DONE`; whatever leaves the driver goes to `abandon`. No error of a hook is raised: that of a
    connect goes to whom it was to serve, all others are reported."""

    def next(self) -> int:
        """Return what is to be done now: a hook to call, or `TODO_DONE`."""
    def completed(self, result: object = None) -> int:
        """Say that the hook has ended well.

        :param result: what it returned
        """
    def failed(self, error: BaseException) -> int:
        """Say that the hook has raised an error."""
    def abandon(self, error: BaseException) -> int:
        """End a job that a driver left with an error: give back the permit, or discard the connection. Does nothing to
        one that has ended."""
    def begin_call(self) -> Any:
        """Call the asynchronous hook that `next` asked for; return what is to be awaited."""
    def make_call(self) -> None:
        """Call the blocking hook that `next` asked for, and say how it ended. All in one compiled piece: no signal
        handler can run between a connection's birth and its booking, and lose it."""
    def remaining(self) -> float | None:
        """Return the seconds that are left for the hook; None: there is no limit."""
    def time_to_wait(self) -> float:
        """Return for how long to wait for a disposal, seconds: not at all."""
    @property
    def own(self) -> object:
        """The endpoint whose connections it may dispose of by itself."""
    @property
    def is_check(self) -> bool:
        """Whether it checks a connection; otherwise it creates one."""
    # looking
    @property
    def key(self) -> Any:
        """The endpoint."""
    @property
    def kind(self) -> str:
        """The name of the hook that is to be called."""
    @property
    def context(self) -> Context:
        """The context variables of the acquire on whose behalf it is done."""

HOLDERS_SHOWN: Final[int]

def find_holders(pool: BaseConnectionPool[_EndpointT, _ConnectionT], endpoint: object, most: int) -> list[Any]:
    """Describe the holders of connections, the longest held first.

    :param endpoint: of which endpoint; None: of all
    :param most: how many at most
    """

def look_at_waits(pool: BaseConnectionPool[_EndpointT, _ConnectionT]) -> tuple[bool, Any, str, bool]:
    """Look for acquires that wait without a time limit, and note whether any acquire waits, as `set_monitored` does.

    :return: ``(whether any acquire waits, the caller that has waited longest, what blocks it, whether it holds a
             connection of the same endpoint)``; the second is None where all have time limits
    """

def know_frames(wanted: bool) -> bool:
    """Say how it is found out where an acquire was called: by a look into the interpreter's frames, if they are as they
    are known to be, or by its functions.

    :param wanted: whether to look; False is for tests
    :return: whether it looks from now on
    """

def line_of(code: CodeType, at: int) -> tuple[str, int, str]:
    """Return ``(file, line, function)`` of a place in code.

    :param at: the offset of its instruction, bytes
    """

def look_for_leaks(
    pool: BaseConnectionPool[_EndpointT, _ConnectionT], told: Collection[int]
) -> tuple[list[tuple[int, Any]], set[int], float]:
    """Look for connections that are held for longer than ``leak_threshold``.

    :param told: the numbers of the uses that were found before
    :return: ``(the new ones: (number, holder), those of `told` that still last, seconds until the next may be found)``
    """

def count_reclaim_run(pool: BaseConnectionPool[_EndpointT, _ConnectionT]) -> None:
    """Count that the garbage collector was run for holders that are gone."""

def set_monitored(pool: BaseConnectionPool[_EndpointT, _ConnectionT], monitored: bool) -> None:
    """Note whether a pool is monitored, so that its next wait does not ask for it."""

def thread_context(thread: int) -> tuple[Context | None, bool | None]:
    """Return the context variables of a thread as they are now, and whether it runs: ``(context, running)``.

    :param thread: the id of its state
    :return: the context is None where the thread has none, and without the GIL
    """

def next_job(pool: BaseConnectionPool[_EndpointT, _ConnectionT], only_checks: bool = False) -> Job | None:
    """Return what is to be done in the background next; it has begun. None: there is nothing to do now.

    :param only_checks: whether it is to be a check
    """

def rest(core: Core, longest: float) -> float:
    """A worker that has found nothing to do rests. Return until when it keeps the time for the others, by the core's
    clock: then checks are due, and it is to look for them, or call `end_rest` before. inf: it does not.

    :param longest: how long a worker rests at most, seconds
    """

def end_rest(core: Core) -> int:
    """The worker that keeps the time for the others does not rest any more."""

@final
class Watch:
    """What a caller waits for. Its driver asks `done`, and waits for its event as long as `time_to_wait` says; then it
    calls `close`, and `conclude`, which raises what is to be raised."""

    event: Any
    def done(self) -> bool:
        """Return whether there is nothing left to wait for."""
    def time_to_wait(self) -> float:
        """Return for how long to wait at most, seconds: until the deadline, or until a connect is to be tried again.
        0: the time is over."""
    def close(self) -> None:
        """Stop waiting."""
    def missing(self) -> dict[Any, int]:
        """Return how many connections are missing, by endpoint."""
    def conclude(self) -> None:
        """Raise what has gone wrong, if something has.

        :raises ConnectionPoolClosedError: if the pool was closed meanwhile
        :raises PoolNotReadyError: if connections are missing, and no error says why
        :raises TimeoutError: if time ran out before what was suspended, or expired, was released
        """
    def raised(self) -> list[BaseException]:
        """Return the errors of the endpoints that could not be warmed up, one each."""
    def force(self) -> None:
        """Take the connections of an endpoint that is being retired from their holders."""

def begin_warm_up(
    pool: BaseConnectionPool[_EndpointT, _ConnectionT],
    keys: tuple[_EndpointT, ...],
    size: int | None,
    timeout: float | None,
    event: Any,
) -> Watch:
    """Begin to warm endpoints up; they are kept from now on.

    :param size: how many connections each is to have; None: `min_idle`
    :param timeout: seconds; None: no limit
    :param event: set when it may be done
    :raises ValueError: if `size` is above a cap
    :raises EndpointRetiredError: if one of them is being retired
    """

def begin_readiness(pool: BaseConnectionPool[_EndpointT, _ConnectionT], timeout: float | None, event: Any) -> Watch:
    """Begin to wait until each kept endpoint has its `min_idle` connections."""

def begin_retirement(
    pool: BaseConnectionPool[_EndpointT, _ConnectionT], key: _EndpointT, timeout: float | None, event: Any
) -> Watch:
    """Begin to retire an endpoint: it takes no new acquires until this has ended.

    :raises ConnectionPoolNotFound: if the pool does not know it
    """

def expire_connections(pool: BaseConnectionPool[_EndpointT, _ConnectionT], key: _EndpointT | None) -> None:
    """Let no connection be handed out again that was opened before now.

    :param key: the endpoint; None: all. One that is not known has none
    """

def begin_expiry(pool: BaseConnectionPool[_EndpointT, _ConnectionT], timeout: float | None, event: Any) -> Watch:
    """Begin to wait until all connections that were expired are gone."""

def begin_suspension(
    pool: BaseConnectionPool[_EndpointT, _ConnectionT],
    key: _EndpointT | None,
    mode: str,
    drain: bool,
    timeout: float | None,
    event: Any,
) -> Watch | None:
    """Suspend an endpoint, or all.

    :param key: the endpoint, known or not; None: all
    :param mode: 'wait' or 'raise': what acquires do
    :param drain: whether to wait until no connection is held
    :param event: set when there may be none
    :return: what to wait for, or None
    """

def resume_endpoints(pool: BaseConnectionPool[_EndpointT, _ConnectionT], key: _EndpointT | None) -> None:
    """End a suspension.

    :param key: the endpoint; None: all, and each that is suspended by itself
    """

@final
class Release(Holder):
    """A release in progress. Driven like an `Acquire`: `next`, then `completed` or `failed`, until `TODO_DONE`."""

    def next(self) -> int:
        """Return what is to be done now: `on_release`, `TODO_DISPOSE` or `TODO_DONE`. Raises what `on_release` raised,
        at the end."""
    def completed(self, result: object = None) -> None:
        """Say that what `next` asked for has ended well."""
    def failed(self, error: BaseException) -> None:
        """Say that `on_release` has raised: that costs the connection."""
    def begin_call(self) -> Any:
        """Call the asynchronous `on_release`; return what is to be awaited."""
    def make_call(self) -> None:
        """Call the blocking `on_release`, and say how it ended."""
    def remaining(self) -> None:
        """Return None: a release has no limit."""
    def time_to_wait(self) -> float:
        """Return for how long to wait for victims of other endpoints, seconds."""
    def discard(self, reason: _Reason) -> int:
        """Make the connection a victim.

        :param reason: one of `REASONS`
        :raises ValueError: for another one
        """
    @property
    def own(self) -> Any:
        """The endpoint whose connections this caller may dispose of by itself."""

def is_clean(
    pool: BaseConnectionPool[_EndpointT, _ConnectionT],
    endpoint: _EndpointT,
    conn: _ConnectionT,
    error: BaseException | None,
) -> bool:
    """Ask the manager whether a connection may be used again after an error of its holder. One that makes all others of
    its endpoint useless as well expires them."""

# --- disposal ---

@final
class Victim:
    """A connection on its way out. It is disposed of once."""

    @property
    def core(self) -> Core:
        """The core of the pool."""
    @property
    def endpoint(self) -> Any:
        """The endpoint."""
    @property
    def conn(self) -> Any:
        """The connection."""
    @property
    def reason(self) -> _Reason:
        """Why it is disposed of."""
    @property
    def started(self) -> bool:
        """Whether its disposal has begun."""
    @property
    def overdue(self) -> bool:
        """Whether its disposal takes longer than it may."""
    @property
    def given_up(self) -> bool:
        """Whether its place is free although its disposal has not ended."""
    def end(self, error: BaseException | None, report: Callable[[Victim, BaseException], object] | None = None) -> int:
        """Its `dispose` has returned, or raised `error`.

        :param report: called with it and the error, while the span of the call is the current one
        """
    def give_up(self) -> bool:
        """Count it as gone although its `dispose` has not returned. Returns whether it had not been counted before. Not
        one whose `dispose` was not called yet: its worker waits for the processor, and needs the connection."""
    def take_back(self) -> None:
        """Return it to the core: its disposal was not begun, because a signal came first."""
    def mark_overdue(self) -> None:
        """Say that its disposal takes long: the waiter for whom its place is reserved may be served otherwise."""

@final
class Batch:
    """Victims that were gathered together. Each worker that is free takes the next one."""

    event: Callable[[], object] | None
    @property
    def patience(self) -> float:
        """How long its disposal may take, seconds."""
    @property
    def is_gone(self) -> bool:
        """Whether all are gone, or were given up."""
    def take(self) -> Victim | None:
        """Take the next victim, or None. A forked child leaves its parent's alone."""
    def belongs_to(self, endpoint: object) -> bool:
        """Return whether all are of one endpoint, and no place is reserved for another one's waiter: then they are the
        business of the caller that uses this endpoint."""
    def wait(self, seconds: float) -> bool:
        """Wait until all are gone. Returns whether they are.

        :param seconds: how long to wait at most; ``inf``: without a limit
        """

def origin_of(core: Core) -> object:
    """Return the span on whose behalf a disposal in the background is made; None: no spans are recorded."""

def gather(core: Core, event: Callable[[], object] | None = None, origin: object = None) -> Batch | None:
    """Take all victims away for disposal. Returns None if there are none.

    :param event: set when all are gone
    :param origin: as for `new_hook_call`
    """

def dispose_of(
    victim: Victim, hook: Callable[..., object], timeout: float | None = None, origin: object = None
) -> BaseException | None:
    """Dispose of a victim: call the manager's blocking `dispose`, count, time and trace it, report the victim gone.

    :param hook: the manager's `dispose`
    :param timeout: seconds, passed on to the hook; ``None``: no limit
    :param origin: as for `new_hook_call`
    :return: the error that it raised, or None
    """

def dispose_here(batch: Batch, hook: Callable[..., object], report: Callable[[Victim, BaseException], object]) -> int:
    """Dispose of victims in the caller's thread, however long it takes.

    :param hook: the manager's blocking `dispose`
    :param report: called with a victim and the error that its `dispose` raised
    """

def begin_disposal(
    victim: Victim,
    hook: Callable[..., Any],
    iterate: Callable[..., Any],
    begun: Callable[..., Any],
    origin: object = None,
    report: Callable[[Victim, BaseException], object] | None = None,
) -> Any:
    """Begin to dispose of a victim: call the manager's asynchronous `dispose`. If it does not suspend, it is counted,
    timed and traced, its error is reported, and the victim reported gone.

    :param hook: the manager's `dispose`
    :param iterate: makes an iterator of an awaitable that is no coroutine
    :param begun: makes what is to be awaited of an iterator that has suspended
    :param origin: as for `new_hook_call`
    :param report: as for `Victim.end`
    :return: None if it has ended; otherwise what is to be awaited, and `Victim.end` is to be called then
    """

@final
class WorkerPool:
    """The workers of a pool, and the batches that wait for them.

    :param clock: returns seconds; for tests. ``None``: the monotonic clock
    :param make_event: makes what a thread waits on until a batch is gone
    """

    def __init__(
        self, core: Core, clock: Callable[[], float] | None = None, make_event: Callable[[], object] = Event
    ) -> None: ...
    @property
    def has_work(self) -> bool:
        """Whether victims wait for a worker."""
    def has_free_worker(self, grace: float) -> bool:
        """Return whether there is a worker that is not stuck.

        :param grace: a worker that has been at one victim for longer is stuck, seconds
        """
    def has_unbegun_worker(self, grace: float) -> bool:
        """Return whether there is a worker that has not begun.

        :param grace: for longer than so many seconds
        """
    def offer(self, batch: Batch) -> None:
        """Queue a batch for the next free worker."""
    def wake_worker(self) -> bool:
        """Wake a resting worker. Returns whether there was one."""
    def dispose(
        self,
        own: object,
        seconds: float,
        hook: Callable[..., object],
        timeout: float | None,
        start: Callable[[], object],
        report: Callable[[Victim, BaseException], object],
    ) -> Batch | None:
        """Dispose of all victims on behalf of a caller: in its thread those of its own endpoint without a time-out, all
        others by the workers. Returns the batch if the caller has waited for a moment and some are left, else None.

        :param own: the caller's endpoint; `NO_ENDPOINT`: it has none
        :param seconds: how long to wait for victims of other endpoints at most
        :param hook: the manager's blocking `dispose`
        :param timeout: ``dispose_timeout``, seconds; ``None``: no limit
        :param start: as for `submit`
        :param report: as for `dispose_here`
        """
    def submit(self, batch: Batch, seconds: float, grace: float, start: Callable[[], object]) -> bool:
        """Queue a batch for the workers, and wait until its victims are gone. Returns whether they are.

        :param seconds: how long to wait at most
        :param grace: as for `has_free_worker`
        :param start: starts a worker
        """
    def stuck(self, grace: float) -> list[tuple[Victim, float]]:
        """Return the victims that take long, as a list of (victim, seconds).

        :param grace: how long a disposal may take, seconds
        """
    def is_busy(self) -> bool:
        """Return whether disposals are in progress."""
    def needs_watching(self, timed: bool) -> bool:
        """Return whether a disposal in progress may come to take too long.

        :param timed: whether disposals have a time-out: then they are watched until it has passed, else until their
                      reservations are cancelled
        """

@final
class Worker:
    """A thread or task that disposes of victims, one at a time.

    :param worker_pool: to which it belongs from `join` to `quit`
    :param event: what it waits for when there is nothing to do
    """

    def __init__(self, worker_pool: WorkerPool, event: Callable[[], object] | None = None) -> None: ...
    @property
    def victim(self) -> Victim:
        """The victim in work, or None."""
    def join(self) -> None:
        """Enrol in the worker pool. One that does not begin to work counts as stuck, too."""
    def quit(self) -> None:
        """Leave the worker pool. The victim in work, if there is one, is let go."""
    def rest(self, idle_time: float) -> bool:
        """Wait until there is something to do. Returns whether there is.

        :param idle_time: how long to wait at most, seconds
        """
    def work(
        self,
        hook: Callable[..., object],
        timeout: float | None,
        report: Callable[[Victim, BaseException, bool], object],
    ) -> None:
        """Dispose of all queued victims.

        :param hook: the manager's blocking `dispose`
        :param timeout: seconds, passed on to the hook; ``None``: no limit
        :param report: called with a victim, the error that its `dispose` raised, and whether it was not given up before
        """
    def begin_work(
        self,
        hook: Callable[..., Any],
        iterate: Callable[..., Any],
        started: Callable[..., Any],
        report: Callable[[Victim, BaseException], object],
    ) -> Any:
        """Dispose of queued victims, up to the first whose disposal suspends. It is in work then.

        :param hook: the manager's asynchronous `dispose`
        :param iterate: as for `begin_disposal`
        :param started: likewise
        :param report: as for `Victim.end`; what it raises ends the work
        :return: what `begin_disposal` returned; None when there is nothing left
        """

# --- the compiled halves of the pools ---

class _Changes(TypedDict, Generic[_EndpointT], total=False):
    acquire_timeout: float | None
    dispose_batch_size: int
    dispose_timeout: float | None
    min_idle: int
    max_size: int
    idle_timeout: float | None
    max_lifetime: float | None
    total_max_size: int
    lifetime_jitter: float
    leak_threshold: float | None
    max_uses: int | None
    keepalive_interval: float | None
    check_interval: float | None
    limits: Limits[_EndpointT] | None
    refill: bool
    connect_workers: int
    connect_timeout: float | None
    max_connecting: int | None
    max_connecting_total: int | None
    connect_retry: Retry | None
    breaker_threshold: int | None
    max_waiting: int | None
    admission: Literal['deadline'] | None
    reserve: int
    reserve_timeout: float | None

@disjoint_base
class PoolView(Generic[_EndpointT, _ConnectionT]):
    """The part of a pool that only looks."""

    @property
    def _core(self) -> Core: ...
    @property
    def _options(self) -> Any: ...
    @property
    def name(self) -> str:
        """The pool's name in messages, metrics and spans."""
    @property
    def idle_timeout(self) -> float:
        """Seconds after which an idle extra is disposed of; ``inf``: never."""
    @property
    def max_lifetime(self) -> float:
        """Seconds after which any connection is disposed of; ``inf``: never."""
    @property
    def min_idle(self) -> int:
        """Idle connections of each endpoint that are kept."""
    @property
    def max_size(self) -> int:
        """Connections of one endpoint, at most."""
    @property
    def total_max_size(self) -> int:
        """Connections of all endpoints together, at most."""
    @property
    def is_full(self) -> bool:
        """Whether all places are taken."""
    @property
    def closed(self) -> bool:
        """Whether the pool was closed."""
    def get_size(self) -> int:
        """Return the number of places taken: connections idle, used, being created and being disposed of."""

@disjoint_base
class ListenedPool(PoolView[_EndpointT, _ConnectionT]):
    """The part of a pool that tells others: listeners of what happens, and its owner that it was not closed."""

    _make_listener_thread: Any
    def add_listener(self, listener: PoolListener) -> None:
        """Have a listener told of what happens in the pool from now on, in the pool's listener thread. One that was
        added before is not added again.

        :param listener: a ``gcp.PoolListener``
        :raises TypeError: if it is none, or if one of its methods is a coroutine function
        """
    def remove_listener(self, listener: PoolListener) -> None:
        """Have a listener told no more; a call in progress may still end. Does nothing for one that was not added.

        :param listener: what `add_listener` was given
        """

def listen(core: Core, kinds: Iterable[str]) -> None:
    """Have events of these kinds queued from now on, and no others.

    :param kinds: some of `EVENTS`
    """

def has_events(core: Core) -> bool:
    """Return whether events are queued."""

def take_events(core: Core) -> list[tuple[str, tuple[Any, ...]]]:
    """Take the events that are queued: a list of ``(method's name, arguments)``, in the order of the events."""

def tell_leak(core: Core, holder: object) -> None:
    """Queue the event of a leak."""

def count_listener_error(core: Core) -> None:
    """Count a call of a listener that has raised."""

@disjoint_base
class BaseConnectionPool(ListenedPool[_EndpointT, _ConnectionT]):
    """What the threading and the asyncio pool share. Not to be instantiated.

    Their Python halves override `_drive`, and set the collaborators: `_disposer`, `_collector`, `_report`."""

    @property
    def _manager(self) -> Any: ...
    @property
    def _check_aliveness(self) -> Any: ...
    @property
    def _on_acquire(self) -> Any: ...
    @property
    def _on_release(self) -> Any: ...
    @property
    def _on_connection_dead(self) -> Any: ...
    @property
    def _clean_after_error(self) -> Any: ...
    @property
    def _classify(self) -> Any: ...
    @property
    def _keepalive(self) -> Any: ...
    _telemetry: Any
    _disposer: Any
    _collector: Any
    _report: Any
    _monitored: Any
    _make_collector: Any
    _make_event: Any
    _timeout_error: Any
    def _set_up(
        self, manager: object, options: object, hooks: dict[str, Any], clock: Callable[[], float] | None = None
    ) -> None: ...
    def _drive(self, operation: Acquire | Job | Release) -> Any: ...
    def _drive_release(self, release: Release) -> Any:
        """Drive a release. What an error or a signal leaves behind is the collector's, if there is one."""
    def open_acquire(self, endpoint: _EndpointT, timeout: float | None, priority: int = 0) -> Acquire:
        """Make an acquire that is no idle hit."""
    def open_release(self, conn: _ConnectionT, endpoint: _EndpointT) -> Release | None:
        """Begin a release by name. Returns None if there is nothing to release: see `claim`."""
    def reconfigure(self, **changes: Unpack[_Changes[_EndpointT]]) -> None:
        """Change limits while the pool is in use. They are checked as a whole, as when it is built: defaults adapt,
        and nothing has changed if an error is raised. They hold from now on. Where a cap has grown, waiters are served
        at once. Where it has shrunk, idle connections beyond it are disposed of now, used ones when they are released.

        :param changes: any arguments of the constructor, except ``name``, ``background_collector``, ``track_holders``,
                        ``warn_after``, ``reclaim_abandoned`` and those of telemetry
        :raises TypeError: for an argument that is unknown, that cannot change, or that has a wrong type
        :raises ValueError: for an argument out of range, or two that contradict each other
        """
    def __reduce_ex__(self, protocol: object) -> NoReturn: ...
    @classmethod
    def __class_getitem__(cls, item: Any, /) -> GenericAlias: ...

@disjoint_base
class SyncPool(BaseConnectionPool[_EndpointT, _ConnectionT]):
    """Serves idle hits without a Python frame, with and without hooks."""

    _wait: Any
    def acquire(
        self, endpoint: _EndpointT, timeout: float | None = None, tag: str | None = None, priority: int = 0
    ) -> _ConnectionT:
        """Acquire a connection. The caller must release it; for a with statement use `connection`.

        :param endpoint: what to connect to; any hashable
        :param timeout: seconds for everything: waiting, creating, checking; zero or less: do not wait; ``inf``: no
                        limit; ``None``: the pool's ``acquire_timeout``
        :param tag: a word for `holders` that says what the connection is used for, of at most 64 characters
        :param priority: a whole number: of acquires that wait for the same endpoint, those with a higher one are served
                         first
        :raises AcquireTimeoutError: if it took longer
        :raises ConnectionPoolClosedError: if the pool is closed
        """
    def release(self, conn: _ConnectionT, endpoint: _EndpointT, error: BaseException | None = None) -> None:
        """Release a connection.

        :param conn: what `acquire` returned, or something equal to it
        :param endpoint: what it was acquired for
        :param error: what went wrong while it was held: the manager's `clean_after_error` decides whether the
                      connection is used again
        :raises ConnectionNotAcquiredError: if it is not held; nothing has changed then
        """
    def connection(
        self, endpoint: _EndpointT, timeout: float | None = None, tag: str | None = None, priority: int = 0
    ) -> Lease[_ConnectionT]:
        """Return a context manager that acquires a connection and releases it at the end.

        :param endpoint: what to connect to; any hashable
        :param timeout: as for `acquire`
        :param tag: as for `acquire`
        :param priority: as for `acquire`
        """

@final
class Lease(Holder, Generic[_ConnectionT]):
    """One use of a connection, as a context manager: what ``connection`` of a threading pool returns. It can be entered
    once: the connection is acquired then, and released at the end of the block."""

    def discard(self) -> None:
        """Give the connection back now, to be disposed of. Nothing is left to do at the end of the block.

        :raises RuntimeError: if the lease holds none
        :raises ConnectionNotAcquiredError: if the connection was released already
        """
    def __enter__(self) -> _ConnectionT: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Literal[False]: ...
    @classmethod
    def __class_getitem__(cls, item: Any, /) -> GenericAlias: ...

@disjoint_base
class AsyncPool(BaseConnectionPool[_EndpointT, _ConnectionT]):
    """Serves idle hits without a Python frame, with and without hooks that suspend."""

    _loop: Any
    _release_later: Any
    def _bind(
        self,
        running_loop: Callable[[], object],
        iterate: Callable[..., Any],
        begun: Callable[..., Any],
        drain_request: Callable[[AsyncPool[Any, Any]], Callable[[], object]],
        tasks: Any,
    ) -> None: ...
    def _attach_loop(self, loop: Any) -> None: ...
    def acquire(
        self, endpoint: _EndpointT, timeout: float | None = None, tag: str | None = None, priority: int = 0
    ) -> AsyncLease[_ConnectionT]:
        """Acquire a connection. The caller must release it.

        Returns an awaitable that is also an asynchronous context manager. It takes a connection when it is first
        awaited, not before, and gives it back if it is cancelled, closed or dropped on the way.

        :param endpoint: what to connect to; any hashable
        :param timeout: seconds for everything: waiting, creating, checking; zero or less: do not wait; ``inf``: no
                        limit; ``None``: the pool's ``acquire_timeout``
        :param tag: a word for `holders` that says what the connection is used for, of at most 64 characters
        :param priority: a whole number: of acquires that wait for the same endpoint, those with a higher one are served
                         first
        :raises AcquireTimeoutError: if it took longer
        :raises ConnectionPoolClosedError: if the pool is closed
        """
    def release(
        self, conn: _ConnectionT, endpoint: _EndpointT, error: BaseException | None = None
    ) -> Coroutine[Any, Any, None]:
        """Release a connection. To be awaited; without hooks to run, it is done before, where the pool's loop runs.

        :param conn: what `acquire` returned, or something equal to it
        :param endpoint: what it was acquired for
        :param error: what went wrong while it was held: the manager's `clean_after_error` decides whether the
                      connection is used again
        :raises ConnectionNotAcquiredError: if it is not held; nothing has changed then
        """
    def connection(
        self, endpoint: _EndpointT, timeout: float | None = None, tag: str | None = None, priority: int = 0
    ) -> AsyncLease[_ConnectionT]:
        """Return an asynchronous context manager that acquires a connection and releases it at the end.

        :param endpoint: what to connect to; any hashable
        :param timeout: as for `acquire`
        :param tag: as for `acquire`
        :param priority: as for `acquire`
        """

@final
class AsyncLease(Holder, Coroutine[Any, Any, _ConnectionT]):
    """One use of a connection, as an asynchronous context manager and as an awaitable: what ``connection`` and
    ``acquire`` return. Single use: ``async with`` acquires and releases the connection, ``await`` only acquires it."""

    @property
    def __name__(self) -> str: ...
    @property
    def __qualname__(self) -> str: ...
    def __await__(self) -> Generator[Any, Any, _ConnectionT]: ...
    def __next__(self) -> Any: ...
    def send(self, value: Any) -> Any:
        """Go on, as a coroutine does."""
    @overload
    def throw(self, kind: type[BaseException], value: object = None, traceback: TracebackType | None = None) -> Any:
        """Go on with an error, as a coroutine does."""
    @overload
    def throw(self, kind: BaseException, value: None = None, traceback: TracebackType | None = None) -> Any:
        """Go on with an error, as a coroutine does."""
    def close(self) -> None:
        """Stop, as a coroutine does; a connection that was taken is given back."""
    async def discard(self) -> None:
        """Give the connection back now, to be disposed of. Nothing is left to do at the end of the block.

        :raises RuntimeError: if the lease holds none
        :raises ConnectionNotAcquiredError: if the connection was released already
        """
    def __aenter__(self) -> Coroutine[Any, Any, _ConnectionT]: ...
    def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Coroutine[Any, Any, None]: ...
    @classmethod
    def __class_getitem__(cls, item: Any, /) -> GenericAlias: ...

# --- descriptors ---

def poll_now(fd: int, events: int) -> int:
    """Return which events a descriptor reports at this moment, an error and a hang-up included. Does not wait.

    :param fd: the descriptor
    :param events: the events to look for, as for poll(2)
    :raises ValueError: when the descriptor is negative, as that of a closed socket
    """

def shut_down(fd: int, receiving_only: bool = False) -> bool:
    """Shut a connection down, so that every thread that waits on it returns at once. The descriptor stays open; its
    owner closes it. Returns whether that was possible.

    :param fd: the descriptor; what is not a connected socket (any more) is left alone
    :param receiving_only: whether it may still send
    """

def peek(fd: int, size: int = 1) -> bytes:
    """Return the next bytes without consuming them; empty at EOF. Does not wait.

    :param fd: the descriptor
    :param size: how many bytes at most
    :raises BlockingIOError: when there is nothing to read
    :raises OSError: when the connection has failed, or it is not a socket
    """

def get_option(fd: int, level: int, name: int) -> int:
    """Return an option of a socket that is an integer.

    :param fd: the descriptor
    :param level: as for getsockopt(2)
    :param name: likewise
    :raises OSError: when it has no such option, or is not a socket
    """

def set_option(fd: int, level: int, name: int, value: int) -> None:
    """Set an option of a socket that is an integer.

    :param fd: the descriptor
    :param level: as for setsockopt(2)
    :param name: likewise
    :param value: its value
    :raises OSError: when it has no such option, or is not a socket
    """
