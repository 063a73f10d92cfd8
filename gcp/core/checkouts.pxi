# Handles on what the core lends: checkouts (a connection in somebody's hands), tickets (an acquire in progress),
# victims (a connection on its way out). One that is dropped half-way is found by its finalizer and taken back by the
# next call.

cdef struct glance_t:        # at an idle hit, while the manager's hooks look at it
    uint64_t arrival         # how old the acquire is: should it have to go on, nobody younger comes before it
    uint64_t epoch
    uint64_t lease
    double began
    double deadline
    int hook                 # the one that is running: while there is one, an error costs the connection
    double hook_began


cdef inline slot_t* take_hit(pool_t* pool, endpoint_t* e, double now, glance_t* glance) noexcept nogil:
    """Check an idle connection out, or return NULL. Where nobody will have a look at it, the acquire has ended well."""
    cdef slot_t* s = take_idle(pool, e, now)
    if s == NULL:
        return NULL
    if glance == NULL:
        s.acquired = True
        e.counters.acquires[<int>HIT] += 1
    else:
        pool.arrivals += 1
        glance.arrival = pool.arrivals
        glance.epoch = pool.epoch
        glance.lease = s.lease
        glance.began = now
        glance.hook = N_HOOKS       # none
    return s


cdef inline str hook_of(glance_t* glance):
    return None if glance.hook == N_HOOKS else HOOKS[glance.hook]


cdef double seconds_allowed(timeout, hook_timeout):
    """How long an acquire may take. One that is not to wait in line has for its hooks what the pool says."""
    cdef double seconds = INFINITY
    if timeout is not None:
        seconds = timeout
        if seconds <= 0:
            seconds = INFINITY if hook_timeout is None or hook_timeout <= 0 else hook_timeout
    return seconds


@cython.no_gc_clear
cdef class Checkout:
    """One checkout of one slot.

    :ivar hook: the name of the manager's hook that is running, or ``None``; a checkout that ends badly while it is set
                costs the connection
    """
    cdef readonly Core core
    cdef Slot slot
    cdef uint64_t lease
    cdef uint64_t epoch
    cdef public str hook

    cdef inline void hold(self, Core core, Slot slot, uint64_t lease):
        self.core = core
        self.slot = slot
        self.lease = lease
        self.epoch = core.pool.epoch

    cdef inline bint current(self) noexcept:
        """Whether the connection is still this checkout's."""
        return (
            self.slot is not None and self.epoch == self.core.pool.epoch and self.slot.s.lease == self.lease
            and (self.slot.s.state == USED or self.slot.s.state == RETURNING)
        )

    cdef inline bint holds(self) noexcept nogil:
        """Whether the connection is this checkout's, and its release has not begun."""
        return (
            self.slot is not None and self.slot.s.lease == self.lease and self.slot.s.state == USED
            and self.epoch == self.core.pool.epoch
        )

    cdef int leave_stale(self, key, error) except -1:
        """The connection is not this checkout's any more: inert in a forked child and after a close, else misuse."""
        cdef bint told = error is not None or self.inherited or self.core.pool.closed
        self.slot = None
        if not told:
            raise ConnectionNotAcquiredError(f'this connection of endpoint {describe(key)} was released already')
        return 0

    cdef inline void end(self):
        self.slot = None

    @property
    def endpoint(self):
        """The endpoint."""
        return None if self.slot is None else self.slot.endpoint

    @property
    def conn(self):
        """The connection, or None before there is one."""
        return None if self.slot is None else self.slot.conn

    @property
    def inherited(self):
        """Whether this is the parent's, in a forked child."""
        return self.epoch != self.core.pool.epoch

    def __dealloc__(self):
        if self.slot is not None:
            self.core.abandon_holder(self)


cdef Checkout checkout_of(Core core, Slot slot, glance_t* glance, str hook):
    """Make a handle on what was held without one."""
    cdef Checkout checkout = Checkout.__new__(Checkout)
    checkout.core = core
    checkout.slot = slot
    checkout.lease = glance.lease
    checkout.epoch = glance.epoch
    checkout.hook = hook
    return checkout


@cython.final
@cython.no_gc_clear
cdef class Ticket(Checkout):
    """An acquire in progress."""
    cdef waiter_t w
    cdef Endpoint ep
    cdef object key
    cdef object wake
    cdef object timer                # of an event loop: ends the wait in line
    cdef readonly object timeout     # what the caller allowed: seconds, or None
    cdef readonly bint nowait
    cdef readonly double deadline    # by the core's clock; inf: none
    cdef double since                # creation started
    cdef bint waited                 # for others
    cdef bint set_off                # a disposal that will leave it a place
    cdef bint made
    cdef bint ended
    cdef int result
    cdef double took                    # from the call to the end, seconds
    cdef readonly object released_by    # the span in which its connection was, where somebody records spans
    cdef readonly object caller         # what `Tracer.caller` said when it turned out to be no idle hit
    cdef readonly str blocked_by
    cdef readonly tuple block        # (idle, used, creating, waiting, limit, oldest checkout's start)
    cdef object cause

    cdef int open(self, Core core, endpoint, timeout, hook_timeout) except -1:
        cdef double seconds = seconds_allowed(timeout, hook_timeout)
        self.key = endpoint
        self.timeout = timeout
        self.nowait = timeout is not None and timeout <= 0
        self.w.began = core.now()
        self.deadline = self.w.began + seconds
        self.since = NEVER
        self.core = core
        ring_init(&self.w.node)
        self.w.self = <PyObject*>self
        self.enter(core)
        return 0

    cdef void adopt(self, Slot slot, glance_t* glance):
        """Take over an idle hit with which something is wrong."""
        self.slot = slot
        self.lease = glance.lease
        self.epoch = glance.epoch
        self.deadline = glance.deadline
        self.w.seq = glance.arrival
        self.w.began = glance.began
        self.w.state = USE
        self.hook = hook_of(glance)
        if self.current():
            self.ep = <Endpoint>endpoint_object(slot.s.ep)

    cdef void enter(self, Core core):
        self.epoch = core.pool.epoch
        self.w.state = NEW
        core.pool.arrivals += 1
        self.w.seq = core.pool.arrivals

    cdef inline void receive(self):
        """Take over the slot that a step assigned."""
        if self.w.slot != NULL:
            self.slot = <Slot>slot_object(self.w.slot)
            self.lease = self.w.lease
            self.w.slot = NULL

    cdef void restore_permit(self) noexcept:
        """A creation that was under way at fork goes on in the child, whose counts start at zero."""
        if self.epoch != self.core.pool.epoch:
            self.enter(self.core)
            self.w.state = CREATE
            self.w.ep = &self.ep.e
            self.ep.e.creating += 1
            self.core.pool.creating += 1
            self.core.pool.size += 1

    cdef inline void count(self, int result, double now) noexcept:
        """Count an acquire that has ended, and how long it took. A hit waited for nothing, and is not timed."""
        cdef bint known = self.ep is not None and self.ep.e.listed
        cdef counters_t* counters = &self.ep.e.counters if known else &self.core.pool.retired
        self.result = result
        self.took = now - self.w.began
        counters.acquires[result] += 1
        if result != HIT:
            observe(&self.core.pool.metrics.wait, gcp_seconds, N_WAIT_BOUNDS, self.took)
        self.ended = True

    cdef int stop_timer(self) except -1:
        timer = self.timer
        if timer is not None:
            self.timer = None
            timer.cancel()
        return 0

    cdef void note_block(self):
        """Remember what stands in the way, for the error message."""
        cdef pool_t* pool = &self.core.pool
        cdef endpoint_t* e = &self.ep.e
        cdef double oldest = INFINITY
        cdef ring_t* node
        if taken(e) - e.reserved >= pool.max_size:
            self.blocked_by = 'creation' if e.n_used == 0 and e.creating else 'endpoint cap'
            if e.n_used:
                oldest = slot_in_endpoint(e.used.next).since
            self.block = (e.n_base + e.n_extra, e.n_used, e.creating, e.waiting, pool.max_size, oldest)
            return
        self.blocked_by = 'creation' if pool.used == 0 and pool.creating else 'total cap'
        node = pool.endpoints.next
        while node != &pool.endpoints:
            e = endpoint_link(node)
            if e.n_used and slot_in_endpoint(e.used.next).since < oldest:
                oldest = slot_in_endpoint(e.used.next).since
            node = node.next
        self.block = (pool.idle, pool.used, pool.creating, pool.waiting, pool.total_max_size, oldest)

    @property
    def endpoint(self):
        """The endpoint, as the caller gave it."""
        return self.key

    @property
    def verdict(self):
        """NEW, WAIT, CREATE, USE, TURNED_AWAY or DONE."""
        return self.w.state

    @property
    def ahead(self):
        """How many were in line when it came."""
        return self.w.ahead

    @property
    def created_by(self):
        """The span in which its connection was created, where somebody records spans."""
        return None if self.slot is None else self.slot.created_by

    @property
    def is_hit(self):
        """Whether it has neither waited nor created so far."""
        return not self.w.queued and not self.made

    @property
    def stirred(self):
        """Whether a disposal that the ticket has set off is under way, and will leave it a place."""
        return self.set_off and self.ep.e.reserved + self.ep.e.disposing > 0

    @property
    def last_error(self):
        """What the endpoint's latest creation failed with, while somebody waits for it."""
        return self.cause if self.cause is not None or self.ep is None else self.ep.last_error

    def remaining(self):
        """Return the seconds left for hooks, or None without a limit."""
        return None if self.deadline == INFINITY else max(0.0, self.deadline - self.core.now())

    def patience(self, double most):
        """Return for how long to wait, seconds: until the deadline, at most so long. One that is not to wait in line
        has patience only with a disposal that is about to leave it a place."""
        if self.nowait and not self.stirred:
            return 0.0
        return max(0.0, min(most, self.deadline - self.core.now()))

    def overran(self):
        """Tell whether the deadline has passed."""
        return self.deadline != INFINITY and self.core.now() >= self.deadline

    def create(self, create, timeout):
        """Call a blocking `create` and book what comes of it. In one compiled piece: between the connection's birth
        and its booking no signal handler can run and lose it. Returns the verdict."""
        try:
            conn = create(self.key, timeout=timeout)
            if isinstance(conn, CoroutineType):
                conn.close()
                raise TypeError('create() returned an awaitable: is this a manager for gcp.asyncio.ConnectionPool?')
        except BaseException as error:
            self.core.failed(self, error)
            raise
        return self.core.created(self, conn)

    def __dealloc__(self):
        # Dropped in the middle, with a permit or a slot that nobody came for. (One in line is owned by the line.)
        if self.core is None or self.epoch != self.core.pool.epoch or self.ended:
            return
        if self.w.state == CREATE and self.ep.e.listed:
            self.ep.e.abandoned_permits += 1
            self.core.pool.abandoned_permits = True
            self.core.request_drain(&self.ep.e)
        elif self.w.state == USE:
            self.receive()      # and the checkout's finalizer sees to it


@cython.final
@cython.freelist(32)
@cython.no_gc_clear
cdef class Victim:
    """A connection on its way out. To be disposed of once, then reported to `Core.disposed`."""
    cdef readonly Core core
    cdef Slot slot
    cdef uint64_t epoch
    cdef bint done
    cdef Batch batch                 # where a worker has taken it from
    cdef bint counted                # its caller does not wait for it any more
    cdef public bint overdue         # nobody counts on its place any more
    cdef readonly bint given_up
    cdef public bint started         # its dispose was called: must not be called again
    cdef double began
    cdef HookCall step                   # where somebody records spans

    @property
    def endpoint(self):
        """The endpoint."""
        return self.slot.endpoint

    @property
    def conn(self):
        """The connection."""
        return self.slot.conn

    def concerns(self, endpoint):
        """Tell whether this is the business of whoever uses an endpoint: of that endpoint, and nobody else's place."""
        return self.slot.s.reserved_for == NULL and (self.slot.endpoint is endpoint or self.slot.endpoint == endpoint)

    @property
    def reason(self):
        """Why it is disposed of."""
        return REASONS[self.slot.s.reason]

    cdef int begin(self, origin) except -1:
        """Its dispose is about to be called."""
        cdef Core core = self.core
        if core.tracer is not None:
            self.step = core.hook_call('dispose', self.slot.endpoint, origin=origin)
            self.step.__enter__()
        self.began = core.now()
        self.started = True
        return 0

    cdef int finish(self, int outcome, error) except -1:
        """Its disposal has ended, in whatever way. Told twice, it counts once."""
        cdef Core core = self.core
        cdef double now = core.now()
        core.before('disposed')
        try:
            if self.step is not None:
                self.step.close(outcome, error)
            elif not self.done:
                core.count_hook(HOOK_DISPOSE, outcome, now - self.began)
            gcp_lock(&core.mutex)
            core.dispose_time += (now - self.began - core.dispose_time) * (0.2 if core.dispose_time > 0 else 1.0)
            gcp_unlock(&core.mutex)
        finally:
            self.done = True
            if self.epoch == core.pool.epoch:
                core.finish_disposal(self.slot, now)
            core.after()
        return 0

    cdef int end(self, error) except -1:
        """Its hook has ended."""
        try:
            self.finish(outcome_of(error), error)
        finally:
            if self.step is not None:
                self.step.leave()
        return 0

    def give_up(self):
        """Nobody waits for its disposal any longer: as good as done. Tells whether it was not before."""
        cdef bint last = False
        self.given_up = True
        if not self.count(&last):
            return False
        try:
            self.finish(CALL_TIMEOUT, None)
        finally:
            if last:
                set_event(self.batch.event)
        return True

    cdef bint count(self, bint* last) noexcept:
        """Let its caller count it as gone, once; tell whether it was now.

        :param last: set when it was the last one that the caller waited for
        """
        cdef bint first
        gcp_lock(&self.core.mutex)
        first = not self.counted
        self.counted = True
        if first:
            self.batch.left -= 1
            last[0] = self.batch.left == 0
        gcp_unlock(&self.core.mutex)
        return first

    def conclude(self, error):
        """Its disposal, which something had to be waited for, has ended."""
        self.end(error)

    def __dealloc__(self):
        if self.slot is not None and not self.done:
            self.core.abandon_victim(self)
