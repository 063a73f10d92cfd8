# The compiled half of the threading pool: the idle hit, whole.

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
        cdef Ticket ticket
        cdef slot_t* s = self.hit(endpoint, timeout)
        if s != NULL:
            return <object>s.conn
        ticket = self.serve(endpoint, timeout)
        conn = ticket.slot.conn
        ticket.end()
        return conn

    def release(self, conn, endpoint):
        """Release a connection.

        :param conn: what `acquire` returned, or something equal to it
        :param endpoint: what it was acquired for
        :raises ConnectionNotAcquiredError: when nobody holds it; nothing has changed then
        """
        cdef Core core = self._core
        cdef double now = core.now()
        cdef slot_t* s
        core.before('release')
        s = core.held_as(conn, endpoint) if self.plain else NULL
        if s != NULL:
            gcp_lock(&core.mutex)
            step_give_back(&core.pool, s, now)
            gcp_unlock(&core.mutex)
            core.after()
            if self.untidy(now):
                self._tidy(endpoint)
            return
        self.return_named(conn, endpoint)

    def connection(self, endpoint, timeout=None):
        """Return a context manager that acquires a connection and releases it at the end.

        :param endpoint: what to connect to; any hashable
        :param timeout: as for `acquire`
        """
        cdef Lease lease = Lease.__new__(Lease)
        lease.pool = self
        lease.key = endpoint
        lease.timeout = timeout
        return lease

    cdef Ticket serve(self, endpoint, timeout):
        """Acquire by way of the Python half. Whatever goes wrong there, at any point, nothing is left behind."""
        cdef Ticket ticket = self.open_ticket(endpoint, timeout)
        try:
            self._acquire(ticket)
            self._core.finish(ticket)
        except BaseException as error:
            self._core.abandon(ticket, error)
            self._tidy_aside(ticket)
            raise
        return ticket

    cdef int return_named(self, conn, endpoint) except -1:
        cdef Checkout checkout = self._core.checkin(conn, endpoint)
        if checkout is not None:
            self._release(checkout, None)
        return 0


@cython.final
@cython.no_gc_clear
cdef class Lease(Checkout):
    """One checkout, as a context manager. Single use."""
    cdef ThreadingPool pool
    cdef object key
    cdef object timeout
    cdef bint entered

    def __enter__(self):
        cdef Ticket ticket
        cdef slot_t* s
        if self.entered:
            raise RuntimeError('a lease can be entered only once: call connection() again')
        self.entered = True
        s = self.pool.hit(self.key, self.timeout)
        if s != NULL:
            self.hold(self.pool._core, <Slot>s.self, s.lease)
        else:
            ticket = self.pool.serve(self.key, self.timeout)
            self.hold(self.pool._core, ticket.slot, ticket.lease)
            ticket.end()
        return self.slot.conn

    def __exit__(self, kind, error, traceback):
        cdef ThreadingPool pool = self.pool
        cdef Core core = pool._core
        cdef double now
        if self.slot is None:
            raise RuntimeError('this lease was not entered, or was left already')
        now = core.now()
        core.before('release')
        if not self.current() or self.slot.s.state != USED:
            self.leave_stale(error)
        elif pool.plain:
            gcp_lock(&core.mutex)
            step_give_back(&core.pool, &self.slot.s, now)
            gcp_unlock(&core.mutex)
            self.slot = None
            core.after()
            if pool.untidy(now):
                pool._tidy(self.key)
        else:
            core.take_back(self)
            pool._release(self, error)
        return False

    cdef int leave_stale(self, error) except -1:
        """The connection is not this lease's any more: inert in a forked child and after a close, else misuse."""
        cdef bint told = error is not None or self.inherited or self.core.pool.closed
        key = self.key
        self.slot = None
        if not told:
            raise ConnectionNotAcquiredError(f'this connection of endpoint {describe(key)} was released already')
        return 0
