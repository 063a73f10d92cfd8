# The compiled half of the threading pool: the idle hit, whole, with the hooks that look at it on its way out and in.

cdef class ThreadingPool(BaseConnectionPool):
    """Serves idle hits itself and hands everything else to its Python half."""

    def acquire(self, endpoint, timeout=None):
        """Acquire a connection. The caller must release it.

        :param endpoint: what to connect to; any hashable
        :param timeout: seconds for everything: waiting, creating, checking; zero or less: do not wait in line;
                        ``inf``: no limit; ``None``: the pool's ``acquire_timeout``
        :raises AcquireTimeoutError: when it took longer
        :raises ConnectionPoolClosedError: when the pool is closed
        """
        return <object>self.take(endpoint, timeout).conn

    def release(self, conn, endpoint):
        """Release a connection.

        :param conn: what `acquire` returned, or something equal to it
        :param endpoint: what it was acquired for
        :raises ConnectionNotAcquiredError: when nobody holds it; nothing has changed then
        """
        cdef Slot slot
        cdef int outcome = self.put_back_named(conn, endpoint) if self.plain else NOT_HELD
        if outcome == PUT_BACK_AND_MORE:
            self.tidy_up(endpoint)
        elif outcome == NOT_HELD:
            slot = self._core.claim(conn, endpoint)
            if slot is not None:
                self.bring_back(slot, slot.s.lease, None)

    def connection(self, endpoint, timeout=None):
        """Return a context manager that acquires a connection and releases it at the end.

        :param endpoint: what to connect to; any hashable
        :param timeout: as for `acquire`
        """
        cdef Lease lease = Lease.__new__(Lease)
        lease.called = call_lease
        lease.pool = self
        lease.key = endpoint
        lease.timeout = timeout
        return lease

    # --- acquire ---

    cdef inline slot_t* take(self, endpoint, timeout) except NULL:
        """Check a connection out: an idle one, else whatever the Python half comes to."""
        cdef glance_t glance
        cdef slot_t* s = NULL
        if self.direct or not self._core.traces_hits:
            s = self.hit(endpoint, timeout, NULL if self.direct else &glance)
        if s == NULL:
            return self.serve(endpoint, timeout)
        if not self.direct:
            return self.present(s, &glance, endpoint, timeout)
        return s

    cdef slot_t* present(self, slot_t* s, glance_t* glance, endpoint, timeout) except NULL:
        """Let the hooks look at an idle hit. Where something is wrong with it, the Python half takes over."""
        cdef Slot slot = <Slot>slot_object(s)       # whatever a hook does, the record stays
        cdef int found
        glance.deadline = glance.began + seconds_allowed(self.limit(timeout), self.acquire_timeout)
        try:
            found = self.look_over(slot, endpoint, glance)
            if found == FINE and self.lend(s, glance):
                return s
        except BaseException as error:
            self._core.end_hook(glance, CALL_CANCELLED, endpoint, error)
            return self.recover(slot, glance, endpoint, timeout, False, error)
        return self.recover(slot, glance, endpoint, timeout, found == FOUND_DEAD, None)

    cdef int look_over(self, Slot slot, endpoint, glance_t* glance) except -1:
        """Call the hooks, count and time them."""
        cdef Core core = self._core
        cdef double now = glance.began
        cdef bint alive
        if self._check_aliveness is not None:
            glance.hook, glance.hook_began = HOOK_CHECK, now
            alive = self._check_aliveness(
                endpoint, slot.conn, None if glance.deadline == INFINITY else max(0.0, glance.deadline - now))
            if not alive:
                core.end_hook(glance, CALL_DEAD, endpoint, None)
                return FOUND_DEAD
            now = core.hook_went_well(glance)
        if self._on_acquire is not None and now < glance.deadline:
            glance.hook, glance.hook_began = HOOK_ON_ACQUIRE, now
            self._on_acquire(endpoint, slot.conn)
            now = core.hook_went_well(glance)
        if now >= glance.deadline:
            return TOO_LATE
        glance.hook = N_HOOKS
        return FINE

    cdef slot_t* serve(self, endpoint, timeout) except NULL:
        """Acquire by way of the Python half. Whatever goes wrong there, at any point, nothing is left behind."""
        cdef Ticket ticket = self.open_ticket(endpoint, timeout)
        cdef int verdict
        try:
            verdict = self._core.request(ticket)
            if verdict == WAIT:
                verdict = self.wait_in_line(ticket)
            if verdict != USE or not self.direct:
                self._serve(ticket, verdict)
            self._core.finish(ticket)
        except BaseException as error:
            self.give_up(ticket, error)
            raise
        return self.slot_of(ticket)

    cdef int wait_in_line(self, Ticket ticket) except -1:
        """Sleep until there is a verdict. It is still WAIT where there is more to be done than to sleep: the Python
        half sees to victims, and to who runs out of time."""
        cdef Core core = self._core
        cdef int verdict
        if ticket.nowait or core.pool.disposing:
            return WAIT
        event = self._new_event()
        verdict = core.arm(ticket, event)
        if verdict == WAIT and not core.pool.disposing:
            if type(event) is Event and ticket.deadline < INFINITY:
                (<Event>event).wait(ticket.deadline - core.now())
            else:
                self._sleep(event, ticket.deadline - core.now())
            verdict = core.poll(ticket)
        return verdict

    cdef slot_t* recover(self, Slot slot, glance_t* glance, endpoint, timeout, bint dead, error) except NULL:
        """Go on from an idle hit of which a hook raised an error, or found it dead, or took too long."""
        cdef Ticket ticket = self._core.ticket(endpoint, self.limit(timeout), self.acquire_timeout)
        ticket.adopt(slot, glance)
        try:
            if dead:
                self._replace(ticket)
            elif error is not None:
                self._blame(ticket, ticket.hook, error)
            elif ticket.hook is not None:
                self._check_deadline(ticket, ticket.hook)
            self._core.finish(ticket)
        except BaseException as trouble:
            self.give_up(ticket, trouble)
            raise
        return self.slot_of(ticket)

    cdef slot_t* slot_of(self, Ticket ticket) except NULL:
        """The slot of a ticket that ended well. The pool owns it."""
        cdef slot_t* s = &ticket.slot.s
        ticket.end()
        return s

    cdef int give_up(self, Ticket ticket, error) except -1:
        self._core.abandon(ticket, error)
        self._tidy_aside(ticket)
        return 0

    # --- release ---

    cdef int tidy_up(self, endpoint) except -1:
        """Do what a release has left to do."""
        cdef Core core = self._core
        core.after()
        if not self.untidy():
            return 0
        if self.collects:
            core.collect(self._batch_size())
        if self._dispose is not None and core.concern_only(endpoint):
            self.dispose_here()
        elif not ring_empty(&core.pool.victims):
            self._dispose_victims(endpoint)
        return 0

    cdef int dispose_here(self) except -1:
        """Dispose of the victims of the caller's own endpoint: they are its own business, however long it takes."""
        cdef Batch batch = gather(self._core)
        return 0 if batch is None else dispose_here(batch, self._dispose, self._report)

    cdef int bring_back(self, Slot slot, uint64_t lease, body) except -1:
        """Release by way of `on_release`."""
        cdef Core core = self._core
        cdef glance_t glance
        cdef double now
        glance.epoch = core.pool.epoch
        glance.lease = lease
        try:
            now = self.call_on_release(slot, &glance)
        except BaseException as error:
            self._spoil(checkout_of(core, slot, &glance, 'on_release'), error, body)
            return 0
        if self.give_back(slot, &glance, now) == PUT_BACK_AND_MORE:
            self.tidy_up(slot.endpoint)
        return 0

    cdef double call_on_release(self, Slot slot, glance_t* glance) except? -1:
        """Call the hook, count and time it. Returns what the clock says then."""
        cdef Core core = self._core
        if self._on_release is None:
            return core.now()
        if core.traces_hits:
            with core.hook_call('on_release', slot.endpoint):
                self._on_release(slot.endpoint, slot.conn)
            return core.now()
        glance.hook, glance.hook_began = HOOK_ON_RELEASE, core.now()
        try:
            self._on_release(slot.endpoint, slot.conn)
        except BaseException as error:
            core.end_hook(glance, CALL_CANCELLED, slot.endpoint, error)
            raise
        return core.hook_went_well(glance)


@cython.final
@cython.no_gc_clear
cdef class Lease(Checkout):
    """One checkout, as a context manager. Single use. It is what `with` calls, too: see `Itself`."""
    cdef called_t called
    cdef ThreadingPool pool
    cdef object key
    cdef object timeout
    cdef bint entered

    def __enter__(self):
        return self.enter()

    def __exit__(self, kind, error, traceback):
        self.leave(error)
        return False

    cdef object enter(self):
        cdef slot_t* s
        if self.entered:
            raise RuntimeError('a lease can be entered only once: call connection() again')
        self.entered = True
        s = self.pool.take(self.key, self.timeout)
        self.hold(self.pool._core, <Slot>slot_object(s), s.lease)
        return self.slot.conn

    cdef int leave(self, error) except -1:
        cdef ThreadingPool pool = self.pool
        cdef Core core = self.core
        cdef Slot slot
        cdef int outcome = NOT_HELD
        cdef bint ours
        if self.slot is None:
            raise RuntimeError('this lease was not entered, or was left already')
        core.before('release')
        gcp_lock(&core.mutex)
        ours = self.holds()
        if ours and pool.plain:
            outcome = pool.put_back(&self.slot.s, gcp_monotonic())
        gcp_unlock(&core.mutex)
        if not ours:
            self.leave_stale(self.key, error)
        elif outcome == NOT_HELD:
            slot = self.slot
            core.take_back(slot, self.lease, self.epoch)
            self.slot = None
            pool.bring_back(slot, self.lease, error)
        else:
            self.slot = None
            if outcome == PUT_BACK_AND_MORE:
                pool.tidy_up(self.key)
        return 0


cdef PyObject* call_lease(PyObject* self, PyObject** args, size_t n, PyObject* keywords) except NULL:
    """What `with` does, without a method between."""
    cdef Lease lease = <Lease>self
    cdef object result = False
    if purpose_of(n, keywords) == TO_ENTER:
        result = lease.enter()
    else:
        lease.leave(<object>args[1])
    Py_INCREF(result)
    return <PyObject*>result


cdef Lease any_lease = Lease.__new__(Lease)
call_directly(Lease, <char*>&any_lease.called - <char*><PyObject*>any_lease, ('__enter__', '__exit__'))
gcp_keep_leases(Lease)
