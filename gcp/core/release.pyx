# The machine of a release, once for both fronts: `on_release`, then the connection goes back, then what that left is
# disposed of. A release without `on_release` that leaves nothing to dispose of needs no machine.

from gcp.core.connects cimport expire_endpoint
from gcp.core.platform cimport (
    gcp_is_coroutine, gcp_lock, gcp_lock_stripe, gcp_read, gcp_stripe, gcp_unlock, gcp_unlock_stripe,
)
from gcp.core.state cimport CALL_OK, HOOK_DISPOSE, HOOK_ON_RELEASE
from gcp.core.transitions cimport begin_release, discard_slot, end_release


# What a release without a machine came to.
cdef enum put_back:
    NOT_HELD, PUT_BACK
    PUT_BACK_AND_MORE       # there may be something to dispose of
    NOT_SIMPLE              # it takes all locks


cdef struct release_t:
    uint64_t epoch
    uint64_t lease
    double hook_began


@cython.final
@cython.no_gc_clear
cdef class Release(Holder):
    """A release in progress. Driven like an `Acquire`: `next`, then `completed` or `failed`, until `TODO_DONE`."""
    cdef int todo
    cdef bint blocking               # its hooks are plain functions
    cdef BaseConnectionPool pool
    cdef readonly object own         # the endpoint, whose victims the caller waits for
    cdef object body                 # the error that leaves the block
    cdef object error                # of on_release
    cdef HookCall call
    cdef double hook_began           # of a hook that was called without this machine, and has raised
    cdef object started              # what is to be awaited of a hook that was begun already

    cpdef int next(self) except -1:
        """Return what is to be done now: `on_release`, `TODO_DISPOSE` or `TODO_DONE`. Raises what `on_release` raised,
        at the end."""
        if self.todo == DO_BEGIN:
            if self.slot is not None and self.pool._on_release is not None:
                self.todo = HOOK_ON_RELEASE
            else:
                self.put_back()
                self.clean_up()
        if self.todo == DO_DONE and self.error is not None:
            error, self.error = self.error, None
            self.tell(error)
        return self.todo

    def completed(self, result=None):
        """Say that what `next` asked for has ended well."""
        if self.todo == HOOK_ON_RELEASE:
            if result is not None and not makes_sense(HOOK_ON_RELEASE, result):
                self.failed(nonsense(self.pool._manager, HOOK_ON_RELEASE, result, self.blocking))
                return
            self.end_call(CALL_OK, None)
            self.put_back()
            self.clean_up()
        else:
            self.todo = DO_DONE

    def failed(self, error):
        """Say that `on_release` has raised: that costs the connection."""
        explain(self.pool, HOOK_ON_RELEASE, self.own, error)
        try:
            self.end_call(outcome_of(error), error)
        finally:
            self.discard('error')       # whatever a tracer raises
        if not isinstance(error, Exception):
            dispose_soon(self.pool, GRACE)
            raise error
        if isinstance(error, DiscardConnection):
            self.pool._report('', self.own, error)
        else:
            self.error = error
        self.clean_up()

    def begin_call(self):
        """Call the asynchronous `on_release`; return what is to be awaited."""
        if self.started is not None:
            started, self.started = self.started, None
            return started
        self.open_call()
        started = self.pool._on_release(self.own, conn_in(self.core, self.slot))
        if isinstance(self.pool, AsyncPool):
            check_awaitable(self.pool._manager, HOOK_ON_RELEASE, started)
        return started

    def make_call(self):
        """Call the blocking `on_release`, and say how it ended."""
        try:
            self.open_call()
            result = self.pool._on_release(self.own, conn_in(self.core, self.slot))
        except BaseException as error:
            self.failed(error)
        else:
            self.blocking = True
            self.completed(result)

    cdef int resume(self, started, double hook_began) except -1:
        """Go on with a hook that was called without this machine, and has suspended."""
        self.todo = HOOK_ON_RELEASE
        self.started = started
        self.call = begun_hook_call(self.core, HOOK_ON_RELEASE, self.own, hook_began)
        return 0

    def remaining(self):
        """Return None: a release has no limit."""
        return None

    def time_to_wait(self):
        """Return for how long to wait for victims of other endpoints, seconds."""
        return GRACE

    cdef int open_call(self) except -1:
        if self.todo != HOOK_ON_RELEASE:
            raise RuntimeError('this release has no hook to call now')
        self.call = new_hook_call(self.core, HOOK_ON_RELEASE, self.own, None, True)
        return self.call.begin()

    cdef int end_call(self, int outcome, error) except -1:
        call, self.call = self.call, None
        if call is not None:
            return (<HookCall>call).finish(outcome, error)
        if self.hook_began:
            return self.core.hook_ended(HOOK_ON_RELEASE, self.hook_began, outcome, self.own, error)
        return 0

    cdef int put_back(self) except -1:
        """End the release: the connection goes to a waiter, to the idle ones, or becomes a victim."""
        cdef Core core = self.core
        cdef double now
        core.before('give_back')
        now = core.now()
        gcp_lock(&core.mutex)
        if self.current():
            core.pool.now = now
            end_release(&core.pool, &self.slot.s, now)
        gcp_unlock(&core.mutex)
        self.slot = None
        return 0

    cpdef int discard(self, str reason) except -1:
        """Make the connection a victim.

        :param reason: one of `REASONS`
        :raises ValueError: for another one
        """
        cdef Core core = self.core
        cdef int why = REASONS.index(reason)
        cdef double now
        core.before('discard')
        now = core.now()
        gcp_lock(&core.mutex)
        core.pool.now = now
        if self.current():
            discard_slot(&core.pool, &self.slot.s, why)
        gcp_unlock(&core.mutex)
        self.slot = None
        return 0

    cdef int clean_up(self) except -1:
        """Decide what is left to be disposed of: what the release left, and a few that have expired."""
        cdef Core core = self.core
        core.after()
        if gcp_read(&self.pool.collects):
            core.collect(batch_size(self.pool))
        self.todo = <int>HOOK_DISPOSE if has_victims(core) else <int>DO_DONE
        return 0

    cdef int tell(self, error) except -1:
        """Raise the error of `on_release`; the error of the block goes first, and carries it."""
        if self.body is None:
            raise error
        chain(self.body, error)
        self.pool._report('on_release failed for', self.own, error)
        return 0


cdef Release new_release(BaseConnectionPool pool, Slot slot, uint64_t epoch, uint64_t lease, body):
    """Make a release whose connection has left its holder (see `take_back`), and nothing else has happened."""
    cdef Release release = Release.__new__(Release)
    release.pool = pool
    release.core = pool._core
    release.slot = slot
    release.epoch = epoch
    release.lease = lease
    release.own = slot.endpoint
    release.body = body
    release.todo = DO_BEGIN
    return release


cdef Release discard_now(BaseConnectionPool pool, Slot slot, uint64_t lease, str reason):
    """Make a victim of a connection whose release has begun. What is left of the release is its disposal."""
    cdef Release release = new_release(pool, slot, pool._core.pool.epoch, lease, None)
    release.discard(reason)
    return release


cpdef bint is_clean(BaseConnectionPool pool, endpoint, conn, error) except -1:
    """Ask the manager whether a connection may be used again after an error of its holder. One that makes all others of
    its endpoint useless as well expires them."""
    if error is None:
        return True
    kind = classify(pool, endpoint, error)
    if kind is ErrorClass.STALE:
        expire_all(pool._core, endpoint)
    if kind is ErrorClass.TRANSIENT or kind is ErrorClass.PERMANENT:
        return says_clean(pool, endpoint, conn, error)
    return kind is ErrorClass.HARMLESS


cdef bint says_clean(BaseConnectionPool pool, endpoint, conn, error) except -1:
    """Ask `clean_after_error`. Without an answer the connection is not clean."""
    if pool._clean_after_error is None:
        return True
    try:
        clean = pool._clean_after_error(endpoint, conn, error)
        if clean is True or clean is False:
            return clean
        if gcp_is_coroutine(clean):
            dismiss(clean)
        raise TypeError(
            f'{type(pool._manager).__name__}.clean_after_error must return a bool, not {type(clean).__name__}: '
            f'{clean!r}')
    except Exception as trouble:
        pool._report('clean_after_error failed for', endpoint, trouble)
    return False


cdef bint keeps(BaseConnectionPool pool, Slot slot, uint64_t lease, error) except -1:
    """Whether a connection whose release has begun may be used again after an error. If not, it is a victim now."""
    cdef bint clean = False
    try:
        clean = is_clean(pool, slot.endpoint, conn_in(pool._core, slot), error)
    finally:
        if not clean:
            discard_now(pool, slot, lease, 'error')
    return clean


cdef int expire_all(Core core, endpoint) except -1:
    """Expire all connections of an endpoint that were opened before now."""
    cdef Endpoint ep = find_endpoint(core, endpoint)
    cdef double now
    if ep is None:
        return 0
    core.before('expire_all')
    now = core.now()
    gcp_lock(&core.mutex)
    core.pool.now = now
    if ep.e.listed:
        expire_endpoint(&core.pool, &ep.e)
    gcp_unlock(&core.mutex)
    core.after()
    return 0


cdef Release cleanup_after(BaseConnectionPool pool, endpoint):
    """Make a release of which only the disposal is left."""
    cdef Release release = Release.__new__(Release)
    release.pool = pool
    release.core = pool._core
    release.own = endpoint
    release.clean_up()
    return release


cdef int take_back(Core core, Slot slot, uint64_t lease, uint64_t epoch) except -1:
    """Begin a release: from here on the connection has no holder, and a second release finds nothing."""
    if not takes_back(core, slot, lease, epoch):
        raise ConnectionNotAcquiredError(
            f'this connection of endpoint {describe(slot.endpoint)} was released already')
    return 0


cdef bint takes_back(Core core, Slot slot, uint64_t lease, uint64_t epoch) noexcept:
    """As `take_back`. Returns whether the connection was held."""
    cdef int stripe = gcp_stripe(<PyObject*>slot.endpoint)
    cdef bint ours
    gcp_lock_stripe(&core.mutex, stripe)
    ours = epoch == core.pool.epoch and begin_release(&core.pool, &slot.s, lease)
    gcp_unlock_stripe(&core.mutex, stripe)
    return ours


cdef Slot claim(Core core, conn, endpoint, uint64_t* lease):
    """Begin a release by name, as ``release(conn, endpoint)`` does. Returns None where it has nothing to do: in a
    forked child, and after a close.

    :param lease: set to the number of the use that ends
    :raises ConnectionNotAcquiredError: if the connection is not held
    """
    cdef Slot slot
    core.before('checkin')
    slot = find_held_by_key(core, conn, <PyObject*>endpoint, lease)
    if slot is None:
        check_order(core, conn, endpoint)
        check_hashable(endpoint)
        slot = find_holder(core, conn, endpoint, lease)
    if slot is not None:
        take_back(core, slot, lease[0], core.pool.epoch)
    return slot
