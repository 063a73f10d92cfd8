# The core: the state of one pool behind its lock, and the order of things around a transition. It decides; it never
# waits, never calls a manager, never logs.

from cpython.mem cimport PyMem_RawFree
from cpython.weakref cimport PyWeakref_NewRef

from gcp.core.clock cimport gcp_monotonic
from gcp.core.closing cimport close_pool, force_close
from gcp.core.events cimport tells_acquires
from gcp.core.jobs cimport next_job_at
from gcp.core.platform cimport (
    GCP_STRIPES, PyTypeObject, gcp_lock, gcp_lock_outer, gcp_read, gcp_unlock, gcp_unlock_outer, gcp_write,
)
from gcp.core.ring cimport ring_empty, ring_init, ring_remove
from gcp.core.screening cimport update_screening
from gcp.core.state cimport (
    CALL_OK, USE, count_hook_call, endpoint_expiring, endpoint_t, first_due, pool_t, taken, waiter_node, waiter_t,
)
from gcp.core.transitions cimport collect_expired, next_due


@cython.final
cdef class Core(Collaborators):
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
    # tells listeners of events: `gcp.listener_thread.ListenerThread`; None: there were none
    cdef public object listener_thread
    cdef object __weakref__

    def __cinit__(self, *, clock=None, **limits):
        cdef pool_t* pool = &self.pool
        set_pool_limits(pool, {**DEFAULT_LIMITS, **limits})
        self.limits_failed_for = set()
        update_screening(pool)
        pool.collector_wakes_at = -INFINITY
        pool.next_expiry = INFINITY
        init_stripes(pool)
        ring_init(&pool.woken)
        ring_init(&pool.victims)
        ring_init(&pool.reserving)
        ring_init(&pool.failing)
        ring_init(&pool.endpoints)
        prepare_background(self)
        self.endpoints = {}
        self.clock = clock
        self.final_counts = FinalCounts.__new__(FinalCounts)
        self.final_counts.owner = <PyObject*>self
        self.final_counts.reference = PyWeakref_NewRef(self, None)
        seed(self)
        join_family(self)

    def __dealloc__(self):
        if self.pool.endpoints.next != NULL:
            drop_slots(&self.pool, False)
            drop_abandoned(&self.pool)
        forget_events(&self.pool)
        PyMem_RawFree(self.pool.due.items)
        PyMem_RawFree(self.pool.blocked.items)
        PyMem_RawFree(self.pool.expiring.items)
        PyMem_RawFree(self.pool.checks.items)
        PyMem_RawFree(self.pool.known.items)
        for i in range(GCP_STRIPES):
            PyMem_RawFree(self.pool.stripes[i].held.items)
            PyMem_RawFree(self.pool.stripes[i].inherited.items)
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
        gcp_lock_outer(&self.mutex)
        _last, self.debugger = self.debugger, debugger
        gcp_write(&self.pool.pending, True)     # a transition looks at one flag, not at two
        gcp_unlock_outer(&self.mutex)

    cdef inline int before(self, str transition) except -1:
        if gcp_read(&self.pool.pending):
            self.prepare(transition)
        return 0

    cdef int prepare(self, str transition) except -1:
        """Before a transition: tell the debugger, reclaim what finalizers left."""
        gcp_lock_outer(&self.mutex)
        debugger = self.debugger
        gcp_write(&self.pool.pending, debugger is not None or tells_acquires(&self.pool))
        gcp_unlock_outer(&self.mutex)
        if debugger is not None:
            debugger(transition)
        if has_abandoned(self):
            reclaim(self)
        return 0

    cdef inline int after(self) except -1:
        """After a transition: do what it left to do outside the lock."""
        cdef pool_t* pool = &self.pool
        cdef bint woken, called, empties, threads, background, drained
        gcp_lock_outer(&self.mutex)
        woken = not ring_empty(&pool.woken)
        called = pool.called != NULL
        empties = pool.empties != NULL
        threads = pool.wake_collector != 0
        background = pool.wake_background
        drained = pool.closed and pool.size == 0
        gcp_unlock_outer(&self.mutex)
        if woken:
            wake_waiters(self)
        if called:
            wake_timekeepers(self)
        if empties:
            forget_empty_endpoints(self)
        if threads:
            wake_threads(self)
        if background:
            tell_background(self)
        if drained and self.on_drained is not None:
            self.on_drained()
        return 0

    # --- hooks ---

    cdef inline void count_hook(self, int hook, int outcome, double seconds) noexcept:
        gcp_lock_outer(&self.mutex)
        count_hook_call(&self.pool.metrics, hook, outcome, seconds)
        gcp_unlock_outer(&self.mutex)

    cdef inline double hook_succeeded(self, int hook, double began) noexcept nogil:
        """Count and time a hook without a span that ended well. Returns what the clock says."""
        cdef double now = gcp_monotonic()
        gcp_lock_outer(&self.mutex)
        count_hook_call(&self.pool.metrics, hook, CALL_OK, now - began)
        gcp_unlock_outer(&self.mutex)
        return now

    cdef int hook_ended(self, int hook, double began, int outcome, endpoint, error) except -1:
        """Count and time a hook without a span. One that did not end well gets a span afterwards."""
        cdef double seconds = self.now() - began
        self.count_hook(hook, outcome, seconds)
        tracer = tracer_of(self)
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
    def size(self):
        gcp_lock_outer(&self.mutex)
        size = self.pool.size
        gcp_unlock_outer(&self.mutex)
        return size

    @property
    def limits(self):
        """``(total_max_size, max_size, min_idle)`` of the pool."""
        cdef pool_t* pool = &self.pool
        gcp_lock_outer(&self.mutex)
        limits = pool.total_max_size, pool.max_size, pool.min_idle
        gcp_unlock_outer(&self.mutex)
        return limits

    @property
    def disposing(self): return count_disposing(self)

    @property
    def closed(self): return was_closed(self)

    @property
    def has_victims(self): return has_victims(self)

    def counts(self):
        """Return ``(idle, used, creating, disposing, waiting)``."""
        cdef pool_t* pool = &self.pool
        cdef counts_t counts
        gcp_lock(&self.mutex)
        copy_total(pool, &counts)
        gcp_unlock(&self.mutex)
        return counts.idle, counts.used, counts.creating, counts.disposing, counts.waiting

    def endpoint_size(self, endpoint, acquired=None):
        """Count an endpoint's connections: used ones, idle ones, or all places taken."""
        cdef Endpoint ep
        cdef Py_ssize_t size
        if acquired is not None and not isinstance(acquired, bool):
            raise TypeError(f'acquired must be True, False or None, not {type(acquired).__name__}: {acquired!r}')
        ep = known_endpoint(self, endpoint)
        if ep is None:
            return 0
        gcp_lock(&self.mutex)
        size = taken(&ep.e) - ep.e.reserved
        if acquired is not None:
            size = ep.e.n_used - ep.e.checking if acquired else ep.e.n_base + ep.e.n_extra + ep.e.checking
        gcp_unlock(&self.mutex)
        return size

    def snapshot(self):
        """Return one consistent copy of all counts: ``(total, counts of the endpoints)``."""
        return take_snapshot(self)


core_dealloc_attributes = (<PyTypeObject*>Core).tp_dealloc
(<PyTypeObject*>Core).tp_dealloc = core_dealloc
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


cdef object event_of_timekeeper(Core core, bint* found):
    """Return what a waiter waits on that is to look how long it has to wait now; None: there is none, for the next
    endpoint.

    :param found: set to whether there was such an endpoint
    """
    cdef pool_t* pool = &core.pool
    cdef object event = None
    cdef endpoint_t* ep
    gcp_lock(&core.mutex)
    ep = pool.called
    found[0] = ep != NULL
    if ep != NULL:
        pool.called = ep.next_called
        ep.in_called = False
        if ep.timekeeper != NULL:
            event = (<Acquire>ep.timekeeper.self).event
        elif pool.lingerer != NULL and pool.lingerer.ep == ep:
            event = (<Acquire>pool.lingerer.self).event
    gcp_unlock(&core.mutex)
    return event


cdef int wake_timekeepers(Core core) except -1:
    """Wake the waiters that are to look how long they have to wait now."""
    cdef bint found = True
    while found:
        event = event_of_timekeeper(core, &found)
        try:
            set_event(event)
        except Exception:
            pass                # its event loop is closed
    return 0


cdef object event_of_woken(Core core, span, bint* found):
    """Take the first of the woken out of their ring. Return what it waits on; None: it does not wait yet, or any more.

    :param span: the one in which its connection was released, or None
    :param found: set to whether there was one
    """
    cdef object event = None
    cdef object _last = None    # it may die, but not within the lock
    cdef Acquire acquire = None
    cdef waiter_t* w
    gcp_lock_outer(&core.mutex)
    found[0] = not ring_empty(&core.pool.woken)
    if found[0]:
        w = waiter_node(core.pool.woken.next)
        ring_remove(&w.node)
        acquire = <Acquire>w.self
        event = acquire.event
        if w.state == USE:
            _last = acquire.released_by
            acquire.released_by = span
    gcp_unlock_outer(&core.mutex)
    if acquire is not None:
        Py_DECREF(acquire)      # the ring's
    return event


cdef int wake_waiters(Core core) except -1:
    """Wake the waiters that a transition served, the longest waiting first. An error of one, a signal handler's, is
    raised when all are woken."""
    cdef bint found = True
    cdef object trouble = None
    cdef object span = None
    tracer = tracer_of(core)
    if tracer is not None:
        try:
            span = tracer.current()
        except BaseException as error:
            trouble = error
    while found:
        event = event_of_woken(core, span, &found)
        try:
            set_event(event)
        except Exception:
            pass                    # its event loop is closed, and the waiter gone with it
        except BaseException as error:
            trouble = error
    if trouble is not None:
        raise trouble
    return 0
