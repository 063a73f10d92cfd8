# The compiled half of the asyncio pool.

cdef class AsyncLease

cdef class AsyncioPool(BaseConnectionPool):
    """Serves idle hits itself and hands everything else to its Python half."""
    cdef object loop             # the event loop that the pool belongs to
    cdef uint64_t thread         # in which it runs, by the id of the thread's state: those are never used twice
    cdef bint tells              # whether it says by an attribute that it is running
    cdef object running_loop
    cdef object steps_of         # makes an iterator of an awaitable that is no coroutine
    cdef object begun            # makes what is to be awaited of an iterator that waits for something already

    def _bind(self, running_loop, steps_of, begun):
        """Say how to find the running event loop, and how to go on with what was begun."""
        self.running_loop = running_loop
        self.steps_of = steps_of
        self.begun = begun

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
        cdef Slot slot
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
            slot = self._core.claim(conn, endpoint)
        except Exception as error:
            return self._fail(error)
        return FINISHED if slot is None else self.bring_back(slot)

    cdef AsyncLease bring_back(self, Slot slot):
        """Return what to await for a release by way of `on_release`."""
        cdef AsyncLease lease = AsyncLease.__new__(AsyncLease)
        lease.pool = self
        lease.key = slot.endpoint
        lease.hold(self._core, slot, slot.s.lease)
        lease.phase = BRINGING
        return lease


@cython.final
@cython.internal
cdef class Alarm:
    """Wakes a task that waits in line."""
    cdef object future

    def __call__(self):
        if not self.future.done():
            self.future.set_result(None)


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
cdef object UNFINISHED = object()


cdef object first_step(awaitable, steps_of, begun, bint* waits):
    """Let what a hook returned run until it waits. Returns its result, or what is to be awaited of it then."""
    cdef PyObject* result = NULL
    cdef PySendResult status
    steps = awaitable if type(awaitable) is CoroutineType else steps_of(awaitable)
    status = PyIter_Send(<PyObject*>steps, <PyObject*>None, &result)
    outcome = <object>result
    Py_DECREF(outcome)
    waits[0] = status == PYGEN_NEXT
    if not waits[0]:
        return outcome
    return begun(awaitable.__await__() if steps is awaitable else steps, outcome)


cpdef begin_disposal(Victim victim, hook, steps_of, begun, origin=None):
    """Begin to dispose of a victim: call the manager's asynchronous `dispose`. What is over at once is counted, timed
    and traced, and the victim reported gone.

    :param hook: the manager's `dispose`
    :param steps_of: makes an iterator of an awaitable that is no coroutine
    :param begun: makes what is to be awaited of an iterator that waits for something already
    :param origin: as for `Core.hook_call`
    :return: None when it went well, what went wrong, or what is to be awaited; `Victim.conclude` is to be called then
    """
    cdef bint waits = False
    rest = error = None
    victim.begin(origin)
    try:
        rest = first_step(hook(victim.slot.endpoint, victim.slot.conn), steps_of, begun, &waits)
    except BaseException as e:
        error = e
    if waits:
        return rest
    victim.end(error)
    return error
