# The compiled half of the fronts: what both pools share.

cdef dict sequences = {}     # of unnamed pools, by their managers' class


cdef str next_name(str stem):
    sequences[stem] = sequences.get(stem, 0) + 1
    return f'{stem}-{sequences[stem]}'


def describe(endpoint):
    """Show an endpoint in a message: what can be recognised, but nothing that may carry credentials (a URL, a DSN)."""
    if isinstance(endpoint, (int, float)) or endpoint is None:
        return repr(endpoint)
    if isinstance(endpoint, str):
        return repr(endpoint) if len(endpoint) <= 80 and not set('@=?') & set(endpoint) else '<a string>'
    if isinstance(endpoint, (tuple, list)) and len(endpoint) <= 4:
        inner = ', '.join([describe(part) for part in endpoint])
        return f'({inner})' if isinstance(endpoint, tuple) else f'[{inner}]'
    if type(endpoint).__module__ in ('ipaddress', 'pathlib', 'pathlib._local'):
        return repr(str(endpoint))
    return f'<{type(endpoint).__name__}>'


def check_timeout(timeout, str name='timeout'):
    """Check a time-out given by a caller: seconds as a float, or None."""
    cdef double seconds
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        try:
            if isinstance(timeout, (bool, str, bytes)):
                raise TypeError
            seconds = timeout
        except TypeError:
            raise TypeError(
                f'{name} must be a number of seconds or None, not {type(timeout).__name__}: {timeout!r}') from None
    else:
        seconds = timeout
    if seconds != seconds:
        raise ValueError(f'{name} must be a number of seconds or None, not NaN')
    return seconds


cdef int check_hashable(endpoint) except -1:
    try:
        hash(endpoint)
    except TypeError as error:
        raise TypeError(f'endpoint must be hashable, not {type(endpoint).__name__}: {describe(endpoint)}') from error
    return 0


def chain(body, error):
    """Hang an error on the context of the one that goes on its way, so that neither hides the other."""
    link = error
    while link.__context__ is not None and link.__context__ is not body:
        link = link.__context__
    link.__context__ = None         # the interpreter has put the body's there: that would be a ring
    link = body
    while link.__context__ is not None:
        if link.__context__ is error:
            return
        link = link.__context__
    link.__context__ = error


cdef enum finding:
    # of the hooks at an idle hit; the last: one of them has something to wait for
    FINE, FOUND_DEAD, TOO_LATE, UNDER_WAY

cdef enum putting_back:
    NOT_HELD, PUT_BACK, PUT_BACK_AND_MORE       # there may be something to do after it


cdef enum:
    LARGE = 64              # no release disposes of more than this part of a pool at once, beyond the few that it must

cdef double NO_TIME = 1e-4  # seconds: what a thread that takes over and gives back costs anyway


cdef class BaseConnectionPool:
    """What the threading and the asyncio pool share. Not to be instantiated."""
    cdef readonly Core _core
    cdef readonly object _manager
    cdef readonly object _options
    cdef object acquire_timeout
    cdef readonly str name
    cdef public object _telemetry   # asked on slow paths whether somebody records spans by now
    # The manager's hooks; None where it has none. Looked up once, so that a hook that is not there costs nothing.
    cdef readonly object _check_aliveness
    cdef readonly object _on_acquire
    cdef readonly object _on_release
    cdef readonly object _on_connection_dead
    cdef public object _dispose     # for what a caller disposes of by itself; None: it does not
    # Whether an idle hit calls no hook on the way out, none on the way in, looks for nothing that expired.
    cdef bint direct
    cdef bint plain
    cdef bint collects
    cdef object __weakref__

    __class_getitem__ = classmethod(GenericAlias)

    def __cinit__(self, *args, **kwargs):
        self._core = Core()         # so that one whose __init__ failed is merely useless

    def _set_up(self, manager, options, dict hooks not None):
        """Take the resolved options, and the hooks that there are to call."""
        self._manager = manager
        self._check_aliveness = hooks.get('check_aliveness')
        self._on_acquire = hooks.get('on_acquire')
        self._on_release = hooks.get('on_release')
        self._on_connection_dead = hooks.get('on_connection_dead')
        self._options = options
        self.acquire_timeout = options.acquire_timeout
        self.name = options.name or next_name(type(manager).__name__)
        self.direct = self._check_aliveness is None and self._on_acquire is None
        self.plain = self._on_release is None
        self.collects = not options.background_collector
        self._core = Core(
            max_size=options.max_size,
            total_max_size=options.total_max_size,
            min_idle=options.min_idle,
            idle_timeout=options.idle_timeout,
            max_lifetime=options.max_lifetime,
            lifetime_jitter=options.lifetime_jitter,
            leak_threshold=options.leak_threshold,
        )

    cdef inline slot_t* hit(self, endpoint, timeout, glance_t* glance) except? NULL:
        """Check an idle connection out, or return NULL: then the Python front does it.

        :param glance: what has to be known when the hooks have had a look at the connection; NULL: none will, so the
                       acquire has ended well
        """
        cdef Core core = self._core
        cdef endpoint_t* e
        cdef slot_t* s = NULL
        cdef PyObject* found
        if timeout is not None:
            check_timeout(timeout)
        core.before('acquire')
        gcp_lock(&core.mutex)
        e = <endpoint_t*>table_find(&core.pool.known, <PyObject*>endpoint)
        if e != NULL:
            s = take_hit(&core.pool, e, gcp_monotonic(), glance)
        gcp_unlock(&core.mutex)
        if e == NULL:       # unknown, or a key that is equal, but not the same object
            found = look_up_quietly(core.endpoints, endpoint)
            if found != NULL:
                return self.hit_of(<Endpoint>found, glance)
            if PyErr_Occurred() != NULL and PyErr_ExceptionMatches(Exception):
                PyErr_Clear()   # it cannot be hashed, say: the slow path will find out again, and say so
        return s

    cdef slot_t* hit_of(self, Endpoint ep, glance_t* glance):
        """The same, of an endpoint that was looked up."""
        cdef Core core = self._core
        cdef slot_t* s = NULL
        gcp_lock(&core.mutex)
        if ep.e.listed:
            s = take_hit(&core.pool, &ep.e, gcp_monotonic(), glance)
        gcp_unlock(&core.mutex)
        return s

    cdef bint lend(self, slot_t* s, glance_t* glance) except -1:
        """End an idle hit well, unless the pool was closed meanwhile."""
        cdef Core core = self._core
        cdef bint ours
        core.before('finish')
        gcp_lock(&core.mutex)
        ours = s.lease == glance.lease and s.state == USED and core.pool.epoch == glance.epoch and not core.pool.closed
        if ours:
            s.acquired = True
            s.ep.counters.acquires[<int>HIT] += 1
        gcp_unlock(&core.mutex)
        return ours

    cdef Ticket open_ticket(self, endpoint, timeout):
        check_hashable(endpoint)
        if self._telemetry is not None:
            self._telemetry.recheck()
        return self._core.ticket(endpoint, self.limit(timeout), self.acquire_timeout)

    cdef inline object limit(self, timeout):
        """What an acquire may take: what its caller says, else what the pool says."""
        return self.acquire_timeout if timeout is None else check_timeout(timeout)

    cdef inline int put_back(self, slot_t* s, double now) noexcept nogil:
        """Release a connection that no hook wants to see any more. Within the lock."""
        cdef pool_t* pool = &self._core.pool
        if end_release(pool, s, now) != TO_IDLE or pool.wake_collector or (now >= pool.next_expiry and self.collects):
            return PUT_BACK_AND_MORE
        return PUT_BACK if ring_empty(&pool.victims) else PUT_BACK_AND_MORE

    cdef inline int put_back_named(self, conn, endpoint) except -1:
        """Release a connection by its name, unless that takes more than a look at who holds it."""
        cdef Core core = self._core
        cdef slot_t* s
        cdef int outcome = NOT_HELD
        core.before('release')
        gcp_lock(&core.mutex)
        s = <slot_t*>table_find(&core.pool.held, <PyObject*>conn)
        if s != NULL and s.ep.key == <PyObject*>endpoint:
            outcome = self.put_back(s, gcp_monotonic())
        gcp_unlock(&core.mutex)
        if s != NULL and outcome == NOT_HELD:       # perhaps by a key that is equal, but not the same object
            s = core.held_as(conn, endpoint)
            if s != NULL:
                gcp_lock(&core.mutex)
                outcome = self.put_back(s, gcp_monotonic())
                gcp_unlock(&core.mutex)
        return outcome

    cdef int give_back(self, Slot slot, glance_t* glance, double now) except -1:
        """End a release that a hook has had a look at."""
        cdef Core core = self._core
        cdef slot_t* s = &slot.s
        cdef int outcome = PUT_BACK_AND_MORE
        core.before('give_back')
        gcp_lock(&core.mutex)
        if s.lease == glance.lease and s.state == RETURNING and core.pool.epoch == glance.epoch:
            outcome = self.put_back(s, now)
        gcp_unlock(&core.mutex)
        return outcome

    cdef inline bint untidy(self) noexcept:
        """Whether there is something to dispose of after a release."""
        cdef Core core = self._core
        return not ring_empty(&core.pool.victims) or (self.collects and core.expiry_is_due(core.pool.now))

    def _batch_size(self):
        """How many expired connections a release disposes of: about log2 of the pool's size; of a large pool, as many
        as are gone in no time."""
        cdef Py_ssize_t size = self._core.pool.size
        cdef Py_ssize_t few = (size + 1).bit_length()
        cdef double each = self._core.dispose_time
        if self._options.dispose_batch_size:
            return self._options.dispose_batch_size
        if each > 0 and size >= few * LARGE:
            return max(few, <Py_ssize_t>min(<double>(size / LARGE), NO_TIME / each))
        return few

    def _timed_out(self, Ticket ticket, str phase, kind=AcquireTimeoutError):
        """Make the error of an acquire that ran out of time."""
        cdef Core core = self._core
        idle, used, creating, waiting, limit, oldest = ticket.block or (
            core.idle, core.used, core.creating, core.waiting, core.pool.max_size, INFINITY)
        blocked_by = ticket.blocked_by if phase == 'waiting' else 'creation' if phase == 'creation' else None
        age = max(0.0, core.now() - oldest) if oldest < INFINITY else 0.0
        allowed = 'its time' if ticket.timeout is None else f'{max(ticket.timeout, 0.0):g} s'
        blocked = f', blocked by {"the " if blocked_by != "creation" else ""}{blocked_by} of {limit}' if (
            phase == 'waiting' and blocked_by != 'creation') else ', blocked by creation' if phase == 'waiting' else ''
        held_for = f', the longest held for {age:.3g} s' if used and phase == 'waiting' else ''
        return kind(
            f'{self.name}: no connection to {describe(ticket.key)} within {allowed}: time ran out in {phase}{blocked}; '
            f'{idle} idle, {used} used{held_for}, {creating} creating, {waiting} waiting',
            pool=self.name, phase=phase, blocked_by=blocked_by, timeout=ticket.timeout, idle=idle, used=used,
            creating=creating, waiting=waiting, limit=limit, oldest_checkout=age,
        )

    # --- the face ---

    def get_size(self):
        """Return the number of places taken: connections idle, used, being created and being disposed of."""
        return self._core.pool.size

    @property
    def idle_timeout(self):
        """Seconds after which an idle extra is disposed of; ``inf``: never."""
        return self._options.idle_timeout

    @property
    def max_lifetime(self):
        """Seconds after which any connection is disposed of; ``inf``: never."""
        return self._options.max_lifetime

    @property
    def min_idle(self):
        """Idle connections that each endpoint keeps."""
        return self._options.min_idle

    @property
    def max_size(self):
        """Connections of one endpoint, at most."""
        return self._options.max_size

    @property
    def total_max_size(self):
        """Connections of all endpoints together, at most."""
        return self._options.total_max_size

    @property
    def is_full(self):
        """Whether all places are taken."""
        return self._core.pool.size >= self._core.pool.total_max_size

    @property
    def closed(self):
        """Whether the pool was closed."""
        return bool(self._core.pool.closed)

    def __repr__(self):
        cdef pool_t* pool = &self._core.pool
        return (
            f'<{type(self).__name__} {self.name}: {pool.idle} idle, {pool.used} used, {pool.creating} creating, '
            f'{pool.waiting} waiting; closed={bool(pool.closed)}>'
        )

    def __reduce_ex__(self, protocol):
        raise TypeError(f'a {type(self).__name__} cannot be pickled or copied: its connections belong to this process')
