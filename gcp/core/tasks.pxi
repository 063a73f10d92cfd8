# The compiled half of the asyncio pool: the idle hit, whole, and the awaitable that `acquire` and `connection` return.

cdef enum lease_phase:
    FRESH, ACQUIRING, HELD, LEAVING, TIDYING, RETURNING_IT, OVER


cdef class AsyncioPool(BaseConnectionPool):
    """Serves idle hits itself and hands everything else to its Python half."""
    cdef object loop             # the event loop that the pool belongs to
    cdef uint64_t thread         # in which it runs, by the id of the thread's state: those are never used twice
    cdef bint tells              # whether it says by an attribute that it is running
    cdef object running_loop

    def _bind(self, running_loop):
        """Say how to find the running event loop."""
        self.running_loop = running_loop

    @property
    def _loop(self):
        """The event loop that the pool belongs to, or None before its first use."""
        return self.loop

    @_loop.setter
    def _loop(self, loop):
        self.loop = loop
        self.thread = PyThreadState_GetID(PyThreadState_Get())
        self.tells = getattr(loop, '_thread_id', None) is not None

    cdef inline int check_loop(self) except -1:
        """An event loop's connections are of no use to another. Asking asyncio costs two system calls on some versions
        of Python, so a loop that is known to be running in this very thread is taken at its word."""
        if self.tells and self.thread == PyThreadState_GetID(PyThreadState_Get()) and self.loop._thread_id is not None:
            return 0
        loop = self.running_loop()
        if loop is not self.loop:
            self._enter_loop(loop)
        return 0

    def acquire(self, endpoint, timeout=None):
        """Acquire a connection. The caller must release it.

        Returns an awaitable that is also an asynchronous context manager. It takes a connection when it is first
        driven, not before, and gives it back when it is cancelled, closed or dropped on the way.

        :param endpoint: what to connect to; any hashable
        :param timeout: seconds for everything: waiting, creating, checking; zero or less: do not wait in line;
                        ``inf``: no limit; ``None``: the pool's ``acquire_timeout``
        :raises AcquireTimeoutError: when it took longer
        :raises ConnectionPoolClosedError: when the pool is closed
        """
        cdef AsyncLease lease = AsyncLease.__new__(AsyncLease)
        lease.called = call_async_lease
        lease.pool = self
        lease.key = endpoint
        lease.timeout = timeout
        return lease

    def connection(self, endpoint, timeout=None):
        """Return an asynchronous context manager that acquires a connection and releases it at the end.

        :param endpoint: what to connect to; any hashable
        :param timeout: as for `acquire`
        """
        cdef AsyncLease lease = AsyncLease.__new__(AsyncLease)
        lease.called = call_async_lease
        lease.pool = self
        lease.key = endpoint
        lease.timeout = timeout
        return lease

    def release(self, conn, endpoint):
        """Release a connection. To be awaited; without hooks to run, it is done before.

        :param conn: what `acquire` returned, or something equal to it
        :param endpoint: what it was acquired for
        :raises ConnectionNotAcquiredError: when nobody holds it; nothing has changed then
        """
        cdef Checkout checkout
        cdef int outcome = NOT_HELD
        try:
            self.check_loop()
            if self.plain:
                outcome = self.put_back_named(conn, endpoint)
            if outcome == PUT_BACK:
                return FINISHED
            if outcome == PUT_BACK_AND_MORE:
                self._core.after()
                return self._tidy(endpoint) if self.untidy() else FINISHED
            checkout = self._core.checkin(conn, endpoint)
        except Exception as error:
            return self._fail(error)
        return FINISHED if checkout is None else self._release(checkout, None)


@cython.final
@cython.internal
cdef class Finished:
    """An awaitable with nothing to wait for. Stateless: one serves all."""

    def __await__(self):
        return self

    def __next__(self):
        raise StopIteration

    def send(self, value):
        raise StopIteration

    def throw(self, kind, value=None, traceback=None):
        raise kind if value is None else value

    def close(self):
        pass


cdef Finished FINISHED = Finished()


@cython.final
@cython.no_gc_clear
cdef class AsyncLease(Checkout):
    """One checkout, as an awaitable and as an asynchronous context manager. Single use.

    It is its own iterator, for entering and for leaving: an idle hit costs one object and no Python frame."""
    cdef called_t called
    cdef AsyncioPool pool
    cdef object key
    cdef object timeout
    cdef Ticket ticket
    cdef object coro             # the Python half at work
    cdef object body             # the error that leaves the block
    cdef int phase
    cdef bint entered

    # --- to be awaited, or driven as a coroutine ---

    @property
    def __name__(self):
        return 'acquire'

    @property
    def __qualname__(self):
        return f'{type(self.pool).__name__}.acquire'

    def __await__(self):
        return self

    def __next__(self):
        return self.send(None)

    def send(self, value):
        """Go on, as a coroutine does."""
        cdef PyObject* result = NULL
        cdef int status = self.advance(value, &result)
        outcome = <object>result
        Py_DECREF(outcome)
        if status == PYGEN_NEXT:
            return outcome
        raise StopIteration(outcome)

    def throw(self, kind, value=None, traceback=None):
        """Go on with an error, as a coroutine does."""
        error = kind if value is None else value
        if self.coro is None:
            if self.phase == LEAVING:
                self._core_of().discard(self, 'error')
            self.phase = OVER
            raise error
        try:
            return self.coro.throw(error)
        except StopIteration as stop:
            result = self.conclude(stop.value)
        except BaseException as trouble:
            self.fail(trouble)
            raise
        raise StopIteration(result)

    def close(self):
        """Stop, as a coroutine does; what was taken is given back."""
        coro = self.coro
        if coro is not None:
            coro.close()
            self.fail(GeneratorExit())
        elif self.phase == LEAVING:
            self._core_of().discard(self, 'error')
        if self.phase != HELD:
            self.phase = OVER

    cdef Core _core_of(self):
        return self.pool._core

    # --- to be entered and left ---

    def __aenter__(self):
        self.enter()
        return self

    def __aexit__(self, kind, error, traceback):
        return self.leave(error)

    cdef int enter(self) except -1:
        if self.phase != FRESH:
            raise RuntimeError('a lease can be entered only once: call connection() again')
        self.entered = True
        return 0

    cdef object leave(self, error):
        """Begin to release; return what to await. What no hook wants to see is released at once."""
        cdef AsyncioPool pool = self.pool
        cdef Core core = pool._core
        cdef int outcome = NOT_HELD
        if self.phase != HELD:
            raise RuntimeError('this lease was not entered, or was left already')
        if pool.plain and pool.thread == PyThreadState_GetID(PyThreadState_Get()):
            core.before('release')
            gcp_lock(&core.mutex)
            if self.holds():
                outcome = pool.put_back(&self.slot.s)
            gcp_unlock(&core.mutex)
        if outcome == NOT_HELD:
            self.body = error
            self.phase = LEAVING
            return self
        self.slot = None
        self.phase = OVER
        if outcome == PUT_BACK:
            return FINISHED
        self.phase = TIDYING
        core.after()
        return self

    # --- the machine ---

    cdef int advance(self, value, PyObject** result) except -1:
        """Go on until there is something to wait for (PYGEN_NEXT) or a result (PYGEN_RETURN)."""
        cdef slot_t* s
        if self.phase == FRESH:
            self.pool.check_loop()
            s = self.pool.hit(self.key, self.timeout, NULL) if self.pool.direct else NULL
            if s != NULL:
                if self.entered:
                    self.phase = HELD
                    self.hold(self.pool._core, <Slot>slot_object(s), s.lease)
                else:
                    self.phase = OVER
                result[0] = s.conn
                Py_INCREF(<object>s.conn)
                return PYGEN_RETURN
            self.ticket = self.pool.open_ticket(self.key, self.timeout)
            self.coro = self.pool._acquire(self.ticket)
            self.phase = ACQUIRING
        elif self.phase == LEAVING or self.phase == TIDYING:
            if not self.begin_release():
                result[0] = <PyObject*>None
                Py_INCREF(None)
                return PYGEN_RETURN
        elif self.coro is None:
            raise RuntimeError('cannot reuse an acquire that was awaited already')
        return self.drive(value, result)

    cdef int drive(self, value, PyObject** result) except -1:
        """Let the Python half go on."""
        cdef PySendResult status
        try:
            status = PyIter_Send(<PyObject*>self.coro, <PyObject*>value, result)
            if status == PYGEN_RETURN:
                outcome = <object>result[0]
                Py_DECREF(outcome)
                result[0] = NULL
                outcome = self.conclude(outcome)
                result[0] = <PyObject*>outcome
                Py_INCREF(outcome)
        except BaseException as error:
            self.fail(error)
            raise
        return status

    cdef object conclude(self, outcome):
        """The Python half is done."""
        cdef Ticket ticket = self.ticket
        self.coro = None
        if self.phase != ACQUIRING:
            self.phase = OVER
            return outcome
        conn = self.pool._core.finish(ticket)
        self.ticket = None
        if self.entered:
            self.phase = HELD
            self.hold(self.pool._core, ticket.slot, ticket.lease)
        else:
            self.phase = OVER
        ticket.end()
        return conn

    cdef int fail(self, error) except -1:
        """The Python half went wrong, or was stopped."""
        cdef Ticket ticket = self.ticket
        self.coro = None
        self.phase = OVER
        if ticket is not None:
            self.ticket = None
            self.pool._core.abandon(ticket, error)
            self.pool._tidy_aside(ticket)
        return 0

    cdef bint begin_release(self) except -1:
        """Make the Python half ready for a release, or for what one left to do; False where there is nothing."""
        cdef AsyncioPool pool = self.pool
        cdef Core core = pool._core
        cdef Checkout checkout
        cdef bint leaving = self.phase == LEAVING
        error = self.body
        self.body = None
        self.phase = OVER
        if not leaving:
            if not pool.untidy():
                return False
            self.coro = pool._tidy(self.key).__await__()
        elif not self.holds():
            told = error is not None or self.inherited or core.pool.closed
            self.slot = None
            if not told:
                where = describe(self.key)
                raise ConnectionNotAcquiredError(f'this connection of endpoint {where} was released already')
            return False
        else:
            pool.check_loop()
            core.before('release')
            core.take_back(self)
            checkout = Checkout.__new__(Checkout)
            checkout.hold(core, self.slot, self.lease)
            self.slot = None
            self.coro = pool._release(checkout, error).__await__()
        self.phase = RETURNING_IT
        return True

    def __dealloc__(self):
        cdef Ticket ticket = self.ticket
        if ticket is not None and not ticket.ended and ticket.epoch == ticket.core.pool.epoch:
            Py_INCREF(ticket)
            gcp_push(&ticket.core.pool.lost, &ticket.w, &ticket.w.next_orphan)
            ticket.core.nudge(NULL if ticket.ep is None else &ticket.ep.e)


cdef int advance_lease(PyObject* lease, PyObject* value, PyObject** result) except -1:
    return (<AsyncLease>lease).advance(<object>value, result)


cdef PyObject* call_async_lease(PyObject* self, PyObject** args, size_t n, PyObject* keywords) except NULL:
    """What `async with` does, without a method between."""
    cdef AsyncLease lease = <AsyncLease>self
    if purpose_of(n, keywords) == TO_ENTER:
        lease.enter()
        result = lease
    else:
        result = lease.leave(<object>args[1])
    Py_INCREF(result)
    return <PyObject*>result


gcp_advance = advance_lease
gcp_make_awaitable(AsyncLease, gcp_lease_send, gcp_lease_next)
gcp_make_awaitable(Finished, gcp_finished_send, gcp_finished_next)
cdef AsyncLease any_async_lease = AsyncLease.__new__(AsyncLease)
call_directly(AsyncLease, <char*>&any_async_lease.called - <char*><PyObject*>any_async_lease, ('__aenter__', '__aexit__'))
gcp_keep_async_leases(AsyncLease)
