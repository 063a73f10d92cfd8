# The compiled half of the asyncio pool: makes leases, and releases what no hook wants to see. The awaitable itself is
# in async_lease.

from cpython.exc cimport PyErr_WarnEx
from cpython.version cimport PY_VERSION_HEX

from gcp.core.platform cimport (
    GCP_NO_MARK, GCP_TASK_IN_THREAD, PYGEN_NEXT, PYGEN_RETURN, PyIter_Send, PySendResult, PyThreadState_Get,
    PyThreadState_GetID, gcp_drop_found, gcp_mark_init, gcp_mark_of, gcp_running_mark, gcp_task_in_thread,
    look_up_quietly,
)
from gcp.core.state cimport HOOK_DISPOSE, slot_t


cdef class AsyncLease

gcp_mark_init()


cdef class AsyncPool(BaseConnectionPool):
    """Serves idle hits without a Python frame, with and without hooks that suspend."""
    cdef object loop             # the event loop that the pool belongs to
    cdef uint64_t thread         # in which it runs, by the id of the thread's state: those are never used twice
    cdef uint64_t mark           # of the time for which it is known to be the one that runs
    cdef bint is_marked          # whether asyncio notes the loop that runs where a mark comes from
    cdef public object _release_later   # a coroutine function: does what `release` does when it is driven
    cdef object running_loop
    cdef object iterate          # makes an iterator of an awaitable that is no coroutine
    cdef object begun            # makes what is to be awaited of an iterator that has suspended already
    cdef object drain_request    # makes what a finalizer calls, so that the loop reclaims what was abandoned
    cdef object current_task     # returns the task that runs in a loop
    cdef object current_tasks    # asyncio's own table of those, to be read up to Python 3.13; None: it is to be asked
    cdef bint task_in_thread     # whether asyncio keeps it in the state of the thread

    def _bind(self, running_loop, iterate, begun, drain_request, tasks):
        """Say how to find the running event loop and its task, how to await what was begun, and what finalizers call.

        :param tasks: the module `asyncio.tasks`
        """
        self.running_loop = running_loop
        self.is_marked = isinstance(running_loop, BuiltinFunctionType)
        self.mark = GCP_NO_MARK
        self.iterate = iterate
        self.begun = begun
        self.drain_request = drain_request
        self.current_task = tasks.current_task
        self.current_tasks = getattr(tasks, '_current_tasks', None) if PY_VERSION_HEX < 0x030E0000 else None

    def _attach_loop(self, loop):
        """Make the first event loop the pool's own; refuse any other."""
        if self.loop is not None and self.loop is not loop:
            owner = 'an event loop that is closed' if self.loop.is_closed() else 'another event loop'
            raise RuntimeError(
                f'{self.name} belongs to {owner}, in which it was first used; its connections are of no use here: '
                f'make one pool for each event loop')
        self._loop = loop
        self._core.on_abandoned = self.drain_request(self)
        collector = collector_of(self)
        if collector is not None:
            self._core.wake_collector = collector.look

    @property
    def _loop(self):
        """The event loop that the pool belongs to, or None before its first use."""
        return self.loop

    @_loop.setter
    def _loop(self, loop):
        self.loop = loop
        self.thread = PyThreadState_GetID(PyThreadState_Get())
        self.mark = GCP_NO_MARK

    cdef inline bint is_at_home(self) noexcept:
        """Whether the pool's event loop is known to run here. Asking asyncio costs two system calls on some versions of
        Python, so it is asked once for each time that a loop begins to run, or only once (from 3.13 on)."""
        return gcp_running_mark() == self.mark

    cdef inline int check_loop(self) except -1:
        """Refuse another event loop: connections of one are of no use to another."""
        if not self.is_at_home():
            self.ask_for_loop()
        return 0

    cdef int ask_for_loop(self) except -1:
        loop = self.running_loop()
        if loop is not self.loop:
            self._attach_loop(loop)
        self.mark = gcp_mark_of(loop) if self.is_marked else GCP_NO_MARK
        if self.tracks and GCP_TASK_IN_THREAD:
            task = self.current_task(loop)
            self.task_in_thread = gcp_task_in_thread() == <PyObject*>task
        return 0

    cdef PyObject* running_task(self) noexcept:
        cdef PyObject* found
        if self.task_in_thread:
            return gcp_task_in_thread()
        if self.current_tasks is not None:
            found = look_up_quietly(self.current_tasks, self.loop)
            gcp_drop_found(found)       # the loop keeps it while it runs
            return found
        try:
            task = self.current_task(self.loop)
        except Exception:
            return NULL
        return NULL if task is None else <PyObject*>task

    cdef bint can_leave_now(self):
        """Whether a lease can be left here: in the pool's thread, also when its loop has ended; in no other loop."""
        if self.thread != PyThreadState_GetID(PyThreadState_Get()):
            return False
        try:
            return self.running_loop() is self.loop
        except RuntimeError:
            return True

    cdef bint can_release_now(self):
        """Whether the pool's event loop runs here; otherwise a release is done when it is driven."""
        try:
            self.check_loop()
        except RuntimeError:
            return False
        return True

    cdef object new_event(self):
        cdef FutureEvent event = FutureEvent.__new__(FutureEvent)
        event.future = self.loop.create_future()
        return event

    def acquire(self, endpoint, timeout=None, tag=None, priority=0):
        """Acquire a connection. The caller must release it.

        Returns an awaitable that is also an asynchronous context manager. It takes a connection when it is first
        awaited, not before, and gives it back if it is cancelled, closed or dropped on the way.

        :param endpoint: what to connect to; any hashable
        :param timeout: seconds for everything: waiting, creating, checking; zero or less: do not wait; ``inf``: no
                        limit; ``None``: the pool's ``acquire_timeout``
        :param tag: a word for `holders` that says what the connection is used for, of at most 64 characters
        :param priority: a whole number: of acquires that wait for the same endpoint, those with a higher one are served
                         first
        :raises AcquireTimeoutError: if it took longer
        :raises ConnectionPoolClosedError: if the pool is closed
        """
        cdef int first = check_priority(priority)
        return tagged(self.new_lease(<PyObject*>endpoint, timeout, True), tag, first)

    def connection(self, endpoint, timeout=None, tag=None, priority=0):
        """Return an asynchronous context manager that acquires a connection and releases it at the end.

        :param endpoint: what to connect to; any hashable
        :param timeout: as for `acquire`
        :param tag: as for `acquire`
        :param priority: as for `acquire`
        """
        cdef int first = check_priority(priority)
        return tagged(self.new_lease(<PyObject*>endpoint, timeout, False), tag, first)

    def release(self, conn, endpoint, error=None):
        """Release a connection. To be awaited; without hooks to run, it is done before, where the pool's loop runs.

        :param conn: what `acquire` returned, or something equal to it
        :param endpoint: what it was acquired for
        :param error: what went wrong while it was held: the manager's `clean_after_error` decides whether the
                      connection is used again
        :raises ConnectionNotAcquiredError: if it is not held; nothing has changed then
        """
        return self.release_soon(<PyObject*>conn, <PyObject*>endpoint, error)

    cdef inline AsyncLease new_lease(self, PyObject* key, timeout, bint by_name):
        cdef AsyncLease lease = AsyncLease.__new__(AsyncLease)
        if GCP_BINDS_METHODS:
            lease.called = gcp_async_lease_call
        lease.by_name = by_name
        lease.pool = self
        lease.key = <object>key
        lease.timeout = timeout
        return lease

    cdef inline object release_soon(self, PyObject* conn, PyObject* key, error):
        """Release what no hook wants to see; return what is to be awaited."""
        cdef Slot slot
        cdef uint64_t lease = 0
        cdef int outcome = NOT_HELD
        try:
            if not self.is_at_home() and not self.can_release_now():
                return self._release_later(self, <object>conn, <object>key, error)
            if self.plain and error is None:
                outcome = self.put_back_named(conn, key)
            if outcome == PUT_BACK:
                return new_released(self)
            if outcome == PUT_BACK_AND_MORE:
                self._core.after()
                return self._drive(cleanup_after(self, <object>key)) if self.has_garbage() else new_released(self)
            slot = claim(self._core, <object>conn, <object>key, &lease)
        except Exception as trouble:
            return failed_awaitable(self, trouble)
        return new_released(self) if slot is None else self.release_slot(slot, lease, error)

    cdef slot_t* begin_for(self, AsyncLease lease, delivery_t* to) except? NULL:
        """Begin an acquire that is no idle hit. A method of the pool, so that the compiler keeps it out of the hit."""
        return lease.begin(self.open_acquire(lease.key, lease.timeout, lease.priority), None, to)

    cdef bint begin_with_priority(self, AsyncLease lease, PyObject** result) except -1:
        """Begin an acquire with a priority: even an idle connection is left to the machine, which knows of it. Returns
        whether it has ended; if not, there is something to be awaited."""
        cdef delivery_t to
        cdef slot_t* s
        self.check_loop()
        begin_delivery(&to)
        s = self.begin_for(lease, &to)
        if s != NULL:
            give(result, lease.take_over(s, &to))
        return s != NULL

    cdef AsyncLease release_slot(self, Slot slot, uint64_t number, error):
        """Return what to await for a release by way of `clean_after_error` and `on_release`."""
        cdef AsyncLease lease = AsyncLease.__new__(AsyncLease)
        lease.pool = self
        lease.key = slot.endpoint
        lease.hold(self._core, slot, number)
        lease.by_name = True
        lease.body = error
        lease.phase = RELEASING_BY_NAME
        return lease


cdef inline void give(PyObject** result, value) noexcept:
    """Pass a result on, with a reference."""
    Py_INCREF(value)
    result[0] = <PyObject*>value


cdef inline AsyncLease tagged(AsyncLease lease, tag, int priority):
    lease.priority = priority
    if priority:
        lease.phase = FRESH_WITH_PRIORITY
    if tag is not None:
        lease.by_name, by_name = False, lease.by_name
        lease.tag = check_tag(tag)
        lease.by_name = by_name
    return lease


@cython.final
@cython.no_gc_clear
cdef class FutureEvent:
    """Ends a task's wait: its future's result says whether it was set, or its time ran out."""
    cdef readonly object future

    def __init__(self, future):
        self.future = future

    def __call__(self):
        if not self.future.done():
            self.future.set_result(True)


def time_out(future):
    """End a wait without success."""
    if not future.done():
        future.set_result(False)


@cython.final
@cython.internal
cdef class Finished:
    """An awaitable that has ended. Stateless: one serves all."""

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


cdef int warn_of_unawaited(AsyncPool pool, str method) except -1:
    """Warn of what was dropped without being awaited, as the interpreter does for coroutines."""
    message = f"coroutine '{type(pool).__name__}.{method}' was never awaited".encode()
    return PyErr_WarnEx(RuntimeWarning, message, 1)


@cython.final
@cython.internal
@cython.freelist(16)
@cython.no_gc
cdef class Released:
    """A release that has ended, and is still to be awaited."""
    cdef AsyncPool pool
    cdef bint awaited

    def __await__(self):
        return self

    def __next__(self):
        self.awaited = True
        raise StopIteration

    def send(self, value):
        self.awaited = True
        raise StopIteration

    def throw(self, kind, value=None, traceback=None):
        self.awaited = True
        raise kind if value is None else value

    def close(self):
        self.awaited = True

    def __dealloc__(self):
        if not self.awaited:
            warn_of_unawaited(self.pool, 'release')


cdef inline Released new_released(AsyncPool pool):
    cdef Released released = Released.__new__(Released)
    released.pool = pool
    return released


cdef PySendResult send_released(PyObject* released, PyObject* value, PyObject** result) noexcept:
    (<Released>released).awaited = True
    result[0] = <PyObject*>None
    Py_INCREF(None)
    return PYGEN_RETURN


cdef PyObject* next_released(PyObject* released) noexcept:
    (<Released>released).awaited = True
    return NULL


@cython.final
@cython.internal
@cython.no_gc_clear
cdef class Failed:
    """A release that has raised an error."""
    cdef AsyncPool pool
    cdef object error
    cdef bint awaited

    def __await__(self):
        return self

    def __next__(self):
        self.awaited = True
        raise self.error

    def send(self, value):
        self.awaited = True
        raise self.error

    def throw(self, kind, value=None, traceback=None):
        self.awaited = True
        raise kind if value is None else value

    def close(self):
        self.awaited = True

    def __dealloc__(self):
        if not self.awaited:
            warn_of_unawaited(self.pool, 'release')


cdef Failed failed_awaitable(AsyncPool pool, error):
    cdef Failed failed = Failed.__new__(Failed)
    failed.pool = pool
    failed.error = error
    if isinstance(error, StopIteration):    # of a key's __hash__, say: it must not be taken for the end (PEP 479)
        failed.error = RuntimeError('an awaited release raised StopIteration')
        failed.error.__cause__ = error
    return failed


# --- hooks that may suspend ---

cdef object run_until_it_suspends(awaitable, iterate, begun, bint* suspended, AsyncPool pool, int hook):
    """Run what a hook returned until it suspends. Returns its result, or what is to be awaited of it then."""
    cdef PyObject* result = NULL
    cdef PySendResult status
    if type(awaitable) is CoroutineType:
        steps = awaitable
    else:
        if pool is not None:
            check_awaitable(pool._manager, hook, awaitable)
        steps = iterate(awaitable)
    status = PyIter_Send(<PyObject*>steps, <PyObject*>None, &result)
    outcome = <object>result
    Py_DECREF(outcome)
    suspended[0] = status == PYGEN_NEXT
    if not suspended[0]:
        return outcome
    return begun(awaitable.__await__() if steps is awaitable else steps, outcome)


@cython.final
@cython.internal
cdef class Creation:
    """Awaits a creation, and keeps what it returns where no failure between here and its booking loses it. Not a
    coroutine: those allocate a StopIteration for what they await before anyone has its result."""
    cdef Acquire acquire
    cdef Job job            # in the background: there is no acquire
    cdef object steps

    def __await__(self):
        return self

    def __next__(self):
        return self.send(None)

    def send(self, value):
        cdef PyObject* result = NULL
        cdef PySendResult status = PyIter_Send(<PyObject*>self.steps, <PyObject*>value, &result)
        outcome = <object>result
        Py_DECREF(outcome)
        if status == PYGEN_NEXT:
            return outcome
        self.keep(outcome)
        raise StopIteration(outcome)

    def throw(self, kind, value=None, traceback=None):
        error = kind if value is None else value
        if not hasattr(self.steps, 'throw'):
            raise error
        try:
            return self.steps.throw(error)
        except StopIteration as stop:
            self.keep(stop.value)
            raise

    cdef inline void keep(self, conn):
        if self.job is None:
            self.acquire.newborn = conn
        else:
            self.job.newborn = conn

    def close(self):
        if hasattr(self.steps, 'close'):
            self.steps.close()


cdef Creation new_creation(Acquire acquire, awaitable):
    cdef Creation creation = Creation.__new__(Creation)
    creation.acquire = acquire
    creation.steps = awaitable if type(awaitable) is CoroutineType else awaitable.__await__()
    return creation


cdef Creation new_job_creation(Job job, awaitable):
    cdef Creation creation = Creation.__new__(Creation)
    creation.job = job
    creation.steps = awaitable if type(awaitable) is CoroutineType else awaitable.__await__()
    return creation


cpdef begin_disposal(Victim victim, hook, iterate, begun, origin=None, report=None):
    """Begin to dispose of a victim: call the manager's asynchronous `dispose`. If it does not suspend, it is counted,
    timed and traced, its error is reported, and the victim reported gone.

    :param hook: the manager's `dispose`
    :param iterate: makes an iterator of an awaitable that is no coroutine
    :param begun: makes what is to be awaited of an iterator that has suspended
    :param origin: as for `new_hook_call`
    :param report: as for `Victim.end`
    :return: None if it has ended; otherwise what is to be awaited, and `Victim.end` is to be called then
    """
    cdef bint suspended = False
    rest = error = None
    victim.begin(origin)
    try:
        rest = hook(victim.slot.endpoint, victim.conn)
        check_awaitable(getattr(hook, '__self__', None), HOOK_DISPOSE, rest)
        rest = run_until_it_suspends(rest, iterate, begun, &suspended, None, HOOK_DISPOSE)
        if rest is not None and not suspended:
            check_result(getattr(hook, '__self__', None), HOOK_DISPOSE, rest, False)
    except BaseException as e:
        error = e
    if suspended:
        return rest
    victim.end(error, report)
    return None
