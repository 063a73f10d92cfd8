# The compiled half of the threading pool: the idle hit, whole, with the hooks that look at it on its way out and in.

cdef enum finding:
    # of the hooks at an idle hit
    FINE, FOUND_DEAD, TOO_LATE


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
        cdef Checkout checkout
        cdef int outcome = self.put_back_named(conn, endpoint) if self.plain else NOT_HELD
        if outcome == PUT_BACK_AND_MORE:
            self.tidy_up(endpoint)
        elif outcome == NOT_HELD:
            checkout = self._core.checkin(conn, endpoint)
            if checkout is not None:
                self.bring_back(checkout, None)

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
        cdef double seconds = seconds_allowed(self.limit(timeout), self.acquire_timeout)
        cdef PyObject* hook = NULL
        cdef int found
        glance.deadline = glance.began + seconds
        try:
            found = self.look_over(slot, endpoint, glance, &hook)
        except BaseException as error:
            return self.recover(slot, glance, endpoint, timeout, <str>hook, False, error)
        if found == FINE and self.lend(s, glance):
            return s
        told = <str>hook if hook != NULL else None
        return self.recover(slot, glance, endpoint, timeout, told, found == FOUND_DEAD, None)

    cdef int look_over(self, Slot slot, endpoint, glance_t* glance, PyObject** hook) except -1:
        """Call the hooks, count and time them. While `hook` is the name of one, an error costs the connection."""
        cdef Core core = self._core
        cdef double began = glance.began
        cdef double now = began
        cdef int step = CHECKING
        cdef bint alive
        try:
            if self._check_aliveness is not None:
                hook[0] = <PyObject*>'check_aliveness'
                alive = self._check_aliveness(
                    endpoint, slot.conn, None if glance.deadline == INFINITY else max(0.0, glance.deadline - now))
                now = core.now()
                core.end_step(CHECKING, STEP_OK if alive else STEP_DEAD, now - began, endpoint, None)
                if not alive:
                    return FOUND_DEAD
            if self._on_acquire is not None and now < glance.deadline:
                hook[0] = <PyObject*>'on_acquire'
                step, began = ACQUIRING_HOOK, now
                self._on_acquire(endpoint, slot.conn)
                now = core.now()
                core.count_step(ACQUIRING_HOOK, STEP_OK, now - began)
        except BaseException as error:
            core.end_step(step, outcome_of(error), core.now() - began, endpoint, error)
            raise
        if now >= glance.deadline:
            return TOO_LATE
        hook[0] = NULL
        return FINE

    cdef bint lend(self, slot_t* s, glance_t* glance) except -1:
        """End an idle hit well, unless the pool was closed meanwhile."""
        cdef Core core = self._core
        cdef bint ours
        core.before('finish')
        gcp_lock(&core.mutex)
        ours = s.lease == glance.lease and s.state == USED and core.pool.epoch == glance.epoch and not core.pool.closed
        if ours:
            s.lent = True
            s.ep.counters.acquires[<int>HIT] += 1
        gcp_unlock(&core.mutex)
        return ours

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
        """Sleep until there is a verdict. It is still WAIT where there is more to be done than to sleep: the Python half
        sees to victims, and to who runs out of time."""
        cdef Core core = self._core
        cdef Bell bell
        cdef int verdict
        if ticket.nowait or core.pool.disposing:
            return WAIT
        bell = Bell()
        verdict = core.arm(ticket, bell)
        if verdict != WAIT or core.pool.disposing:
            return verdict
        if ticket.deadline < INFINITY:
            bell.wait(ticket.deadline - core.now())
        else:
            self._sleep(bell, INFINITY)
        return core.poll(ticket)

    cdef slot_t* recover(
        self, Slot slot, glance_t* glance, endpoint, timeout, str hook, bint dead, error,
    ) except NULL:
        """Go on from an idle hit of which a hook raised an error, or found it dead, or took too long."""
        cdef Ticket ticket = self._core.ticket(endpoint, self.limit(timeout), self.acquire_timeout)
        ticket.adopt(slot, glance)
        ticket.hook = hook
        try:
            if dead:
                self._replace(ticket)
            elif error is not None:
                self._blame(ticket, hook, error)
            elif hook is not None:
                self._check_deadline(ticket, hook)
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
        self._core.after()
        if self.untidy():
            self._tidy(endpoint)
        return 0

    cdef double call_on_release(self, Slot slot) except? -1:
        """Call the hook, count and time it. Returns what the clock says then."""
        cdef Core core = self._core
        cdef double began, now
        if core.traces_hits:
            with core.step('on_release', slot.endpoint):
                self._on_release(slot.endpoint, slot.conn)
            return core.now()
        began = core.now()
        try:
            self._on_release(slot.endpoint, slot.conn)
        except BaseException as error:
            core.end_step(RELEASING_HOOK, outcome_of(error), core.now() - began, slot.endpoint, error)
            raise
        now = core.now()
        core.count_step(RELEASING_HOOK, STEP_OK, now - began)
        return now

    cdef int bring_back(self, Checkout checkout, body) except -1:
        """Release by way of `on_release`."""
        cdef Core core = self._core
        cdef Slot slot = checkout.slot
        cdef double now
        if self._on_release is None:
            now = core.now()
        else:
            checkout.hook = 'on_release'
            try:
                now = self.call_on_release(slot)
            except BaseException as error:
                self._spoil(checkout, error, body)
                return 0
            checkout.hook = None
        core.before('give_back')
        gcp_lock(&core.mutex)
        if checkout.current():
            step_give_back(&core.pool, &slot.s, now)
        gcp_unlock(&core.mutex)
        checkout.end()
        self.tidy_up(slot.endpoint)
        return 0


@cython.final
@cython.no_gc_clear
cdef class Lease(Checkout):
    """One checkout, as a context manager. Single use."""
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
        cdef int outcome = NOT_HELD
        cdef bint ours
        if self.slot is None:
            raise RuntimeError('this lease was not entered, or was left already')
        core.before('release')
        gcp_lock(&core.mutex)
        ours = self.holds()
        if ours and pool.plain:
            outcome = pool.put_back(&self.slot.s)
        gcp_unlock(&core.mutex)
        if not ours:
            self.leave_stale(error)
        elif outcome == NOT_HELD:
            core.take_back(self)
            pool.bring_back(self, error)
        else:
            self.slot = None
            if outcome == PUT_BACK_AND_MORE:
                pool.tidy_up(self.key)
        return 0

    cdef int leave_stale(self, error) except -1:
        """The connection is not this lease's any more: inert in a forked child and after a close, else misuse."""
        cdef bint told = error is not None or self.inherited or self.core.pool.closed
        key = self.key
        self.slot = None
        if not told:
            raise ConnectionNotAcquiredError(f'this connection of endpoint {describe(key)} was released already')
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
