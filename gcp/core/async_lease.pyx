# The awaitable that `acquire` and `connection` of the asyncio pool return, and `release` where a hook is to be called.
# It is driven like a coroutine, and drives the machines of acquire and release as far as nothing suspends but a plain
# wait.

from gcp.core.platform cimport PYGEN_NEXT, PYGEN_RETURN, PyIter_Send, PySendResult
from gcp.core.state cimport CALL_DEAD, HOOK_CHECK, HOOK_ON_ACQUIRE, HOOK_ON_RELEASE, slot_t


cdef enum lease_phase:
    FRESH, FRESH_WITH_PRIORITY, WAITING, ACQUIRING, HELD, RELEASING, RELEASING_BY_NAME, CLEANING_UP, ENDING, OVER,
    DISCARDED_EARLY


@cython.final
@cython.no_gc_clear
cdef class AsyncLease(Holder):
    """One use of a connection, as an asynchronous context manager and as an awaitable: what ``connection`` and
    ``acquire`` return. Single use: ``async with`` acquires and releases the connection, ``await`` only acquires it."""
    # It is its own iterator, and up to Python 3.13 what `async with` calls, too (see `BoundLease`): an idle hit costs
    # one object.
    __class_getitem__ = classmethod(GenericAlias)
    cdef gcp_called_t called
    cdef AsyncPool pool
    cdef object key
    cdef object timeout
    cdef object tag
    cdef int priority
    cdef Acquire acquire
    cdef object coro             # what is awaited: the driver at work, or the future of a plain wait
    cdef object body             # the error that leaves the block
    cdef int phase
    cdef bint entered
    cdef bint by_name            # made by `acquire` or `release`, and not awaited yet

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
            if self.phase != HELD:
                self.drop()
            raise error
        try:
            return self.coro.throw(error)
        except StopIteration as stop:
            result = self.conclude(stop.value)
        except BaseException as trouble:
            self.fail(trouble)
            trim(trouble)
            raise trouble
        raise StopIteration(result)

    def close(self):
        """Stop, as a coroutine does; a connection that was taken is given back."""
        coro = self.coro
        if coro is not None:
            coro.close()
            self.fail(GeneratorExit())
        elif self.phase != HELD:
            self.drop()

    cdef int drop(self) except -1:
        """Stop before anything has begun. A connection that was to be released was not seen by its hook: discard it."""
        cdef Release release
        if self.phase == RELEASING or self.phase == RELEASING_BY_NAME:
            release = new_release(self.pool, self.slot, self.epoch, self.lease, None)
            self.slot = None
            release.discard('error')
            release.core.after()
        self.phase = OVER
        return 0

    async def discard(self):
        """Give the connection back now, to be disposed of. Nothing is left to do at the end of the block.

        :raises RuntimeError: if the lease holds none
        :raises ConnectionNotAcquiredError: if the connection was released already
        """
        await self.pool._drive(begin_discard(self))

    # --- to be entered and left ---

    def __aenter__(self):
        self.enter()
        return self

    def __aexit__(self, kind, error, traceback):
        return self.leave(error)

    cdef int enter(self) except -1:
        if self.phase != FRESH and (self.phase != FRESH_WITH_PRIORITY or self.entered):
            raise RuntimeError('a lease can be entered only once: call connection() again')
        self.entered = True
        return 0

    cdef object leave(self, error):
        """Begin to release; return what to await. A connection that no hook wants to see is released at once."""
        cdef AsyncPool pool = self.pool
        cdef Core core = pool._core
        cdef int outcome = NOT_HELD
        if self.phase != HELD:
            return leave_empty(self)
        if pool.plain and (error is None or not pool.judges) and (
            pool.is_at_home() or pool.can_leave_now()
        ):
            core.before('release')
            outcome = pool.put_back_held(self)
        if outcome == NOT_HELD:
            self.body = error
            self.phase = RELEASING
            return self
        self.slot = None
        self.phase = OVER
        if outcome == PUT_BACK:
            return FINISHED
        self.phase = CLEANING_UP
        core.after()
        return self

    # --- driving ---

    cdef int advance(self, value, PyObject** result) except -1:
        """Go on until something suspends (PYGEN_NEXT) or there is a result (PYGEN_RETURN)."""
        cdef delivery_t to
        cdef slot_t* s
        self.by_name = False
        if self.phase == FRESH:
            begin_delivery(&to)
            s = self.begin_acquire(&to)
            if s != NULL:
                give(result, self.take_over(s, &to))
                return PYGEN_RETURN
        elif self.phase == RELEASING or self.phase == RELEASING_BY_NAME or self.phase == CLEANING_UP:
            if not self.begin_release():
                give(result, None)
                return PYGEN_RETURN
        elif self.phase == FRESH_WITH_PRIORITY:
            if self.pool.begin_with_priority(self, result):
                return PYGEN_RETURN
        elif self.coro is None:
            raise RuntimeError('cannot reuse what was awaited already')
        return self.drive(value, result)

    cdef int drive(self, value, PyObject** result) except -1:
        """Let what is awaited go on."""
        cdef PySendResult status
        try:
            status = PyIter_Send(<PyObject*>self.coro, <PyObject*>value, result)
            if status == PYGEN_RETURN:
                outcome = <object>result[0]
                Py_DECREF(outcome)
                result[0] = NULL
                if self.phase == WAITING:
                    stop_timer(self.acquire)
                    self.acquire.wait_ended(outcome)
                    if not self.serve():
                        return self.drive(None, result)
                give(result, self.conclude(outcome))
        except BaseException as error:
            self.fail(error)
            trim(error)
            raise error
        return status

    cdef object conclude(self, outcome):
        """What was awaited has ended well."""
        cdef Acquire acquire = self.acquire
        cdef delivery_t to
        self.coro = None
        if acquire is None:
            self.phase = OVER
            return outcome
        self.acquire = None
        begin_delivery(&to)
        return self.take_over(slot_of(acquire, &to), &to)

    cdef int fail(self, error) except -1:
        """What was awaited has failed, or was stopped."""
        cdef Acquire acquire = self.acquire
        self.coro = None
        self.phase = OVER
        if acquire is not None:
            self.acquire = None
            acquire.abandon(error)
        return 0

    cdef inline object take_over(self, slot_t* s, delivery_t* to):
        """The acquire has ended well. Returns the connection."""
        if self.tag is not None:
            note_tagged(self.pool, s, to, self.tag)
        if self.entered:
            self.phase = HELD
            return conn_held(s, to, self.pool._core, self)
        self.phase = OVER
        return conn_of(s, to)

    # --- acquire ---

    cdef slot_t* begin_acquire(self, delivery_t* to) except? NULL:
        """Take an idle connection. Returns NULL if there is something to be awaited first."""
        cdef AsyncPool pool = self.pool
        cdef PyObject* task
        cdef acquire_t a
        cdef slot_t* s = NULL
        pool.check_loop()
        task = pool.running_task() if pool.tracks else NULL
        if pool.direct:
            s = pool.take_slot(<PyObject*>self.key, self.timeout, NULL, task, to)
        elif not traces_hits(pool._core):
            s = pool.take_slot(<PyObject*>self.key, self.timeout, &a, task, to)
        if s == NULL:
            return pool.begin_for(self, to)
        if pool.direct or a.fresh == ENDED:
            return s
        self.phase = ACQUIRING              # a hook that awaits this same lease gets an error
        return self.call_hooks(s, &a, to)

    cdef slot_t* begin(self, Acquire acquire, error, delivery_t* to) except? NULL:
        """Begin to drive an acquire that is no idle hit.

        :param error: what a hook raised at an idle hit
        :param to: that of the idle hit ends here
        """
        self.acquire = acquire
        drop_delivery(to)
        try:
            if error is not None:
                acquire.failed(error)
            if not self.serve():
                return NULL
        except BaseException as trouble:
            self.fail(trouble)
            trim(trouble)
            raise trouble
        self.acquire = None
        return slot_of(acquire, to)

    cdef bint serve(self) except -1:
        """Do what the machine says as far as that is nothing or a plain wait. Returns whether the acquire has ended;
        if not, there is something to be awaited: the rest is the driver's."""
        cdef Acquire acquire = self.acquire
        cdef int todo = DO_BEGIN if acquire.started is not None else acquire.next()
        if todo == DO_DONE:
            return True
        if todo == DO_WAIT and not acquire.nowait and count_disposing(self.pool._core) == 0:
            future = (<FutureEvent>acquire.event).future
            seconds = acquire.patience(INFINITY)
            if seconds < INFINITY:
                acquire.timer = self.pool.loop.call_later(seconds, time_out, future, context=Context())
            self.coro = future.__await__()
            self.phase = WAITING
            return False
        self.phase = ACQUIRING
        self.coro = self.pool._drive(acquire)
        return False

    cdef slot_t* call_hooks(self, slot_t* s, acquire_t* a, delivery_t* to) except? NULL:
        """Drive an idle hit: call its hooks, as long as they do not suspend. If something is wrong with it, or a hook
        suspends, it becomes an `Acquire`."""
        cdef AsyncPool pool = self.pool
        cdef Slot slot = <Slot>record_delivered(s, to)    # keeps the record, whatever a hook does
        error = None
        default = default_timeout(pool)
        allowed = default if self.timeout is None else pool.limit(self.timeout)
        a.deadline = INFINITY if allowed is None else a.began + seconds_allowed(allowed, default)
        a.hook_began = a.began
        after_slot(pool, a)
        try:
            run_hooks(self, <object>conn_delivered(s, to), a)
            if a.todo == DO_DONE and pool.finish_hit(s, a):
                return s
        except BaseException as trouble:
            error = trouble
        return begin_from_hit(self, slot, a, error, to)

    cdef object call(self, hook, int number, endpoint, conn):
        """Call a hook and let it run until it suspends: then `coro` is what is to be awaited of it. Returns its result
        if it has not."""
        cdef bint suspended = False
        cdef AsyncPool pool = self.pool
        outcome = run_until_it_suspends(hook(endpoint, conn), pool.iterate, pool.begun, &suspended, pool, number)
        if suspended:
            self.coro = outcome
        return outcome

    # --- release ---

    cdef bint begin_release(self) except -1:
        """Release, or dispose of what a release left. Returns whether there is something to be awaited."""
        cdef AsyncPool pool = self.pool
        cdef int phase = self.phase
        body = self.body
        self.body = None
        self.phase = OVER
        if phase == RELEASING:
            if not self.holds():
                self.leave_stale(self.key, body)
                return False
            pool.check_loop()
            pool._core.before('release')
            take_back(pool._core, self.slot, self.lease, self.epoch)
        if body is not None and phase != CLEANING_UP and not keeps_of(self, body):
            phase = CLEANING_UP
        if phase != CLEANING_UP and not self.call_on_release(body if phase == RELEASING else None):
            return self.coro is not None
        if not pool.has_garbage():
            return False
        self.phase = ENDING
        self.coro = pool._drive(cleanup_after(pool, self.key))
        return True

    cdef bint call_on_release(self, body) except -1:
        """Call `on_release`, as long as it does not suspend, and put the connection back. Returns whether that is done,
        and there may be something to dispose of; if not, `coro` is what is to be awaited, if there is something."""
        cdef AsyncPool pool = self.pool
        cdef Core core = pool._core
        cdef Slot slot = self.slot
        cdef Release release = None
        cdef release_t r
        error = None
        r.lease = self.lease
        r.epoch = self.epoch
        r.hook_began = core.now()
        self.phase = ENDING
        if pool._on_release is not None and traces_hits(core):
            release = new_release(pool, slot, r.epoch, r.lease, body)
        elif pool._on_release is not None:
            try:
                result = self.call(pool._on_release, HOOK_ON_RELEASE, slot.endpoint, conn_in(core, slot))
                if result is not None and self.coro is None:
                    check_result(pool._manager, HOOK_ON_RELEASE, result, False)
            except BaseException as trouble:
                error = trouble
            if error is not None or self.coro is not None:
                release = new_release(pool, slot, r.epoch, r.lease, body)
            else:
                r.hook_began = core.hook_succeeded(HOOK_ON_RELEASE, r.hook_began)
        self.slot = None
        if release is not None:
            if error is not None:
                release.hook_began = r.hook_began
                release.failed(error)
            elif self.coro is not None:
                release.resume(self.coro, r.hook_began)
            self.coro = pool._drive(release)
            return False
        self.phase = OVER
        if pool.put_back_seen(slot, &r, r.hook_began) == PUT_BACK:
            return False
        core.after()
        return True

    def __dealloc__(self):
        cdef Acquire acquire = self.acquire
        if self.by_name and (self.phase <= FRESH_WITH_PRIORITY and not self.entered or self.phase == RELEASING_BY_NAME):
            warn_of_unawaited(self.pool, 'release' if self.phase == RELEASING_BY_NAME else 'acquire')
        if acquire is not None and not acquire.ended and acquire.epoch == acquire.core.pool.epoch:
            abandon_acquire(acquire)


cdef Release begin_discard(AsyncLease lease):
    cdef Slot slot = lease.slot
    if lease.phase != HELD:
        raise RuntimeError('this lease holds no connection: it was not entered, or was left already')
    lease.pool.check_loop()
    take_back(lease.pool._core, slot, lease.lease, lease.epoch)
    lease.slot = None
    lease.phase = DISCARDED_EARLY
    return discard_now(lease.pool, slot, lease.lease, 'discarded')


cdef object leave_empty(AsyncLease lease):
    """Leave a lease that holds no connection: that is right after a `discard`."""
    if lease.phase != DISCARDED_EARLY:
        raise RuntimeError('this lease was not entered, or was left already')
    lease.phase = OVER
    return FINISHED


cdef bint keeps_of(AsyncLease lease, error) except -1:
    """Whether the connection may be used again after an error. If not, only its disposal is left."""
    cdef Slot slot = lease.slot
    lease.slot = None
    if not keeps(lease.pool, slot, lease.lease, error):
        return False
    lease.slot = slot
    return True


# --- the hooks at an idle hit ---

cdef int run_hooks(AsyncLease lease, conn, acquire_t* a) except -1:
    """Call the hooks of an idle hit, up to one that suspends or finds it dead."""
    cdef AsyncPool pool = lease.pool
    cdef Core core = pool._core
    while a.todo == HOOK_CHECK or a.todo == HOOK_ON_ACQUIRE:
        begin_hook(a)
        if a.todo == HOOK_ON_ACQUIRE:
            nothing = lease.call(pool._on_acquire, HOOK_ON_ACQUIRE, lease.key, conn)
            if lease.coro is not None:
                return 0
            if nothing is not None:
                check_result(pool._manager, HOOK_ON_ACQUIRE, nothing, False)
        else:
            alive = lease.call(pool._check_aliveness, HOOK_CHECK, lease.key, conn)
            if lease.coro is not None:
                return 0
            if alive is not True:
                check_result(pool._manager, HOOK_CHECK, alive, False)
                core.hook_ended(HOOK_CHECK, a.hook_began, CALL_DEAD, lease.key, None)
                after_death(pool, a)
                return 0
        hook_went_well(pool, a, core.hook_succeeded(a.hook, a.hook_began))
    return 0


cdef slot_t* begin_from_hit(AsyncLease lease, Slot slot, acquire_t* a, error, delivery_t* to) except? NULL:
    """Go on as an `Acquire` from an idle hit of which a hook has suspended, has raised, or found it dead."""
    cdef AsyncPool pool = lease.pool
    cdef Acquire acquire = acquire_from_hit(pool, slot, a, lease.key, pool.limit(lease.timeout))
    if lease.coro is not None:
        acquire.started, lease.coro = lease.coro, None
        acquire.call = begun_hook_call(pool._core, a.hook, lease.key, a.hook_began)
    return lease.begin(acquire, error, to)


# --- as the interpreter sees it ---

cdef int advance_lease(PyObject* lease, PyObject* value, PyObject** result) except -1:
    return (<AsyncLease>lease).advance(<object>value, result)


cdef PyObject* enter_async_lease(PyObject* lease) except NULL:
    (<AsyncLease>lease).enter()
    Py_INCREF(<object>lease)
    return lease


cdef PyObject* leave_async_lease(PyObject* lease, PyObject* error) except NULL:
    awaitable = (<AsyncLease>lease).leave(<object>error)
    Py_INCREF(awaitable)
    return <PyObject*>awaitable


gcp_async_lease_enter = enter_async_lease
gcp_async_lease_leave = leave_async_lease
gcp_init_stop()
gcp_advance = advance_lease
gcp_make_awaitable(AsyncLease, gcp_lease_send, gcp_lease_next)
gcp_make_awaitable(Finished, gcp_finished_send, gcp_finished_next)
gcp_make_awaitable(Released, send_released, next_released)
cdef AsyncLease any_awaitable = AsyncLease.__new__(AsyncLease)
call_directly(
    AsyncLease, <char*>&any_awaitable.called - <char*><PyObject*>any_awaitable, gcp_async_lease_method,
    ('__aenter__', '__aexit__'),
)


# --- called with few arguments: see fastcall ---

cdef object async_acquire_one "gcp_async_acquire_of_few"(PyObject** args):
    return (<AsyncPool>args[0]).new_lease(args[1], None, True)


cdef object async_connection_one "gcp_async_connection_of_few"(PyObject** args):
    return (<AsyncPool>args[0]).new_lease(args[1], None, False)


cdef object async_release_two "gcp_async_release_of_few"(PyObject** args):
    return (<AsyncPool>args[0]).release_soon(args[1], args[2], None)


call_few(AsyncPool, 'acquire', gcp_async_acquire_take_few)
call_few(AsyncPool, 'connection', gcp_async_connection_take_few)
call_few(AsyncPool, 'release', gcp_async_release_take_few)
