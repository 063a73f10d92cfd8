# The machine of an acquire, once for both fronts. It says what is to be done next, and is told how that ended: order of
# the hooks, deadlines, "dead, then again", "an error of a hook costs the connection", counting, timing and spans are
# decided here and nowhere else. It neither waits nor calls a hook by itself: a front's driver does.
#
# An idle hit is an acquire_t on its caller's stack. It becomes an Acquire, an object, when it has to wait or to create,
# or when something is wrong with it.

from gcp.core.frames cimport gcp_forget_site, gcp_site
from gcp.core.platform cimport gcp_lock, gcp_lock_outer, gcp_unlock, gcp_unlock_outer
from gcp.core.state cimport (
    CALL_DEAD, CALL_OK, CREATE, DONE, HOOK_CHECK, HOOK_CREATE, HOOK_DISPOSE, HOOK_ON_ACQUIRE, HOOK_ON_DEAD, NEW,
    N_HOOKS, REFUSED, TURNED_AWAY, UNAVAILABLE, USE, WAIT, cap, pool_t, waiter_t,
)
from gcp.core.stripes cimport count_idle, count_used


# What `next` asks for: a hook by its number (HOOK_DISPOSE: have the victims disposed of), or one of these.
cdef enum todo:
    DO_WAIT = N_HOOKS
    DO_DONE
    DO_BEGIN
    DO_ASK            # for a slot
    DO_ASK_AGAIN      # the connection is dead
    DO_TIME_OUT       # what ended well took too long

TODOS = (*HOOKS, 'wait', 'done')

# The arguments that set what may block.
cdef dict CAPS = {
    'endpoint cap': 'max_size', 'total cap': 'total_max_size', 'connect limit': 'max_connecting',
    'total connect limit': 'max_connecting_total', 'connect workers': 'connect_workers',
    'reserve': 'reserve',
}
NO_ENDPOINT = object()      # of a caller that has no victims of its own

# How long a caller waits for disposals that are not its own business, seconds: enough for those that take no time.
cdef double GRACE = 0.05


cdef enum:
    ENDED = 2


cdef struct acquire_t:
    int todo
    int fresh            # its connection needs no check; or ENDED: nor is there another hook to call
    int hook             # that has the connection: while there is one, an error costs the connection; N_HOOKS: none
    uint64_t arrival     # its age: should it have to wait, no younger acquire is served before it
    uint64_t epoch
    uint64_t lease
    double began
    double deadline
    double hook_began    # or, between hooks, when the next one begins


cdef double seconds_allowed(timeout, hook_timeout):
    """Return how long an acquire may take. One that does not wait gives its hooks the pool's ``acquire_timeout``."""
    cdef double seconds = INFINITY
    if timeout is not None:
        seconds = timeout
        if seconds <= 0:
            seconds = INFINITY if hook_timeout is None or hook_timeout <= 0 else hook_timeout
    return seconds


# --- the order of the hooks ---

cdef inline void after_check(BaseConnectionPool pool, acquire_t* a) noexcept:
    a.todo = <int>DO_DONE if pool._on_acquire is None else <int>HOOK_ON_ACQUIRE


cdef inline void after_slot(BaseConnectionPool pool, acquire_t* a) noexcept:
    a.todo = HOOK_CHECK
    if pool._check_aliveness is None or a.fresh:
        after_check(pool, a)


cdef inline void begin_hook(acquire_t* a) noexcept nogil:
    a.hook = a.todo


cdef inline void hook_went_well(BaseConnectionPool pool, acquire_t* a, double now) noexcept:
    """Decide what follows a hook that ended well, in time or not."""
    a.hook_began = now
    if now >= a.deadline:
        a.todo = DO_TIME_OUT
        return
    a.hook = N_HOOKS
    if a.todo == HOOK_CHECK:
        after_check(pool, a)
    else:
        a.todo = DO_DONE


cdef inline void after_death(BaseConnectionPool pool, acquire_t* a) noexcept:
    a.todo = <int>DO_ASK_AGAIN if pool._on_connection_dead is None else <int>HOOK_ON_DEAD


@cython.final
@cython.no_gc_clear
cdef class Acquire(Holder):
    """An acquire in progress that is no idle hit. A driver asks `next`, does that, and tells `completed` or `failed`,
    until `next` returns `TODO_DONE`; whatever leaves the driver goes to `abandon`."""
    cdef acquire_t a
    cdef waiter_t w
    cdef BaseConnectionPool pool
    cdef Endpoint ep
    cdef object key
    cdef readonly object own         # whose victims are the caller's own: NO_ENDPOINT, none are
    cdef readonly object event       # set when the wait is over
    cdef object timer                # of an event loop: ends the wait
    cdef readonly object timeout     # what the caller allowed: seconds, or None
    cdef readonly bint nowait
    cdef double create_began
    cdef double alarm                # when it looks again whether its endpoint may connect; inf: it does not
    cdef bint waited                 # it has waited for other callers
    cdef bint set_off                # a disposal that will leave it a place
    cdef bint disposed               # victims were disposed of: that is done once, before the hooks
    cdef bint made                   # it has created its connection
    cdef bint tried                  # a connect of its own has failed
    cdef bint misused                # its create returned what makes no sense: another try would return the same
    cdef bint ended
    cdef bint blocking               # its hooks are plain functions
    cdef int result
    cdef double took                 # from the call to the end, seconds
    cdef HookCall call
    cdef Slot fresh                  # allocated before create is called: the record of what it will return
    cdef object newborn              # what an asynchronous create has returned, until it is booked
    cdef object started              # what is to be awaited of a hook that was begun already
    cdef readonly object released_by  # the span in which its connection was, where spans are recorded
    cdef readonly object caller      # what `Tracer.caller` returned when it turned out to be no idle hit
    cdef readonly str blocked_by
    cdef readonly tuple block        # (idle, used, creating, waiting, limit, when the oldest use began)
    cdef object cause                # the endpoint's last creation error
    cdef object context              # its context variables, for a connect in the background on its behalf
    cdef gcp_site site               # where it was called, if that was noted

    # --- for the driver ---

    cpdef int next(self) except -1:
        """Return what is to be done now: a hook to call, `TODO_DISPOSE`, `TODO_WAIT` or `TODO_DONE`. It returns the
        same until it is told how that ended.

        :raises AcquireTimeoutError: if there is no time left
        :raises ConnectionPoolClosedError: if the pool is closed
        """
        if self.a.todo == DO_ASK:
            self.decide(ask(self, False))
        elif self.a.todo == DO_ASK_AGAIN:
            self.check_deadline('check_aliveness', None)
            self.decide(ask(self, True))
        if self.a.todo == DO_TIME_OUT:
            self.time_out('creation' if self.a.hook == N_HOOKS else HOOKS[self.a.hook], None)
        if self.a.todo == DO_DONE and not self.ended:
            finish(self)
        return self.a.todo

    cpdef int completed(self, result=None) except -1:
        """Say that what `next` asked for has ended well.

        :param result: what the hook returned; of a wait: whether the event was set in time
        """
        cdef int todo = self.a.todo     # nothing is allocated from here until a connection is booked
        if todo < N_HOOKS and not makes_sense(todo, result):
            self.newborn = None
            self.misused = True
            return self.failed(nonsense(self.pool._manager, todo, result, self.blocking))
        if todo == DO_WAIT:
            self.wait_ended(result)
        elif todo == HOOK_DISPOSE:
            self.disposed = True
            self.decide(poll(self))
        elif todo == HOOK_CREATE:
            self.created(result)
        elif todo == HOOK_CHECK and result is False:
            self.end_call(CALL_DEAD, None)
            after_death(self.pool, &self.a)
        else:
            self.end_call(CALL_OK, None)
            if todo == HOOK_ON_DEAD:
                self.a.todo = DO_ASK_AGAIN
            else:
                hook_went_well(self.pool, &self.a, self.core.now())
        return 0

    cpdef int failed(self, error) except -1:
        """Say that the hook which `next` asked for has raised. Raises what ends the acquire: the error itself, or that
        time ran out. Errors of `on_connection_dead` are reported, and the acquire goes on; so it does after an error of
        `create`, if the pool retries."""
        cdef int todo = self.a.todo
        cdef int verdict = DONE
        cdef bint ends_connect = todo == HOOK_CREATE and not keep_newborn(self)
        if todo < N_HOOKS:
            explain(self.pool, todo, self.key, error)
        if ends_connect:
            verdict = end_connect(self, error)
        self.end_call(outcome_of(error), error)
        if isinstance(error, Exception) and todo < N_HOOKS:
            if todo == HOOK_ON_DEAD:
                self.a.todo = DO_ASK_AGAIN
                self.pool._report('on_connection_dead failed for', self.key, error)
                return 0
            self.check_deadline('creation' if todo == HOOK_CREATE else HOOKS[todo], error)
            if verdict != DONE:
                return self.decide(verdict)
        raise error

    cpdef int abandon(self, error) except -1:
        """End an acquire that a driver left with an error: leave the wait queue, return the permit or the connection.
        Does nothing for one that has ended."""
        if withdraw_acquire(self, error):
            trace_wait(self, error)
        dispose_soon(self.pool, self.patience(GRACE))
        return 0

    def begin_call(self):
        """Call the asynchronous hook that `next` asked for; return what is to be awaited."""
        if self.started is not None:
            started, self.started = self.started, None
            return started
        self.open_call()
        started = self.call_hook(False)
        if isinstance(self.pool, AsyncPool):
            self.misused = True
            check_awaitable(self.pool._manager, self.a.todo, started)
            self.misused = False
            if self.a.todo == HOOK_CREATE:
                return new_creation(self, started)
        return started

    def make_call(self):
        """Call the blocking hook that `next` asked for, and say how it ended. All in one compiled piece: no signal
        handler can run between a connection's birth and its booking, and lose it."""
        self.blocking = True
        try:
            self.open_call()
            result = self.call_hook(True)
        except BaseException as error:
            self.failed(error)
        else:
            self.completed(result)

    def remaining(self):
        """Return the seconds that are left for the hook that `next` asked for; None: there is no limit."""
        cdef double limit = connect_limit(self.core) if self.a.todo == HOOK_CREATE else INFINITY
        if self.a.deadline < INFINITY:
            limit = min(limit, max(0.0, self.a.deadline - self.core.now()))
        return None if limit == INFINITY else limit

    def time_to_wait(self):
        """Return for how long to wait, seconds: in the queue until the deadline, or until it is time to look whether
        the endpoint may connect again; for a disposal a moment, and none if the acquire has to wait in the queue
        anyway."""
        if self.a.todo == DO_WAIT:
            return self.patience(GRACE if self.nowait else INFINITY)
        return 0.0 if state_of(self) == WAIT else self.patience(GRACE)

    cdef double patience(self, double most) except? -1:
        """How long to wait, at most so long. An acquire that is not to wait does so only for a disposal that is about
        to leave it a place."""
        if self.nowait and not (self.set_off and frees_places(self.core, self.ep)):
            return 0.0
        return max(0.0, min(most, min(self.a.deadline, self.alarm) - self.core.now()))

    @property
    def todo(self):
        """The name of what `next` returned last."""
        return TODOS[self.a.todo] if self.a.todo <= DO_DONE else 'ask'

    @property
    def endpoint(self):
        """The endpoint, as the caller gave it."""
        return self.key

    @property
    def age(self):
        """How long ago it was called, seconds."""
        return self.core.now() - self.w.began

    @property
    def ahead(self):
        """How many acquires were in the wait queue when it came."""
        return self.w.ahead

    @property
    def created_by(self):
        """The span in which its connection was created, where spans are recorded."""
        return None if self.slot is None else created_by(self.core, self.slot)

    # --- decisions ---

    cdef int decide(self, int verdict) except -1:
        """Turn the core's verdict into what is to be done. Victims that stand in the way are disposed of first."""
        cdef bint clean
        while True:
            clean = not has_victims(self.core)
            if not clean and not self.disposed:
                self.a.todo = HOOK_DISPOSE
                return 0
            if verdict != WAIT:
                break
            verdict = arm(self, self.pool.new_event())
            if verdict == WAIT and (not clean or not has_victims(self.core)):
                self.a.todo = DO_WAIT
                return 0 if not self.waited else begin_wait(self)
            self.disposed = False       # a finalizer left something, which was reclaimed just now
        if verdict == UNAVAILABLE and self.last_error is None:
            verdict = ask(self, False)      # a connect has succeeded meanwhile
            if verdict != UNAVAILABLE:
                return self.decide(verdict)
        if verdict == CREATE and step_back(self):
            return self.decide(ask(self, True))
        if verdict != CREATE and verdict != USE:
            raise_refusal(self, verdict)
        if verdict == CREATE:
            self.a.todo = HOOK_CREATE
            self.check_deadline('creation', None)
        else:
            self.a.fresh = self.w.fresh
            after_slot(self.pool, &self.a)
        return 0

    cdef int wait_ended(self, woken) except -1:
        cdef bint looks = woken or self.alarm < INFINITY
        cdef int verdict
        self.alarm = INFINITY
        verdict = poll(self) if looks else expire(self)
        self.disposed = False
        if verdict == WAIT and not looks:
            raise self.timed_out('waiting') from cause_of(self)
        return self.decide(verdict)

    cdef int created(self, conn) except -1:
        """Book a new connection. One that comes too late is kept for others."""
        cdef int verdict = book(self, conn)
        self.newborn = None
        if verdict == NEW:
            self.misused = True
            return self.failed(repeated(self.pool._manager, conn))
        self.end_call(CALL_OK, None)
        if verdict == TURNED_AWAY:
            raise ConnectionPoolClosedError(f'{self.pool.name} was closed while a connection was being created')
        if verdict == REFUSED:
            raise refused(self)
        if self.a.deadline < INFINITY and self.core.now() >= self.a.deadline:
            self.a.todo = DO_TIME_OUT
        else:
            after_check(self.pool, &self.a)
        return 0

    cdef int open_call(self) except -1:
        """A hook is about to be called."""
        cdef int hook = self.a.todo
        cdef bint uses = hook == HOOK_CHECK or hook == HOOK_ON_ACQUIRE
        if not uses and hook != HOOK_CREATE and hook != HOOK_ON_DEAD:
            raise RuntimeError(f'this acquire has no hook to call now: {self.todo}')
        if uses:
            self.a.hook = hook
        elif hook == HOOK_CREATE:
            have_looked_after(self.pool)
            self.fresh = prepare_booking(self.core, self.ep)
        self.call = new_hook_call(self.core, hook, self.key, None, uses and not self.made and not self.w.queued)
        return self.call.begin()

    cdef int end_call(self, int outcome, error) except -1:
        """The hook has ended: count and time it, end its span."""
        cdef HookCall call = self.call
        self.call = None
        if call is not None:
            return call.finish(outcome, error)
        if self.a.hook != N_HOOKS:      # called at an idle hit
            return self.core.hook_ended(self.a.hook, self.a.hook_began, outcome, self.key, error)
        return 0

    cdef object call_hook(self, bint blocking):
        cdef int hook = self.a.todo
        if hook == HOOK_CREATE:
            if blocking:
                return self.pool._manager.create(self.key, timeout=self.remaining())
            return self.pool._manager.create(self.key)
        conn = conn_in(self.core, self.slot)
        if hook == HOOK_ON_ACQUIRE:
            return self.pool._on_acquire(self.key, conn)
        if hook == HOOK_ON_DEAD:
            return self.pool._on_connection_dead(self.key, conn)
        if blocking:
            return self.pool._check_aliveness(self.key, conn, self.remaining())
        return self.pool._check_aliveness(self.key, conn)

    # --- deadlines ---

    cdef int check_deadline(self, str phase, cause) except -1:
        """Raise `AcquireTimeoutError` if the deadline has passed."""
        if self.a.deadline < INFINITY and self.core.now() >= self.a.deadline:
            self.time_out(phase, cause)
        return 0

    cdef int time_out(self, str phase, cause) except -1:
        if cause is None or isinstance(cause, HookTimeoutError):
            last = cause_of(self)
            cause = cause if last is None else last
        raise self.timed_out(phase) from cause

    @property
    def last_error(self):
        """What the endpoint's latest creation failed with, while an acquire waits for one."""
        gcp_lock_outer(&self.core.mutex)
        error = self.cause if self.cause is not None or self.ep is None else self.ep.last_error
        gcp_unlock_outer(&self.core.mutex)
        return error

    cdef object timed_out(self, str phase):
        """Make the error that says what was waited for, and what stood in the way."""
        cdef Core core = self.core
        cdef bint waited = phase == 'waiting' or phase == 'admission'
        idle, used, creating, waiting, limit, oldest = self.block or counts_now(self)
        blocked_by = self.blocked_by if waited else 'creation' if phase == 'creation' else None
        age = max(0.0, core.now() - oldest) if oldest < INFINITY else 0.0
        allowed = 'at once' if self.nowait else 'in time' if self.timeout is None else f'within {self.timeout:g} s'
        blocked = '' if not waited else f', blocked by {describe_block(self, blocked_by, limit)}'
        held_for = f', the longest held for {age:.3g} s' if used and waited else ''
        if waited and used:
            blocked += closed_without_release(self)
        return self.pool._timeout_error(
            f'{self.pool.name}: no connection to {describe(self.key)} {allowed}: {what_ended(self, phase)}'
            f'{blocked}; {idle} idle, {used} used{held_for}, {creating} creating, {waiting} waiting',
            pool=self.pool.name, phase=phase, blocked_by=blocked_by, timeout=self.timeout, idle=idle, used=used,
            creating=creating, waiting=waiting, limit=limit, oldest_checkout=age,
            holders=find_holders_in_the_way(self) if waited else None,
        )

    def __dealloc__(self):
        gcp_forget_site(&self.site)
        # Dropped in the middle, with a permit or a slot. (One in the wait queue is owned by the queue.)
        if self.core is None or self.epoch != self.core.pool.epoch or self.ended:
            return
        abandon_permit(self)    # or `Holder.__dealloc__` sees to it


cdef tuple counts_now(Acquire acquire):
    """Return the counts for the message of an acquire that nothing holds up any more."""
    cdef pool_t* pool = &acquire.core.pool
    gcp_lock(&acquire.core.mutex)
    limit = pool.max_size if acquire.ep is None else cap(&acquire.ep.e)
    counts = count_idle(pool), count_used(pool), pool.creating, pool.waiting, limit, NEVER
    gcp_unlock(&acquire.core.mutex)
    return counts
