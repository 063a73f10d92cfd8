# The core: the steps behind a lock, their left-overs done, user keys looked up outside. This is the face that the
# fronts (and the tests, with a clock of their own) talk to.

cdef struct family_t:        # all cores, so that a forked child can empty its copies
    ring_t ring
    PyObject* core


cdef family_t all_cores
ring_init(&all_cores.ring)

REASONS = ('idle_timeout', 'max_lifetime', 'dead', 'discarded', 'evicted', 'pool_closed', 'error')
RESULTS = ('hit', 'created', 'waited', 'timeout', 'cancelled', 'error')
OUTCOMES = ('handoff', 'discarded', 'idle')

cdef double NEVER = INFINITY


cdef int is_unlisted(PyObject* endpoint) noexcept:
    """Whether a record may leave the dict: not when somebody has revived it."""
    return not (<Endpoint>endpoint).e.listed


# --- copies: what a snapshot copies while the lock is held ---

cdef struct counts_t:
    PyObject* key
    Py_ssize_t idle
    Py_ssize_t used
    Py_ssize_t creating
    Py_ssize_t disposing
    Py_ssize_t waiting
    counters_t counters


cdef struct ages_t:
    double oldest_waiter     # when it began, by the core's clock; inf: none
    double oldest_checkout


cdef void add_counters(counters_t* to, counters_t* more) noexcept nogil:
    cdef int i
    to.created += more.created
    to.leaks += more.leaks
    for i in range(<int>N_REASONS):
        to.closed[i] += more.closed[i]
    for i in range(<int>N_RESULTS):
        to.acquires[i] += more.acquires[i]
    for i in range(<int>N_OUTCOMES):
        to.releases[i] += more.releases[i]


cdef void copy_counts(endpoint_t* e, counts_t* p) noexcept nogil:
    p.key = e.key
    p.idle = e.n_base + e.n_extra
    p.used = e.n_used
    p.creating = e.creating
    p.disposing = e.disposing
    p.waiting = e.waiting
    p.counters = e.counters


cdef void copy_total(pool_t* pool, counts_t* p) noexcept nogil:
    p.key = NULL
    p.idle = pool.idle
    p.used = pool.used
    p.creating = pool.creating
    p.disposing = pool.disposing
    p.waiting = pool.waiting
    p.counters = pool.retired


cdef ages_t oldest_of(pool_t* pool) noexcept nogil:
    """Find who has waited, and what has been held, for longest."""
    cdef ages_t found
    cdef ring_t* node = pool.endpoints.next
    cdef endpoint_t* e
    found.oldest_waiter = found.oldest_checkout = INFINITY
    while node != &pool.endpoints:
        e = endpoint_link(node)
        node = node.next
        if e.waiting and first_waiter(e).began < found.oldest_waiter:
            found.oldest_waiter = first_waiter(e).began
        if e.n_used and slot_in_endpoint(e.used.next).since < found.oldest_checkout:
            found.oldest_checkout = slot_in_endpoint(e.used.next).since
    return found


cdef dict total_of(counts_t* total, metrics_t* metrics, double oldest_waiter, double oldest_checkout):
    """The whole pool's figures as plain values. A hit waited for nothing, and was not timed."""
    cdef metrics_t complete = metrics[0]
    complete.wait.counts[0] += total.counters.acquires[<int>HIT]
    return {
        **counts_of(total),
        **metrics_of(&complete),
        'oldest_waiter': oldest_waiter,
        'oldest_checkout': oldest_checkout,
    }


cdef dict counts_of(counts_t* p):
    return {
        'idle': p.idle,
        'used': p.used,
        'creating': p.creating,
        'disposing': p.disposing,
        'waiting': p.waiting,
        'created': p.counters.created,
        'leaks': p.counters.leaks,
        'closed': {REASONS[i]: p.counters.closed[i] for i in range(<int>N_REASONS)},
        'acquires': {RESULTS[i]: p.counters.acquires[i] for i in range(<int>N_RESULTS)},
        'releases': {OUTCOMES[i]: p.counters.releases[i] for i in range(<int>N_OUTCOMES)},
    }


@cython.final
cdef class FinalCounts:
    """What a pool has counted, once it is gone: its totals must not vanish from the counters that others add up."""
    cdef counts_t total
    cdef metrics_t metrics
    cdef bint closed
    cdef PyObject* owner     # the core, until the books are closed: that is the first thing that happens to garbage

    @property
    def core(self):
        """The core, while there is one: it may outlive its pool, in the hands of somebody who holds a lease."""
        return None if self.owner == NULL else <Core>self.owner

    def read(self):
        """Return the totals as `Core.snapshot` does, or None while there is a pool to ask."""
        if not self.closed:
            return None
        return total_of(&self.total, &self.metrics, 0.0, 0.0)


@cython.final
cdef class Core:
    """The state of one pool, and the verbs that change it. Decides; never waits, never calls a manager.

    :param max_size: connections of one endpoint, at most
    :param total_max_size: connections of all endpoints together, at most
    :param min_idle: idle connections of an endpoint that are kept (its base); the others are extras
    :param idle_timeout: seconds after which an idle extra expires
    :param max_lifetime: seconds after which any connection expires
    :param lifetime_jitter: by how much of itself a lifetime may be shortened, at random, 0 to 1
    :param leak_threshold: seconds after which a connection that is still held counts as leaked
    :param clock: returns seconds; for tests. ``None``: the monotonic clock
    """
    cdef pool_t pool
    cdef gcp_mutex mutex
    cdef family_t family
    cdef dict endpoints
    cdef object clock
    cdef object debugger
    cdef double dispose_time        # smoothed, seconds; 0 before the first
    cdef readonly FinalCounts final_counts
    cdef public object wake_collector      # wakes the collector: it sleeps longer than it should
    cdef public object on_abandoned    # called from finalizers, in any thread: there is something to drain
    cdef public object on_drained     # called when a closed pool has become empty
    cdef public object on_fork      # called in a forked child
    cdef public object tracer       # told of steps and of waits, while somebody records spans; None: nobody does
    cdef public bint traces_hits    # also of the hooks at an idle hit, and at a release

    def __cinit__(
        self, *, Py_ssize_t max_size=10, Py_ssize_t total_max_size=100, Py_ssize_t min_idle=1,
        double idle_timeout=60.0, double max_lifetime=3600.0, double lifetime_jitter=0.0,
        double leak_threshold=INFINITY, clock=None,
    ):
        cdef pool_t* pool = &self.pool
        gcp_mutex_init(&self.mutex)
        pool.max_size = max_size
        pool.total_max_size = total_max_size
        pool.min_idle = min_idle
        pool.idle_timeout = idle_timeout
        pool.max_lifetime = max_lifetime
        pool.jitter = lifetime_jitter
        pool.leak_after = leak_threshold
        pool.collector_wakes_at = -INFINITY
        pool.next_expiry = INFINITY
        ring_init(&pool.idle_bases)
        ring_init(&pool.idle_extras)
        ring_init(&pool.victims)
        ring_init(&pool.reserving)
        ring_init(&pool.endpoints)
        self.family.core = <PyObject*>self
        ring_init(&self.family.ring)
        ring_insert(&all_cores.ring, &self.family.ring)
        self.endpoints = {}
        self.clock = clock
        self.final_counts = FinalCounts.__new__(FinalCounts)
        self.final_counts.owner = <PyObject*>self
        self.seed()

    cdef int seed(self) except -1:
        self.pool.random = int.from_bytes(os.urandom(8), 'little') | 1
        return 0

    def __dealloc__(self):
        if self.family.ring.next != NULL:
            ring_remove(&self.family.ring)
            self.close_final_counts()
            self.drop_all(False)
            self.drop_abandoned()
        free(self.pool.due.items)
        free(self.pool.blocked.items)
        free(self.pool.known.items)
        free(self.pool.held.items)
        free(self.pool.inherited.items)

    cdef void close_final_counts(self):
        """The pool is garbage. What it still has goes with it, and the books are closed."""
        cdef pool_t* pool = &self.pool
        cdef FinalCounts final_counts = self.final_counts
        cdef ring_t* node = pool.endpoints.next
        cdef endpoint_t* e
        if final_counts is None or final_counts.closed:
            return
        final_counts.closed = True
        final_counts.owner = NULL
        while node != &pool.endpoints:
            e = endpoint_link(node)
            node = node.next
            write_off(pool, e)
            add_counters(&pool.retired, &e.counters)
        final_counts.total.counters = pool.retired
        final_counts.metrics = pool.metrics

    cdef void drop_all(self, bint inherited):
        """Forget all endpoints and slots. Buried, their connections are never finalized."""
        cdef pool_t* pool = &self.pool
        cdef endpoint_t* e
        cdef ring_t* ring
        cdef int i
        cdef slot_t* s
        cdef waiter_t* w
        while not ring_empty(&pool.endpoints):
            e = endpoint_link(pool.endpoints.next)
            ring_remove(&e.link)
            e.listed = False
            for i in range(4):
                ring = &e.base if i == 0 else &e.extras if i == 1 else &e.used if i == 2 else &e.disposals
                while not ring_empty(ring):
                    s = slot_in_endpoint(ring.next)
                    ring_remove(&s.in_endpoint)
                    ring_remove(&s.in_pool)
                    ring_remove(&s.reservation)
                    s.state = FREE
                    s.lease = 0
                    s.due = -1
                    if not inherited:
                        Py_DECREF(<object>slot_object(s))
            while not ring_empty(&e.queue):
                w = first_waiter(e)
                ring_remove(&w.node)
                w.state = DONE
                if not inherited:
                    Py_DECREF(<object>w.self)
            if not inherited:
                Py_DECREF(<object>endpoint_object(e))
        pool.n_endpoints = 0
        free(pool.known.items)
        memset(&pool.known, 0, sizeof(table_t))

    cdef void drop_abandoned(self):
        """Forget what finalizers left."""
        cdef slot_t* s = <slot_t*>gcp_take(&self.pool.abandoned_slots)
        cdef waiter_t* w = <waiter_t*>gcp_take(&self.pool.abandoned_waiters)
        cdef PyObject* owned
        while s != NULL:
            owned = slot_object(s)
            s = s.next_abandoned
            Py_DECREF(<object>owned)
        while w != NULL:
            owned = w.self
            w = w.next_abandoned
            Py_DECREF(<object>owned)

    # --- time ---

    cdef inline double now(self) except? -1:
        if self.clock is None:
            return gcp_monotonic()
        return self.clock()

    def time(self):
        """Read the core's clock, seconds."""
        return self.now()

    # --- endpoints ---

    cdef inline Endpoint find(self, key):
        """Look an endpoint up. Runs user code: its ``__hash__`` and ``__eq__``."""
        cdef PyObject* found = PyDict_GetItemWithError(self.endpoints, key)
        return None if found == NULL else <Endpoint>found

    cdef Endpoint enlist(self, key):
        """Look an endpoint up, or add it."""
        cdef Endpoint ep = self.find(key)
        cdef pool_t* pool = &self.pool
        cdef void* items
        if ep is None:
            ep = self.endpoints.setdefault(key, Endpoint(key))
        if ep.e.listed:
            return ep
        gcp_lock(&self.mutex)
        if not ep.e.listed:
            items = grown(pool.blocked.items, &pool.blocked.capacity, pool.n_endpoints + 1, sizeof(endpoint_t*))
            if items != NULL:
                pool.blocked.items = <endpoint_t**>items
            if items != NULL and table_has_room(&pool.known):
                table_add(&pool.known, &ep.e)
                ring_insert(&pool.endpoints, &ep.e.link)
                pool.n_endpoints += 1
                ep.e.listed = True
                Py_INCREF(ep)
        gcp_unlock(&self.mutex)
        if not ep.e.listed:
            raise MemoryError
        return ep

    cdef int forget(self) except -1:
        """Drop the records of endpoints that became empty; what they counted goes to the retired totals."""
        cdef pool_t* pool = &self.pool
        cdef endpoint_t* e
        cdef Endpoint ep
        cdef bint gone
        while pool.empties != NULL:
            gcp_lock(&self.mutex)
            e = pool.empties
            if e == NULL:
                gcp_unlock(&self.mutex)
                break
            pool.empties = e.next_empty
            e.in_empties = False
            gone = e.waiting == 0 and taken(e) == 0 and e.listed
            if gone:
                ring_remove(&e.link)
                table_remove(&pool.known, e)
                table_shrink(&pool.known)
                pool.n_endpoints -= 1
                e.listed = False
                add_counters(&pool.retired, &e.counters)
                memset(&e.counters, 0, sizeof(counters_t))
            gcp_unlock(&self.mutex)
            if not gone:
                continue
            ep = <Endpoint>endpoint_object(e)
            Py_DECREF(ep)
            try:
                gcp_delete_if(self.endpoints, ep.key, is_unlisted)
            except Exception:
                pass    # gone already; or a key that cannot be hashed any more: its record is never found again
        return 0

    # --- what a step leaves to do ---

    @property
    def on_transition(self):
        """Debug: called with a verb's name before each step."""
        return self.debugger

    @on_transition.setter
    def on_transition(self, debugger):
        self.debugger = debugger
        self.pool.pending = True     # a step looks at one flag, not at two

    cdef inline int before(self, str verb) except -1:
        if self.pool.pending:
            self.clean_up(verb)
        return 0

    cdef int clean_up(self, str verb) except -1:
        """Before a step: tell the debugger, take back what finalizers left."""
        self.pool.pending = self.debugger is not None
        if self.debugger is not None:
            self.debugger(verb)
        if self.pool.abandoned_slots != NULL or self.pool.abandoned_waiters != NULL or self.pool.abandoned_permits:
            self.drain()
        return 0

    cdef inline int after(self) except -1:
        if self.pool.woken != NULL:
            self.wake_all()
        if self.pool.empties != NULL:
            self.forget()
        if self.pool.wake_collector:
            self.pool.wake_collector = False
            if self.wake_collector is not None:
                self.wake_collector()
        if self.pool.closed and self.pool.size == 0 and self.on_drained is not None:
            self.on_drained()
        return 0

    cdef int wake_all(self) except -1:
        """Wake the waiters that a step gave a verdict, the longest waiting first."""
        cdef waiter_t* w
        cdef Ticket ticket
        cdef object trouble = None
        cdef object here = None
        tracer = self.tracer
        if tracer is not None:
            try:
                here = tracer.current()
            except BaseException as e:
                trouble = e         # a signal handler raised: first wake them all
        while True:
            gcp_lock(&self.mutex)
            w = self.pool.woken
            if w != NULL:
                self.pool.woken = w.next_woken
            gcp_unlock(&self.mutex)
            if w == NULL:
                break
            ticket = <Ticket>w.self
            Py_DECREF(ticket)
            if w.state == USE:
                ticket.released_by = here
            try:
                set_event(ticket.wake)
            except Exception:
                pass                    # its event loop is gone, and the waiter with it
            except BaseException as e:
                trouble = e             # a signal handler raised: first wake the others
        if trouble is not None:
            raise trouble
        return 0

    def drain(self):
        """Take back what finalizers found abandoned: leases that were never released, acquires that were dropped."""
        cdef slot_t* s = <slot_t*>gcp_take(&self.pool.abandoned_slots)
        cdef waiter_t* w = <waiter_t*>gcp_take(&self.pool.abandoned_waiters)
        cdef slot_t* orphan
        cdef Slot slot
        cdef Ticket ticket
        cdef double now = self.now()
        while s != NULL:
            orphan, s = s, s.next_abandoned
            slot = <Slot>slot_object(orphan)
            Py_DECREF(slot)
            gcp_lock(&self.mutex)
            self.pool.now = now
            if orphan.abandoned_lease:
                if orphan.lease == orphan.abandoned_lease and (orphan.state == USED or orphan.state == RETURNING):
                    discard_slot(&self.pool, orphan, DISCARDED)
            elif orphan.state == DISPOSING and not orphan.started:
                ring_insert(&self.pool.victims, &orphan.in_pool)
            gcp_unlock(&self.mutex)
            if orphan.abandoned_lease == 0 and orphan.started:
                self.finish_disposal(slot, now)
        while w != NULL:
            ticket = <Ticket>w.self
            w = w.next_abandoned
            Py_DECREF(ticket)
            self.let_go(ticket, GeneratorExit())
        if self.pool.abandoned_permits:
            gcp_lock(&self.mutex)
            self.pool.now = now
            reclaim_permits(&self.pool)
            gcp_unlock(&self.mutex)
        self.after()

    cdef void abandon_holder(self, Checkout checkout):
        """Called by finalizers: leave an abandoned checkout to the next call. Takes no lock, runs no Python code but a
        thread-safe request_drain."""
        cdef slot_t* s = &checkout.slot.s
        if checkout.epoch != self.pool.epoch or s.lease != checkout.lease or s.abandoned_lease == s.lease:
            return
        Py_INCREF(checkout.slot)
        s.abandoned_lease = checkout.lease
        gcp_push(&self.pool.abandoned_slots, s, &s.next_abandoned)
        self.request_drain(s.ep)

    cdef void abandon_victim(self, Victim victim):
        """Called by the finalizer of a victim that was not reported: the next call disposes of it, or reports it."""
        cdef slot_t* s = &victim.slot.s
        if victim.epoch != self.pool.epoch or s.state != DISPOSING:
            return
        Py_INCREF(victim.slot)
        s.abandoned_lease = 0
        s.started = victim.started
        gcp_push(&self.pool.abandoned_slots, s, &s.next_abandoned)
        self.request_drain(s.ep)

    cdef void request_drain(self, endpoint_t* ep):
        """Have somebody drain soon: the front's deferred call, or the first who waits."""
        cdef object wake = self.on_abandoned
        self.pool.pending = True
        if wake is None and self.pool.closed:
            wake = self.on_drained        # whoever closes will drain
        elif wake is None and ep != NULL:
            if ep.waiting == 0 and self.pool.blocked.n:
                ep = self.pool.blocked.items[0]
            if ep.waiting:
                wake = (<Ticket>first_waiter(ep).self).wake
        if wake is not None:
            try:
                PyObject_CallNoArgs(wake)
            except Exception:
                pass

    # --- acquire ---

    def ticket(self, endpoint, timeout=None, hook_timeout=None):
        """Make a ticket for an acquire. It is in no line yet and holds nothing.

        :param timeout: seconds; ``None``: no limit; zero or less: do not wait in line
        :param hook_timeout: seconds that hooks may take where `timeout` is zero or less
        """
        cdef Ticket ticket = Ticket.__new__(Ticket)
        ticket.open(self, endpoint, timeout, hook_timeout)
        return ticket

    cpdef int request(self, Ticket ticket) except -1:
        """Ask for a connection: USE, CREATE, WAIT or TURNED_AWAY."""
        self.before('request')
        return self.ask(ticket, False)

    def retry(self, Ticket ticket not None):
        """The ticket's connection was found dead: make it a victim and ask again. One step, so that nobody younger
        takes the place that it leaves."""
        self.before('retry')
        return self.ask(ticket, True)

    cdef int ask(self, Ticket ticket, bint dead) except -1:
        cdef int verdict
        cdef double now
        while True:
            if self.pool.closed and not dead:
                ticket.w.state = TURNED_AWAY
                return TURNED_AWAY
            if ticket.ep is None or not ticket.ep.e.listed:
                ticket.ep = self.enlist(ticket.key)
            now = self.now()
            gcp_lock(&self.mutex)
            if ticket.ep.e.listed:
                break
            gcp_unlock(&self.mutex)
        self.pool.now = now
        if dead and ticket.current():
            discard_slot(&self.pool, &ticket.slot.s, DEAD)
        if ticket.epoch != self.pool.epoch:
            ticket.enter(self)
        ticket.w.ep = &ticket.ep.e
        ticket.w.queued = False
        ticket.since = NEVER
        Py_INCREF(ticket)
        verdict = request_slot(&self.pool, &ticket.w, now)
        if ticket.w.queued:
            # For a disposal of its own making, or for others?
            ticket.set_off = ticket.ep.e.reserved + ticket.ep.e.disposing >= ticket.ep.e.waiting
            ticket.waited = ticket.waited or not ticket.set_off
        if verdict == CREATE:
            ticket.since = now
        gcp_unlock(&self.mutex)
        if dead:
            ticket.end()
        if verdict == USE:
            ticket.receive()
        if not ticket.w.queued:
            Py_DECREF(ticket)
        self.after()
        tracer = self.tracer
        if tracer is not None and verdict != USE and ticket.caller is None:
            ticket.caller = tracer.caller()     # now: whoever drops the acquire may do so from anywhere
        return self.look(ticket)        # others may have run since

    cpdef int arm(self, Ticket ticket, wake) except -1:
        """Say how to wake a ticket that waits. Returns its verdict: WAIT, or what has come meanwhile."""
        self.before('arm')
        gcp_lock(&self.mutex)
        ticket.wake = wake
        gcp_unlock(&self.mutex)
        return self.look(ticket)

    cpdef int poll(self, Ticket ticket) except -1:
        """Return the verdict of a ticket that was woken."""
        self.before('poll')
        return self.look(ticket)

    cdef int look(self, Ticket ticket) except -1:
        if ticket.epoch != self.pool.epoch:     # a forked child inherits no line
            return self.request(ticket)
        if ticket.w.state == USE and ticket.slot is None:
            ticket.receive()
        elif ticket.w.state == CREATE and ticket.since == NEVER:
            ticket.since = self.now()
            ticket.cause = ticket.ep.last_error
        return ticket.w.state

    def expire(self, Ticket ticket not None):
        """Leave the line at the deadline. Returns WAIT when nothing had come, else the verdict that had."""
        cdef int found
        self.before('expire')
        if ticket.epoch != self.pool.epoch:
            return self.look(ticket)
        gcp_lock(&self.mutex)
        found = ticket.w.state
        if found == WAIT:
            withdraw(&self.pool, &ticket.w)
            ticket.note_block()
        gcp_unlock(&self.mutex)
        if found != WAIT:
            return self.look(ticket)
        Py_DECREF(ticket)
        ticket.cause = ticket.ep.last_error
        if ticket.ep.e.waiting == 0 and ticket.ep.e.creating == 0:
            ticket.ep.last_error = None
        self.after()
        return WAIT

    def created(self, Ticket ticket not None, conn):
        """Turn a ticket's permit into a connection. Returns USE, or TURNED_AWAY when the pool was closed meanwhile; the
        connection is a victim then."""
        cdef Slot slot = Slot.__new__(Slot)
        cdef double now
        cdef bint room
        self.before('created')
        slot.conn = conn
        slot.endpoint = ticket.ep.key
        slot.s.conn = <PyObject*>conn
        ticket.made = True
        now = self.now()
        ticket.ep.last_error = None
        if not ticket.ep.e.listed:
            ticket.ep = self.enlist(ticket.key)     # a forked child: its parent's records are gone
        gcp_lock(&self.mutex)
        ticket.restore_permit()
        room = make_room(&self.pool)
        if room:
            Py_INCREF(slot)                         # the endpoint's
            book_connection(&self.pool, &ticket.w, &slot.s, now, now - ticket.since)
            ticket.receive()
        gcp_unlock(&self.mutex)
        if not room:
            self.failed(ticket)
            raise MemoryError
        self.after()
        tracer = self.tracer
        if tracer is not None:
            slot.created_by = tracer.current()     # now that it is booked: a signal handler may raise in there
        return ticket.w.state

    def failed(self, Ticket ticket not None, error=None):
        """Give back the permit of a ticket whose creation failed; the next in line may try."""
        cdef Endpoint ep = ticket.ep
        cdef int outcome = CALL_ERROR if error is None else outcome_of(error)
        cdef double now
        self.before('failed')
        now = self.now()
        gcp_lock(&self.mutex)
        self.pool.now = now
        ticket.restore_permit()
        withdraw(&self.pool, &ticket.w)
        count_hook_call(&self.pool.metrics, HOOK_CREATE, outcome, now - ticket.since)
        gcp_unlock(&self.mutex)
        ep.last_error = error if ep.e.waiting or ep.e.creating else None
        self.after()

    def finish(self, Ticket ticket not None):
        """End an acquire well: count it and return the connection, which is the caller's from here on."""
        cdef bint ours
        cdef double now
        self.before('finish')
        now = self.now()
        gcp_lock(&self.mutex)
        ours = ticket.current() and not self.pool.closed
        if ours:
            ticket.slot.s.acquired = True
            ticket.count(WAITED if ticket.waited else CREATED if ticket.made else HIT, now)
        gcp_unlock(&self.mutex)
        if not ours:
            raise ConnectionPoolClosedError('the pool was closed while the connection was being acquired')
        try:
            self.trace_wait(ticket, None)
        except BaseException:       # a signal: the connection is its caller's already, who will not see it
            gcp_lock(&self.mutex)
            if ticket.current():
                end_release(&self.pool, &ticket.slot.s, now)
            gcp_unlock(&self.mutex)
            raise
        return ticket.slot.conn

    cdef inline int trace_wait(self, Ticket ticket, error) except -1:
        """Tell of an acquire that was no idle hit."""
        tracer = self.tracer
        if tracer is not None and ticket.result != HIT:
            tracer.waited(ticket, RESULTS[ticket.result], ticket.took, error)
        return 0

    def abandon(self, Ticket ticket not None, error):
        """End an acquire badly: leave the line, return the permit or the connection (one whose hook was running is
        discarded), count the result. Does nothing for a ticket that has ended."""
        if self.let_go(ticket, error):
            self.trace_wait(ticket, error)

    cdef bint let_go(self, Ticket ticket, error) except -1:
        """The same, without a word. Returns whether it had not ended."""
        cdef Slot slot = ticket.slot
        cdef int found
        cdef int result = CANCELLED
        cdef double now
        if ticket.ended:
            return False
        if isinstance(error, Exception):
            result = TIMED_OUT if isinstance(error, AcquireTimeoutError) else ERROR
        ticket.stop_timer()
        self.before('abandon')
        now = self.now()
        gcp_lock(&self.mutex)
        self.pool.now = now
        found = DONE
        if ticket.epoch == self.pool.epoch:
            found = withdraw(&self.pool, &ticket.w)
            if found == USE:
                ticket.receive()
                if ticket.current():
                    if ticket.hook is not None:
                        discard_slot(&self.pool, &ticket.slot.s, HOOK_FAILED)
                    else:
                        end_release(&self.pool, &ticket.slot.s, now)
            if ticket.ep is not None:
                note_if_empty(&self.pool, &ticket.ep.e)
        ticket.w.state = DONE
        ticket.count(result, now)
        gcp_unlock(&self.mutex)
        ticket.slot = None
        if found == WAIT:
            Py_DECREF(ticket)
        self.after()
        return True

    # --- the manager's steps ---

    def hook_call(self, str name, endpoint, *, origin=None, bint quiet=False):
        """Return a context manager around one call of a manager's hook: it counts, times and traces it.

        :param origin: in the background: what `Tracer.here` said in whose interest it is
        :param quiet: at an idle hit: no reason for a span, unless it goes wrong
        """
        cdef HookCall step = HookCall.__new__(HookCall)
        step.core = self
        step.kind = HOOKS.index(name)
        step.endpoint = endpoint
        step.origin = origin
        step.quiet = quiet and not self.traces_hits
        return step

    cdef inline double hook_went_well(self, glance_t* glance) noexcept nogil:
        """Count and time the hook that is running. Returns what the clock says."""
        cdef double now = gcp_monotonic()
        gcp_lock(&self.mutex)
        count_hook_call(&self.pool.metrics, glance.hook, CALL_OK, now - glance.hook_began)
        gcp_unlock(&self.mutex)
        return now

    cdef double end_hook(self, glance_t* glance, int outcome, endpoint, error) except? -1:
        """End the hook that is running, which has no span. If it went wrong, there will be one all the same. Returns
        what the clock says."""
        cdef double now = self.now()
        cdef double seconds = now - glance.hook_began
        if glance.hook == N_HOOKS:
            return now
        if error is not None:
            outcome = outcome_of(error)
        self.count_hook(glance.hook, outcome, seconds)
        tracer = self.tracer
        if outcome != CALL_OK and tracer is not None:
            tracer.record_failed(HOOKS[glance.hook], endpoint, HOOK_OUTCOMES[outcome], seconds, error)
        return now

    cdef inline void count_hook(self, int kind, int outcome, double seconds) noexcept:
        gcp_lock(&self.mutex)
        count_hook_call(&self.pool.metrics, kind, outcome, seconds)
        gcp_unlock(&self.mutex)

    # --- release ---

    def checkin(self, conn, endpoint):
        """Begin to release a connection by its name, as ``release(conn, endpoint)`` does.

        :return: its checkout, or ``None`` for one that the parent of this forked process holds, or of a closed pool
        :raises ConnectionNotAcquiredError: when nobody holds it
        """
        cdef Slot slot = self.claim(conn, endpoint)
        cdef Checkout checkout
        if slot is None:
            return None
        checkout = Checkout.__new__(Checkout)
        checkout.hold(self, slot, slot.s.lease)
        return checkout

    cdef Slot claim(self, conn, endpoint):
        """The same, of the bare slot. Whoever claims it sees to it that it is given back or discarded."""
        cdef slot_t* s
        cdef Slot slot = None
        self.before('checkin')
        s = <slot_t*>table_find(&self.pool.held, <PyObject*>conn)
        if s != NULL and s.ep.key == <PyObject*>endpoint:
            slot = <Slot>slot_object(s)
        else:
            check_hashable(endpoint)
            slot = self.holder(conn, endpoint)
        if slot is not None:
            self.take_back(slot, slot.s.lease, self.pool.epoch)
        return slot

    cdef inline slot_t* held_as(self, conn, endpoint) except? NULL:
        """Find a held connection by identity. Runs user code where the key is not the very same object."""
        cdef slot_t* s = <slot_t*>table_find(&self.pool.held, <PyObject*>conn)
        cdef Endpoint ep
        if s == NULL or s.ep.key == <PyObject*>endpoint:
            return s
        try:
            ep = self.find(endpoint)
        except TypeError:
            check_hashable(endpoint)
            raise
        return NULL if ep is None else table_find_of(&self.pool.held, <PyObject*>conn, &ep.e)

    cdef Slot holder(self, conn, endpoint):
        """Find who holds a connection: by identity, else by equality. None where a release is to do nothing."""
        cdef slot_t* s = self.held_as(conn, endpoint)
        cdef Endpoint ep
        cdef Slot slot
        if s != NULL:
            return <Slot>slot_object(s)
        ep = self.find(endpoint)
        slot = None if ep is None else self.equal_holder(conn, ep)
        if slot is not None:
            return slot
        if self.pool.closed or table_find(&self.pool.inherited, <PyObject*>conn) != NULL:
            return None
        raise ConnectionNotAcquiredError(
            f'this connection is not acquired for endpoint {describe(endpoint)}: it is foreign, of another endpoint, '
            f'or was released already')

    cdef Slot equal_holder(self, conn, Endpoint ep):
        """A caller may have rebuilt its connection, say a (reader, writer) tuple. Runs user code: ``__eq__``."""
        cdef list slots = []
        cdef ring_t* node
        cdef Slot slot
        node = ep.e.used.next
        while node != &ep.e.used:
            slots.append(<Slot>slot_object(slot_in_endpoint(node)))
            node = node.next
        for slot in slots:
            if slot.s.state == USED and slot.conn == conn and slot.s.state == USED:
                return slot
        return None

    cdef int take_back(self, Slot slot, uint64_t lease, uint64_t epoch) except -1:
        cdef bint ours
        gcp_lock(&self.mutex)
        ours = epoch == self.pool.epoch and begin_release(&self.pool, &slot.s, lease)
        gcp_unlock(&self.mutex)
        if not ours:
            raise ConnectionNotAcquiredError(
                f'this connection of endpoint {describe(slot.endpoint)} was released already')
        return 0

    def give_back(self, Checkout checkout not None):
        """End a release (or an acquire that came too late): to the line, to the idle, or to the victims."""
        cdef double now
        self.before('give_back')
        now = self.now()
        gcp_lock(&self.mutex)
        if checkout.current():
            end_release(&self.pool, &checkout.slot.s, now)
        gcp_unlock(&self.mutex)
        checkout.end()
        self.after()

    def discard(self, Checkout checkout not None, str reason):
        """Take a connection that somebody holds away for disposal."""
        cdef int why = REASONS.index(reason)
        cdef double now
        self.before('discard')
        now = self.now()
        gcp_lock(&self.mutex)
        self.pool.now = now
        if checkout.current():
            discard_slot(&self.pool, &checkout.slot.s, why)
        gcp_unlock(&self.mutex)
        checkout.end()
        self.after()

    # --- disposal, expiry ---

    cpdef Victim victim(self):
        """Take the next victim, or None."""
        cdef slot_t* s
        cdef Victim victim = None
        self.before('victim')
        if not ring_empty(&self.pool.victims):
            victim = Victim.__new__(Victim)
            gcp_lock(&self.mutex)
            s = take_victim(&self.pool)
            if s == NULL:
                gcp_unlock(&self.mutex)
                return None
            victim.slot = <Slot>slot_object(s)
            gcp_unlock(&self.mutex)
            victim.core = self
            victim.epoch = self.pool.epoch
        return victim

    cdef bint concern_only(self, endpoint) except -1:
        """Whether all victims are the business of whoever uses an endpoint: of that endpoint, and nobody else's
        place."""
        cdef ring_t* node = self.pool.victims.next
        cdef endpoint_t* e
        cdef Endpoint ep
        if node == &self.pool.victims:
            return False
        e = slot_in_pool(node).ep
        if e.key != <PyObject*>endpoint:
            ep = self.find(endpoint)
            if ep is None or &ep.e != e:
                return False
        node = self.pool.victims.next
        while node != &self.pool.victims:
            if slot_in_pool(node).ep != e or slot_in_pool(node).reserved_for != NULL:
                return False
            node = node.next
        return True

    def spare(self, Victim victim not None):
        """Take back a victim whose disposal was not begun: a signal came first."""
        cdef slot_t* s = &victim.slot.s
        self.before('spare')
        gcp_lock(&self.mutex)
        if victim.epoch == self.pool.epoch and s.state == DISPOSING and not victim.started and not victim.done:
            victim.done = True
            ring_insert(&self.pool.victims, &s.in_pool)
            self.pool.wake_collector = True
        gcp_unlock(&self.mutex)
        self.request_drain(s.ep)
        self.after()

    def disposed(self, Victim victim not None):
        """A victim is gone, well or badly. Told twice, it counts once."""
        self.before('disposed')
        victim.done = True
        if victim.epoch == self.pool.epoch:
            self.finish_disposal(victim.slot, self.now())
        self.after()

    cdef int finish_disposal(self, Slot slot, double now) except -1:
        cdef bint gone = False
        gcp_lock(&self.mutex)
        self.pool.now = now
        if slot.s.state == DISPOSING:
            end_disposal(&self.pool, &slot.s)
            slot.s.ep = NULL
            gone = True
        gcp_unlock(&self.mutex)
        if gone:
            slot.s.conn = NULL
            slot.conn = None    # its finalizer runs here, before anybody is told that it is gone
            Py_DECREF(slot)     # the endpoint's
        return 0

    def overdue(self, Victim victim not None):
        """A disposal takes long: whoever was reserved its place may be served otherwise."""
        cdef double now
        self.before('overdue')
        now = self.now()
        gcp_lock(&self.mutex)
        self.pool.now = now
        if victim.epoch == self.pool.epoch:
            mark_overdue(&self.pool, &victim.slot.s)
        gcp_unlock(&self.mutex)
        self.after()

    def collect(self, Py_ssize_t limit):
        """Make up to `limit` expired idle connections victims, in expiry order. Returns how many."""
        cdef Py_ssize_t n
        cdef double now
        self.before('collect')
        now = self.now()
        gcp_lock(&self.mutex)
        n = collect_expired(&self.pool, now, limit)
        find_leaks(&self.pool)
        gcp_unlock(&self.mutex)
        self.after()
        return n

    def next_expiry(self):
        """Return when the next connection may expire, by the core's clock (``inf``: none), and remember it as the time
        when the collector will look again: an earlier one, from now on, pokes it."""
        cdef double when
        when = self.now()
        gcp_lock(&self.mutex)
        next_due(&self.pool, &when)
        self.pool.collector_wakes_at = when
        gcp_unlock(&self.mutex)
        return when

    cdef inline bint expiry_is_due(self, double now) noexcept nogil:
        """Whether something idle may have expired."""
        cdef pool_t* pool = &self.pool
        if now < pool.next_expiry:
            return False
        pool.next_expiry = INFINITY
        if not ring_empty(&pool.idle_extras):
            pool.next_expiry = slot_in_pool(pool.idle_extras.next).since + pool.idle_timeout
        if pool.due.n > 0:
            pool.next_expiry = min(pool.next_expiry, pool.due.items[0].expires)
        return now >= pool.next_expiry

    # --- closing ---

    def close(self):
        """Close: waiters are turned away, idle connections become victims, used ones will when they come back."""
        cdef double now
        self.before('close')
        now = self.now()
        gcp_lock(&self.mutex)
        self.pool.now = now
        close_pool(&self.pool)
        gcp_unlock(&self.mutex)
        self.after()

    def force(self):
        """Make victims of the connections that are still used."""
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
    def idle(self): return self.pool.idle

    @property
    def used(self): return self.pool.used

    @property
    def creating(self): return self.pool.creating

    @property
    def disposing(self): return self.pool.disposing

    @property
    def waiting(self): return self.pool.waiting

    @property
    def closed(self): return self.pool.closed

    @property
    def has_victims(self): return not ring_empty(&self.pool.victims)

    def endpoint_size(self, endpoint, acquired=None):
        """Count an endpoint's connections: used ones, idle ones, or all places taken."""
        cdef Endpoint ep
        if acquired is not None and not isinstance(acquired, bool):
            raise TypeError(f'acquired must be True, False or None, not {type(acquired).__name__}: {acquired!r}')
        check_hashable(endpoint)
        ep = self.find(endpoint)
        if ep is None:
            return 0
        if acquired is None:
            return taken(&ep.e) - ep.e.reserved
        return ep.e.n_used if acquired else ep.e.n_base + ep.e.n_extra

    def snapshot(self):
        """Return one consistent snapshot as plain values: ``(total, [(endpoint, counts), ...])``."""
        cdef list endpoints = []
        cdef metrics_t metrics
        cdef ages_t oldest
        cdef double now
        cdef pool_t* pool = &self.pool
        cdef Py_ssize_t room = 0, n = 0
        cdef counts_t* copies = NULL
        cdef counts_t total
        cdef ring_t* node
        cdef Py_ssize_t i
        cdef PyObject* key
        while True:
            room = pool.n_endpoints + 8
            free(copies)
            copies = <counts_t*>malloc(<size_t>room * sizeof(counts_t))
            if copies == NULL:
                raise MemoryError
            now = self.now()
            gcp_lock(&self.mutex)
            if pool.n_endpoints <= room:
                break
            gcp_unlock(&self.mutex)
        pool.now = now
        find_leaks(pool)
        copy_total(pool, &total)
        metrics = pool.metrics
        oldest = oldest_of(pool)
        node = pool.endpoints.next
        while node != &pool.endpoints:
            copy_counts(endpoint_link(node), &copies[n])
            Py_INCREF(<object>copies[n].key)
            add_counters(&total.counters, &copies[n].counters)
            n += 1
            node = node.next
        gcp_unlock(&self.mutex)
        try:
            for i in range(n):
                endpoints.append((<object>copies[i].key, counts_of(&copies[i])))
            return total_of(
                &total, &metrics, max(0.0, now - oldest.oldest_waiter), max(0.0, now - oldest.oldest_checkout),
            ), endpoints
        finally:
            for i in range(n):
                key = copies[i].key
                Py_DECREF(<object>key)
            free(copies)

    # --- fork ---

    cdef int reset_after_fork(self) except -1:
        """In a forked child: empty, working. The parent's connections are neither used nor finalized here: many
        drivers' finalizers would say goodbye to a server that the parent is still talking to."""
        cdef pool_t* pool = &self.pool
        cdef table_t inherited = pool.held
        gcp_mutex_init(&self.mutex)
        if pool.inherited.items == NULL:
            pool.inherited = inherited
            pool.held.items = NULL
        elif pool.held.items != NULL:       # a child of a child: its grandparent's have no release any more
            free(pool.inherited.items)
            pool.inherited = inherited
            pool.held.items = NULL
        pool.held.mask = 0
        pool.held.n = 0
        self.drop_all(True)
        ring_init(&pool.idle_bases)
        ring_init(&pool.idle_extras)
        ring_init(&pool.victims)
        pool.idle = pool.used = pool.creating = pool.disposing = pool.waiting = pool.size = 0
        pool.due.n = 0
        pool.blocked.n = 0
        ring_init(&pool.reserving)
        pool.woken = NULL
        pool.empties = NULL
        pool.abandoned_slots = NULL
        pool.abandoned_waiters = NULL
        pool.abandoned_permits = False
        pool.wake_collector = False
        pool.collector_wakes_at = -INFINITY
        pool.epoch += 1
        memset(&pool.retired, 0, sizeof(counters_t))
        memset(&pool.metrics, 0, sizeof(metrics_t))
        self.endpoints = {}
        self.seed()
        if self.on_fork is not None:
            self.on_fork()
        return 0


core_traverse_attributes = (<PyTypeObject*>Core).tp_traverse
(<PyTypeObject*>Core).tp_traverse = core_traverse
core_clear_attributes = (<PyTypeObject*>Core).tp_clear
(<PyTypeObject*>Core).tp_clear = core_clear


def _after_fork():
    cdef ring_t* node = all_cores.ring.next
    while node != &all_cores.ring:
        (<Core>(<family_t*>node).core).reset_after_fork()
        node = node.next


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_after_fork)
