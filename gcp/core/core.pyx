# The core: the state of one pool behind its lock, and the order of things around a transition. It decides; it never
# waits, never calls a manager, never logs.

from cpython.mem cimport PyMem_RawFree

from gcp.core.clock cimport gcp_monotonic
from gcp.core.closing cimport close_pool, force_close
from gcp.core.events cimport tells_acquires
from gcp.core.jobs cimport next_job_at
from gcp.core.platform cimport PyTypeObject, gcp_lock, gcp_mutex, gcp_mutex_init, gcp_unlock
from gcp.core.ring cimport ring_empty, ring_init, ring_insert, ring_remove
from gcp.core.screening cimport update_screening
from gcp.core.state cimport (
    CALL_OK, USE, count_hook_call, endpoint_expiring, endpoint_t, first_due, pool_t, taken, waiter_t,
)
from gcp.core.transitions cimport collect_expired, next_due


@cython.final
cdef class Core:
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
    cdef pool_t pool
    cdef gcp_mutex mutex
    cdef family_t family
    cdef dict endpoints
    cdef list watches               # what callers wait for in the background
    cdef dict kept                  # the records of kept endpoints, as its keys
    cdef dict forced                # connections that a retirement took from their holders, by their identity
    cdef object clock
    cdef object debugger
    cdef uint64_t limits_version    # grows when limits change
    cdef uint64_t limits_asked      # how often the limits of all endpoints were asked for
    cdef set limits_failed_for      # the hashes of those endpoints
    cdef double dispose_time        # smoothed, seconds; 0 before the first
    cdef readonly FinalCounts final_counts
    cdef public object wake_collector   # called when something expires before the collector's next look
    cdef public object wake_background  # called when there may be something to do in the background
    cdef public bint workers_rest       # whether workers in the background say when they rest: see `rest`
    cdef public object on_abandoned     # called by finalizers, in any thread: there is something to reclaim
    cdef public object on_drained       # called when a closed pool has become empty
    cdef public object on_fork          # called in a forked child
    cdef public object limits_of        # returns the limits that an endpoint is given; None: no endpoint has its own
    cdef public object describe_holders     # makes what is shown of holders from what `use_of` returns: (list)
    cdef public object on_lost          # called when a lease was garbage-collected: (its holder)
    # tells listeners of events: `gcp.listener_thread.ListenerThread`; None: no listeners
    cdef public object listener_thread
    cdef public object report           # logs an error that is not raised: (message, endpoint, error)
    cdef public object tracer           # records spans; None: nothing does
    cdef public bint traces_hits        # whether the hooks at an idle hit and at a release have spans, too

    def __cinit__(self, *, clock=None, **limits):
        cdef pool_t* pool = &self.pool
        gcp_mutex_init(&self.mutex)
        set_pool_limits(pool, {**DEFAULT_LIMITS, **limits})
        self.limits_failed_for = set()
        update_screening(pool)
        pool.collector_wakes_at = -INFINITY
        pool.next_expiry = INFINITY
        ring_init(&pool.idle_bases)
        ring_init(&pool.idle_extras)
        ring_init(&pool.victims)
        ring_init(&pool.reserving)
        ring_init(&pool.failing)
        ring_init(&pool.endpoints)
        self.family.core = <PyObject*>self
        ring_init(&self.family.ring)
        ring_insert(&all_cores.ring, &self.family.ring)
        prepare_background(self)
        self.endpoints = {}
        self.clock = clock
        self.final_counts = FinalCounts.__new__(FinalCounts)
        self.final_counts.owner = <PyObject*>self
        seed(self)

    def __dealloc__(self):
        if self.family.ring.next != NULL:
            ring_remove(&self.family.ring)
            close_final_counts(self)
            drop_slots(&self.pool, False)
            drop_abandoned(&self.pool)
        forget_events(&self.pool)
        PyMem_RawFree(self.pool.due.items)
        PyMem_RawFree(self.pool.blocked.items)
        PyMem_RawFree(self.pool.expiring.items)
        PyMem_RawFree(self.pool.checks.items)
        PyMem_RawFree(self.pool.known.items)
        PyMem_RawFree(self.pool.held.items)
        PyMem_RawFree(self.pool.inherited.items)
        PyMem_RawFree(self.pool.members.items)

    # --- around a transition ---

    cdef inline double now(self) except? -1:
        if self.clock is None:
            return gcp_monotonic()
        return self.clock()

    @property
    def on_transition(self):
        """For tests: called with a transition's name before each."""
        return self.debugger

    @on_transition.setter
    def on_transition(self, debugger):
        self.debugger = debugger
        self.pool.pending = True    # a transition looks at one flag, not at two

    cdef inline int before(self, str transition) except -1:
        if self.pool.pending:
            self.prepare(transition)
        return 0

    cdef int prepare(self, str transition) except -1:
        """Before a transition: tell the debugger, reclaim what finalizers left."""
        self.pool.pending = self.debugger is not None or tells_acquires(&self.pool)
        if self.debugger is not None:
            self.debugger(transition)
        if self.pool.abandoned_slots != NULL or self.pool.abandoned_waiters != NULL or self.pool.abandoned_permits:
            reclaim(self)
        return 0

    cdef inline int after(self) except -1:
        """After a transition: do what it left to do outside the lock."""
        if self.pool.woken != NULL:
            wake_waiters(self)
        if self.pool.called != NULL:
            wake_timekeepers(self)
        if self.pool.empties != NULL:
            forget_empty_endpoints(self)
        if self.pool.wake_collector:
            wake_threads(self)
        if self.pool.wake_background:
            tell_background(self)
        if self.pool.closed and self.pool.size == 0 and self.on_drained is not None:
            self.on_drained()
        return 0

    # --- hooks ---

    cdef inline void count_hook(self, int hook, int outcome, double seconds) noexcept:
        gcp_lock(&self.mutex)
        count_hook_call(&self.pool.metrics, hook, outcome, seconds)
        gcp_unlock(&self.mutex)

    cdef inline double hook_succeeded(self, int hook, double began) noexcept nogil:
        """Count and time a hook without a span that ended well. Returns what the clock says."""
        cdef double now = gcp_monotonic()
        gcp_lock(&self.mutex)
        count_hook_call(&self.pool.metrics, hook, CALL_OK, now - began)
        gcp_unlock(&self.mutex)
        return now

    cdef int hook_ended(self, int hook, double began, int outcome, endpoint, error) except -1:
        """Count and time a hook without a span. One that did not end well gets a span afterwards."""
        cdef double seconds = self.now() - began
        self.count_hook(hook, outcome, seconds)
        tracer = self.tracer
        if outcome != CALL_OK and tracer is not None:
            tracer.record_failed(HOOKS[hook], endpoint, HOOK_OUTCOMES[outcome], seconds, error)
        return 0

    # --- expiry and closing ---

    def time(self):
        """Read the core's clock, seconds."""
        return self.now()

    def drain(self):
        """Reclaim what finalizers left: leases that were never released, acquires that were dropped."""
        reclaim(self)

    def collect(self, Py_ssize_t limit):
        """Make up to `limit` expired idle connections victims, in the order of their expiry. Returns how many."""
        cdef Py_ssize_t n
        cdef double now
        self.before('collect')
        now = self.now()
        gcp_lock(&self.mutex)
        n = collect_expired(&self.pool, now, limit)
        if next_job_at(&self.pool) <= now:
            self.pool.wake_background = True
        gcp_unlock(&self.mutex)
        self.after()
        find_leaks(self)
        return n

    def next_expiry(self):
        """Return when the next connection may expire, or something is to be done in the background, by the core's clock
        (``inf``: never). The collector is woken, from now on, by what comes before that."""
        cdef double when
        when = self.now()
        gcp_lock(&self.mutex)
        next_due(&self.pool, &when)
        when = min(when, next_job_at(&self.pool))
        self.pool.collector_wakes_at = when
        gcp_unlock(&self.mutex)
        return when

    def close(self):
        """Close: waiters are turned away, idle connections become victims, held ones will when they are released."""
        cdef double now
        self.before('close')
        now = self.now()
        gcp_lock(&self.mutex)
        self.pool.now = now
        close_pool(&self.pool)
        gcp_unlock(&self.mutex)
        self.after()

    def force(self):
        """Make victims of the connections that are still held."""
        cdef double now
        self.before('force')
        now = self.now()
        gcp_lock(&self.mutex)
        self.pool.now = now
        force_close(&self.pool)
        gcp_unlock(&self.mutex)
        self.after()

    # --- looking ---

    @property
    def size(self): return self.pool.size

    @property
    def limits(self):
        """``(total_max_size, max_size, min_idle)`` of the pool."""
        return self.pool.total_max_size, self.pool.max_size, self.pool.min_idle

    @property
    def disposing(self): return self.pool.disposing

    @property
    def closed(self): return self.pool.closed

    @property
    def has_victims(self): return not ring_empty(&self.pool.victims)

    def counts(self):
        """Return ``(idle, used, creating, disposing, waiting)``."""
        cdef pool_t* pool = &self.pool
        return (pool.idle + pool.checking, pool.used - pool.checking, pool.creating, pool.disposing, pool.waiting)

    def endpoint_size(self, endpoint, acquired=None):
        """Count an endpoint's connections: used ones, idle ones, or all places taken."""
        cdef Endpoint ep
        if acquired is not None and not isinstance(acquired, bool):
            raise TypeError(f'acquired must be True, False or None, not {type(acquired).__name__}: {acquired!r}')
        ep = known_endpoint(self, endpoint)
        if ep is None:
            return 0
        if acquired is None:
            return taken(&ep.e) - ep.e.reserved
        return ep.e.n_used - ep.e.checking if acquired else ep.e.n_base + ep.e.n_extra + ep.e.checking

    def snapshot(self):
        """Return one consistent copy of all counts: ``(total, counts of the endpoints)``."""
        return take_snapshot(self)


core_traverse_attributes = (<PyTypeObject*>Core).tp_traverse
(<PyTypeObject*>Core).tp_traverse = core_traverse
core_clear_attributes = (<PyTypeObject*>Core).tp_clear
(<PyTypeObject*>Core).tp_clear = core_clear


cdef int seed(Core core) except -1:
    """Seed the random numbers of a core."""
    core.pool.random = int.from_bytes(os.urandom(8), 'little') | 1
    return 0


cdef inline bint expiry_is_due(pool_t* pool, double now) noexcept nogil:
    """Whether something idle may have expired. Keeps the time before which nothing can have."""
    if now < pool.next_expiry:
        return False
    pool.next_expiry = INFINITY
    if pool.expiring.n:
        pool.next_expiry = endpoint_expiring(pool.expiring.items[0]).extras_due
    if pool.due.n > 0:
        pool.next_expiry = min(pool.next_expiry, first_due(pool).expires)
    return now >= pool.next_expiry


cdef Acquire next_timekeeper(Core core):
    """Return a waiter that is to look how long it has to wait now; None: there is none, for the next endpoint."""
    cdef pool_t* pool = &core.pool
    cdef endpoint_t* ep
    cdef Acquire acquire = None
    gcp_lock(&core.mutex)
    ep = pool.called
    if ep != NULL:
        pool.called = ep.next_called
        ep.in_called = False
        if ep.timekeeper != NULL:
            acquire = <Acquire>ep.timekeeper.self
        elif pool.lingerer != NULL and pool.lingerer.ep == ep:
            acquire = <Acquire>pool.lingerer.self
    gcp_unlock(&core.mutex)
    return acquire


cdef int wake_timekeepers(Core core) except -1:
    """Wake the waiters that are to look how long they have to wait now."""
    cdef Acquire acquire
    while core.pool.called != NULL:
        acquire = next_timekeeper(core)
        if acquire is not None and acquire.event is not None:
            try:
                set_event(acquire.event)
            except Exception:
                pass                # its event loop is closed
    return 0


cdef int wake_waiters(Core core) except -1:
    """Wake the waiters that a transition served, the longest waiting first. An error of one, a signal handler's, is
    raised when all are woken."""
    cdef waiter_t* w
    cdef Acquire acquire
    cdef object trouble = None
    cdef object span = None
    tracer = core.tracer
    if tracer is not None:
        try:
            span = tracer.current()
        except BaseException as error:
            trouble = error
    while True:
        gcp_lock(&core.mutex)
        w = core.pool.woken
        if w != NULL:
            core.pool.woken = w.next_woken
        gcp_unlock(&core.mutex)
        if w == NULL:
            break
        acquire = <Acquire>w.self
        Py_DECREF(acquire)
        if w.state == USE:
            acquire.released_by = span
        try:
            set_event(acquire.event)
        except Exception:
            pass                    # its event loop is closed, and the waiter gone with it
        except BaseException as error:
            trouble = error
    if trouble is not None:
        raise trouble
    return 0
