# What both pools share: the hooks, the idle hit, the release of a connection that no hook wants to see.

from gcp.core.clock cimport gcp_monotonic
from gcp.core.frames cimport gcp_know_thread
from gcp.core.platform cimport (
    GCP_STRIPES, gcp_count, gcp_drop_found, gcp_lock, gcp_lock_outer, gcp_lock_stripe, gcp_read, gcp_stripe, gcp_unlock,
    gcp_unlock_outer, gcp_unlock_stripe, look_up_quietly,
)
from gcp.core.reserve cimport may_hit
from gcp.core.ring cimport ring_empty
from gcp.core.state cimport HIT, N_HOOKS, RETURNING, TO_IDLE, USED, endpoint_t, pool_t, slot_object, slot_t
from gcp.core.table cimport table_find
from gcp.core.transitions cimport end_release, is_simple, needs_no_check, take_idle


cdef enum:
    LARGE = 64              # a release disposes of at most 1/64 of a large pool at once

cdef extern from *:
    """
    /* Cython makes the dict with the object; the interpreter would make it when an attribute is set. Python 3.11 looks
       a method up quickly if there is a dict, 3.12 and later if there is none. */
    static void gcp_drop_dict(PyObject *o) {
    #if PY_VERSION_HEX >> 16 != 0x030B
        Py_CLEAR(*(PyObject **)((char *)o + Py_TYPE(o)->tp_dictoffset));
    #endif
    }
    """
    void gcp_drop_dict(object)

cdef double NO_TIME = 1e-4  # seconds: what a switch to another thread and back costs anyway

cdef dict sequences = {}    # of unnamed pools, by their manager's class


cdef str next_name(str stem):
    sequences[stem] = sequences.get(stem, 0) + 1
    return f'{stem}-{sequences[stem]}'


cdef inline slot_t* take_hit(pool_t* pool, endpoint_t* e, double now, acquire_t* a, bint checks_only) noexcept nogil:
    """Take an idle connection, or return NULL. Without a hook to call, the acquire has ended well.

    :param a: NULL: there are no hooks
    :param checks_only: there is none but the check, which is called only for a connection that needs it
    """
    cdef slot_t* s
    if a != NULL:
        a.fresh = needs_no_check(pool, e, now)
    s = take_idle(pool, e, now)
    if s == NULL:
        return NULL
    if a != NULL and not (a.fresh and checks_only):
        a.arrival = gcp_count(&pool.arrivals)
        a.epoch = pool.epoch
        a.lease = s.lease
        a.began = now
        a.hook = N_HOOKS
        return s
    if a != NULL:
        a.fresh = ENDED
    s.acquired = True
    e.counters.acquires[<int>HIT] += 1
    return s


cdef inline slot_t* take_delivered(
    BaseConnectionPool pool, endpoint_t* e, double now, acquire_t* a, PyObject* task, delivery_t* to
) noexcept:
    """Take an idle connection for a caller, or return NULL. Within the lock of the endpoint's stripe.

    :param now: read before the lock was taken, so that it is held for a shorter time. What was put back in between has
                become idle a little later
    """
    cdef slot_t* s = take_hit(&pool._core.pool, e, now, a, pool.checks_only)
    if s != NULL:
        deliver(s, pool.tracks, task, to)
    return s


cdef slot_t* take_slot_of(BaseConnectionPool pool, Endpoint ep, acquire_t* a, PyObject* task, delivery_t* to):
    """Take an idle connection of an endpoint that was looked up by equality, or that has a reserve."""
    cdef Core core = pool._core
    cdef slot_t* s = NULL
    cdef int stripe = gcp_stripe(ep.e.key)
    cdef bint reserved
    cdef double now = gcp_monotonic()
    gcp_lock_stripe(&core.mutex, stripe)
    if ep.e.shown:
        s = take_delivered(pool, &ep.e, now, a, task, to)
    reserved = s == NULL and ep.e.reserve > 0
    gcp_unlock_stripe(&core.mutex, stripe)
    return take_reserved(pool, ep, a, task, to) if reserved else s


cdef slot_t* take_reserved(BaseConnectionPool pool, Endpoint ep, acquire_t* a, PyObject* task, delivery_t* to):
    """Take an idle connection of an endpoint that has a reserve."""
    cdef Core core = pool._core
    cdef slot_t* s = NULL
    gcp_lock(&core.mutex)
    if ep.e.reserve and ep.e.listed and may_hit(&core.pool, &ep.e):
        s = take_delivered(pool, &ep.e, gcp_monotonic(), a, task, to)
    gcp_unlock(&core.mutex)
    return s


cdef class BaseConnectionPool(ListenedPool):
    """What the threading and the asyncio pool share. Not to be instantiated.

    Their Python halves override `_drive`, and set the collaborators: `_disposer`, `_collector`, `_report`."""
    cdef readonly object _manager
    cdef object acquire_timeout         # changes within the lock: see `default_timeout`
    cdef public object _telemetry       # asked on slow paths whether spans are recorded by now
    cdef public object _disposer        # disposes of victims
    cdef public object _background      # its workers connect and check in the background
    cdef public object _closers         # the events of those that wait in `close`
    cdef public object _snapshot        # makes a snapshot of the pool's state
    cdef object collector               # changes within the lock: see `_collector`
    cdef public object _report          # logs an error of a hook that is not raised: (message, endpoint, error)
    cdef public object _make_collector  # makes a collector, should one be needed later: (pool, disposer)
    cdef public object _make_event      # makes what a waiter waits on; None: an `Event`
    cdef public object _timeout_error   # the class of the error of an acquire that ran out of time
    # The manager's hooks; None where it has none. Looked up once, so that a hook that is not there costs nothing.
    cdef readonly object _check_aliveness
    cdef readonly object _on_acquire
    cdef readonly object _on_release
    cdef readonly object _on_connection_dead
    cdef readonly object _clean_after_error
    cdef readonly object _classify
    cdef readonly object _keepalive
    cdef bint judges                    # whether the manager is asked about the error of a holder
    cdef bint tracks                    # whether each acquire notes where it was called
    cdef public object _monitored       # has long waits and leaks looked for; None: nothing is looked for
    cdef bint monitored                 # whether that has begun
    cdef bint warns                     # whether waits without a time limit are looked for
    cdef bint reclaims                  # whether holders that are gone are looked for while an acquire waits
    cdef object dispose_hook            # for what a caller disposes of by itself; None: it does not. As acquire_timeout
    # Whether an idle hit calls no hook when it is acquired, none when it is released, looks for nothing that expired.
    cdef bint direct
    cdef bint checks_only       # an idle hit calls no hook but the check
    cdef bint plain
    cdef bint collects
    cdef Py_ssize_t dispose_batch_size
    cdef object __weakref__
    # What users set on a pool: see `gcp_drop_dict`. 3.12 and 3.13 look no method up quickly in an object with the dict
    # that they would give to a subclass of a compiled class.
    cdef dict __dict__

    __class_getitem__ = classmethod(GenericAlias)

    def __cinit__(self, *args, **kwargs):
        self._core = Core()         # so that using a pool whose __init__ has failed does not crash
        gcp_drop_dict(self)
        self._timeout_error = AcquireTimeoutError

    def _set_up(self, manager, options, dict hooks not None, clock=None):
        """Take the resolved options, and the hooks that there are to call.

        :param clock: for tests: returns seconds
        """
        self._manager = manager
        self._check_aliveness = hooks.get('check_aliveness')
        self._on_acquire = hooks.get('on_acquire')
        self._on_release = hooks.get('on_release')
        self._on_connection_dead = hooks.get('on_connection_dead')
        self._clean_after_error = hooks.get('clean_after_error')
        self._classify = hooks.get('classify')
        self._keepalive = hooks.get('keepalive')
        self.judges = self._clean_after_error is not None or self._classify is not None
        self.name = options.name or next_name(type(manager).__name__)
        self.tracks = options.track_holders
        self.warns = options.warn_after < INFINITY
        self.reclaims = options.reclaim_abandoned
        self.direct = self._check_aliveness is None and self._on_acquire is None
        self.checks_only = self._on_acquire is None
        self.plain = self._on_release is None
        self.collects = not options.background_collector
        self._core = Core(clock=clock, **limits_among(options))
        self._core.limits_of = options.limits_of
        self._core.pool.unchecked = self._keepalive is None and self._check_aliveness is None
        use_options(self, options)

    @property
    def _collector(self):
        """What looks for expired connections in the background; None: releases do."""
        return collector_of(self)

    @_collector.setter
    def _collector(self, collector):
        gcp_lock_outer(&self._core.mutex)
        _last, self.collector = self.collector, collector
        gcp_unlock_outer(&self._core.mutex)

    def _drive(self, operation):
        """Do what an acquire or a release asks for, until it is done. To be overridden: this is all that differs
        between threads and tasks."""
        raise NotImplementedError

    cpdef object _drive_release(self, release):
        """Drive a release. What an error or a signal leaves behind is the collector's, if there is one."""
        return self._drive(release)

    cdef object new_event(self):
        """Make what an acquire that waits is woken by."""
        return Event.__new__(Event) if self._make_event is None else self._make_event()

    cdef PyObject* running_task(self) noexcept:
        """Return the task that runs, borrowed; NULL: there is none."""
        return NULL

    # --- acquire ---

    cdef inline slot_t* take_slot(
        self, PyObject* key, timeout, acquire_t* a, PyObject* task, delivery_t* to
    ) except? NULL:
        """Take an idle connection, or return NULL if that needs more than a look.

        :param key: the endpoint, borrowed
        :param a: filled for the hooks that are to be called; NULL: there are none, so the acquire has ended well
        :param task: the running task, or NULL
        """
        cdef pool_t* pool = &self._core.pool
        cdef int stripe = gcp_stripe(key)
        cdef endpoint_t* e
        cdef slot_t* s = NULL
        cdef double now
        gcp_know_thread()
        if timeout is not None:
            check_timeout(timeout)
        if gcp_read(&pool.pending) and begin_hit(self._core):
            return NULL     # a listener is told of each acquire
        now = gcp_monotonic()
        gcp_lock_stripe(&self._core.mutex, stripe)
        e = <endpoint_t*>table_find(&pool.known, key)
        if e != NULL:
            s = take_delivered(self, e, now, a, task, to)
        gcp_unlock_stripe(&self._core.mutex, stripe)
        return s if e != NULL else self.take_equal(<object>key, a, task, to)

    cdef slot_t* take_equal(self, endpoint, acquire_t* a, PyObject* task, delivery_t* to) except? NULL:
        """Take an idle connection by a key that is unknown, or equal to that of the endpoint, but not the same."""
        cdef PyObject* found = look_up_quietly(self._core.endpoints, endpoint)
        cdef Endpoint ep
        if found != NULL:
            ep = <Endpoint>found
            gcp_drop_found(found)
            return take_slot_of(self, ep, a, task, to)
        if PyErr_Occurred() != NULL and PyErr_ExceptionMatches(Exception):
            PyErr_Clear()   # it cannot be hashed, say: the slow path raises the error that says so
        return NULL

    cdef bint finish_hit(self, slot_t* s, acquire_t* a) except -1:
        """End an idle hit whose hooks went well. Returns False if the pool was closed meanwhile."""
        cdef Core core = self._core
        cdef bint ours
        core.before('finish')
        gcp_lock(&core.mutex)
        ours = is_in_use(&core.pool, s, a.lease, a.epoch, USED) and not core.pool.closed
        if ours:
            s.acquired = True
            s.ep.counters.acquires[<int>HIT] += 1
        gcp_unlock(&core.mutex)
        return ours

    cpdef Acquire open_acquire(self, endpoint, timeout, int priority=0):
        """Make an acquire that is no idle hit."""
        cdef Acquire acquire
        check_hashable(endpoint)
        if self._telemetry is not None:
            self._telemetry.recheck()
        acquire = new_acquire(self, endpoint, self.limit(timeout))
        acquire.w.priority = priority
        return acquire

    cdef inline object limit(self, timeout):
        """Return what an acquire may take: what its caller says, else what the pool says."""
        return default_timeout(self) if timeout is None else check_timeout(timeout)

    # --- release ---

    cpdef Release open_release(self, conn, endpoint):
        """Begin a release by name. Returns None if there is nothing to release: see `claim`."""
        cdef uint64_t lease = 0
        cdef Slot slot = claim(self._core, conn, endpoint, &lease)
        return None if slot is None else new_release(self, slot, self._core.pool.epoch, lease, None)

    cdef inline int put_back(self, slot_t* s, double now) noexcept nogil:
        """Release a connection that no hook wants to see any more. Within the lock of its stripe; NOT_SIMPLE: nothing
        has changed, since that takes all locks."""
        cdef pool_t* pool = &self._core.pool
        if GCP_STRIPES == 1:
            pool.now = now
        elif not is_simple(pool, s, now, s.ep.n_used - 1):
            return NOT_SIMPLE
        if end_release(pool, s, now) != TO_IDLE or pool.wake_collector or (now >= pool.next_expiry and self.collects):
            return PUT_BACK_AND_MORE
        return PUT_BACK if ring_empty(&pool.victims) else PUT_BACK_AND_MORE

    cdef int put_back_with_all_locks(
        self, Slot slot, uint64_t lease, uint64_t epoch, int state, double now
    ) noexcept:
        """Release a connection that no hook wants to see any more, if its use has not ended.

        :param state: USED, or RETURNING: its release has begun
        """
        cdef pool_t* pool = &self._core.pool
        cdef int outcome = NOT_HELD
        gcp_lock(&self._core.mutex)
        if is_in_use(pool, &slot.s, lease, epoch, state):
            pool.now = now
            end_release(pool, &slot.s, now)
            outcome = PUT_BACK_AND_MORE
        gcp_unlock(&self._core.mutex)
        return outcome

    cdef inline int put_back_named(self, PyObject* conn, PyObject* key) except -1:
        """Release a connection by name, unless that needs more than a look at who holds it."""
        cdef int outcome
        self._core.before('release')
        outcome = self.put_back_by_key(conn, key)
        return self.put_back_equal(<object>conn, <object>key) if outcome == NOT_HELD else outcome

    cdef inline int put_back_by_key(self, PyObject* conn, PyObject* key) noexcept:
        """Release a connection of the endpoint whose key is this very object."""
        cdef pool_t* pool = &self._core.pool
        cdef int stripe = gcp_stripe(key)
        cdef int outcome = NOT_HELD
        cdef PyObject* owned = NULL
        cdef uint64_t lease = 0
        cdef double now = gcp_monotonic()
        cdef slot_t* s
        gcp_lock_stripe(&self._core.mutex, stripe)
        s = find_held_of(&pool.stripes[stripe].held, conn, key)
        if s != NULL:
            outcome = self.put_back(s, now)
            if GCP_STRIPES > 1 and outcome == NOT_SIMPLE:
                owned, lease = slot_object(s), s.lease
                Py_INCREF(<object>owned)
        gcp_unlock_stripe(&self._core.mutex, stripe)
        if GCP_STRIPES > 1 and owned != NULL:
            outcome = self.put_back_with_all_locks(<Slot>owned, lease, pool.epoch, USED, now)
            Py_DECREF(<object>owned)
        return outcome

    cdef int put_back_equal(self, conn, endpoint) except -1:
        """Release a connection by a key that is perhaps equal to that of its endpoint, but not the same."""
        cdef Endpoint ep = endpoint_of_release(self._core, endpoint) if is_held_anywhere(self._core, conn) else None
        return NOT_HELD if ep is None else self.put_back_by_key(<PyObject*>conn, ep.e.key)

    cdef inline int put_back_held(self, Holder holder) noexcept:
        """Release the connection of a holder, if that holds it still."""
        cdef int stripe = gcp_stripe(<PyObject*>holder.slot.endpoint)
        cdef int outcome = NOT_HELD
        cdef double now = gcp_monotonic()
        gcp_lock_stripe(&self._core.mutex, stripe)
        if is_in_use(&self._core.pool, &holder.slot.s, holder.lease, holder.epoch, USED):
            outcome = self.put_back(&holder.slot.s, now)
        gcp_unlock_stripe(&self._core.mutex, stripe)
        if GCP_STRIPES > 1 and outcome == NOT_SIMPLE:
            return self.put_back_with_all_locks(holder.slot, holder.lease, holder.epoch, USED, now)
        return outcome

    cdef int put_back_seen(self, Slot slot, release_t* r, double now) except -1:
        """Release a connection that `on_release` has seen."""
        cdef Core core = self._core
        cdef int stripe = gcp_stripe(<PyObject*>slot.endpoint)
        cdef int outcome = PUT_BACK_AND_MORE
        core.before('give_back')
        gcp_lock_stripe(&core.mutex, stripe)
        if is_in_use(&core.pool, &slot.s, r.lease, r.epoch, RETURNING):
            outcome = self.put_back(&slot.s, now)
        gcp_unlock_stripe(&core.mutex, stripe)
        if GCP_STRIPES > 1 and outcome == NOT_SIMPLE:
            self.put_back_with_all_locks(slot, r.lease, r.epoch, RETURNING, now)
            return PUT_BACK_AND_MORE
        return outcome

    cdef inline bint has_garbage(self) except -1:
        """Whether there is something to dispose of after a release."""
        cdef Core core = self._core
        cdef pool_t* pool = &core.pool
        cdef bint found
        cdef double now = core.now() if GCP_STRIPES > 1 else 0.0    # simple releases do not set the pool's time
        gcp_lock(&core.mutex)
        if GCP_STRIPES > 1:
            pool.now = now
        found = not ring_empty(&pool.victims) or (self.collects and expiry_is_due(pool, pool.now))
        gcp_unlock(&core.mutex)
        return found

    # --- changing limits ---

    def reconfigure(self, **changes):
        """Change limits while the pool is in use. They are checked as a whole, as when it is built: defaults adapt,
        and nothing has changed if an error is raised. They hold from now on. Where a cap has grown, waiters are served
        at once. Where it has shrunk, idle connections beyond it are disposed of now, used ones when they are released.

        :param changes: any arguments of the constructor, except ``name``, ``background_collector``, ``track_holders``,
                        ``warn_after``, ``reclaim_abandoned`` and those of telemetry
        :raises TypeError: for an argument that is unknown, that cannot change, or that has a wrong type
        :raises ValueError: for an argument out of range, or two that contradict each other
        """
        reconfigure(self, changes)

    def __reduce_ex__(self, protocol):
        raise TypeError(f'a {type(self).__name__} cannot be pickled or copied: its connections belong to this process')


cdef int use_options(BaseConnectionPool pool, options) except -1:
    """Take those options that the core does not know, and that may change."""
    cdef object hook = None
    if not isinstance(pool, AsyncPool) and options.dispose_timeout is None:     # there, disposals may suspend
        hook = getattr(pool._manager, 'dispose', None)
    gcp_lock_outer(&pool._core.mutex)
    _last = pool.options, pool.acquire_timeout, pool.dispose_hook
    pool.options = options
    pool.acquire_timeout = options.acquire_timeout
    pool.dispose_hook = hook
    pool.dispose_batch_size = options.dispose_batch_size
    gcp_unlock_outer(&pool._core.mutex)
    if pool._monitored is not None and options.leak_threshold < INFINITY and pool._core.size:
        pool._monitored.begin()
    return 0


cdef object collector_of(BaseConnectionPool pool):
    """Return what looks for expired connections in the background, or None."""
    gcp_lock_outer(&pool._core.mutex)
    collector = pool.collector
    gcp_unlock_outer(&pool._core.mutex)
    return collector


cdef inline object default_timeout(BaseConnectionPool pool):
    """Return what an acquire may take whose caller does not say it."""
    gcp_lock_outer(&pool._core.mutex)
    found = pool.acquire_timeout
    gcp_unlock_outer(&pool._core.mutex)
    return found


cdef inline object dispose_hook_of(BaseConnectionPool pool):
    gcp_lock_outer(&pool._core.mutex)
    found = pool.dispose_hook
    gcp_unlock_outer(&pool._core.mutex)
    return found


cdef Py_ssize_t batch_size(BaseConnectionPool pool) noexcept:
    """How many expired connections a release disposes of: about log2 of the pool's size; of a large pool, as many
    as are gone in no time."""
    cdef Py_ssize_t size, given
    cdef Py_ssize_t few = 0
    cdef double each
    gcp_lock_outer(&pool._core.mutex)
    size, each, given = pool._core.pool.size, pool._core.dispose_time, pool.dispose_batch_size
    gcp_unlock_outer(&pool._core.mutex)
    if given:
        return given
    while (size + 1) >> few:
        few += 1
    if each > 0 and size >= few * LARGE:
        return max(few, <Py_ssize_t>min(<double>(size / LARGE), NO_TIME / each))
    return few


cdef int dispose_soon(BaseConnectionPool pool, double seconds) except -1:
    """Have the workers dispose of the victims, if there are any.

    :param seconds: how long to wait for it at most, where a caller can wait
    """
    if not has_victims(pool._core):
        return 0
    try:
        pool._disposer.dispose_soon(seconds)
    except BaseException:
        wake_collector(pool._core)
        raise
    return 0
