# The awaitable that `acquire` and `connection` of the asyncio pool return, and `release` where a hook is to be called:
# a small machine that is driven like a coroutine.

cdef enum lease_phase:
    FRESH, WAITING, ACQUIRING, HELD, LEAVING, BRINGING, TIDYING, RETURNING_IT, OVER


@cython.final
@cython.no_gc_clear
cdef class AsyncLease(Checkout):
    """One checkout, as an awaitable and as an asynchronous context manager. Single use. It is what `async with` calls,
    too: see `Itself`.

    It is its own iterator, for entering and for exiting: an idle hit costs one object and no Python frame."""
    cdef called_t called
    cdef AsyncioPool pool
    cdef object key
    cdef object timeout
    cdef Ticket ticket
    cdef object coro             # what is to be driven: the Python half at work, or the wait in line
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
            if self.phase != HELD:
                self.drop()
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
        elif self.phase != HELD:
            self.drop()

    cdef int drop(self) except -1:
        """Stop where nothing has begun. A connection that was to be released has not been seen by its hook."""
        if self.phase == LEAVING or self.phase == BRINGING:
            self.pool._core.discard(self, 'error')
        self.phase = OVER
        return 0

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
                outcome = pool.put_back(&self.slot.s, gcp_monotonic())
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
            s = self.begin_acquire()
            if s != NULL:
                self.take_over(s)
                result[0] = s.conn
                Py_INCREF(<object>s.conn)
                return PYGEN_RETURN
        elif self.phase == LEAVING or self.phase == BRINGING or self.phase == TIDYING:
            if not self.begin_release():
                result[0] = <PyObject*>None
                Py_INCREF(None)
                return PYGEN_RETURN
        elif self.coro is None:
            raise RuntimeError('cannot reuse what was awaited already')
        return self.drive(value, result)

    cdef slot_t* begin_acquire(self) except? NULL:
        """Take an idle connection, or return NULL: then the Python half is ready to go on."""
        cdef AsyncioPool pool = self.pool
        cdef glance_t glance
        cdef slot_t* s = NULL
        pool.check_loop()
        if pool.direct:
            s = pool.hit(self.key, self.timeout, NULL)
        elif not pool._core.traces_hits:
            s = pool.hit(self.key, self.timeout, &glance)
            if s != NULL:
                self.phase = ACQUIRING      # a hook may come to drive its own acquire: that is told
                return self.present(s, &glance)
        if s == NULL:
            self.ticket = pool.open_ticket(self.key, self.timeout)
            try:
                self.begin_serving()
            except BaseException as error:
                self.fail(error)
                raise
        return s

    cdef int begin_serving(self) except -1:
        """Ask the core, and be ready to wait in line. Where there is more to do than that, the Python half does it."""
        cdef AsyncioPool pool = self.pool
        cdef Core core = pool._core
        cdef Ticket ticket = self.ticket
        cdef Alarm alarm
        cdef int verdict = core.request(ticket)
        if verdict == WAIT and not ticket.nowait and not core.pool.disposing:
            alarm = Alarm.__new__(Alarm)
            alarm.future = pool.loop.create_future()
            verdict = core.arm(ticket, alarm)
            if verdict == WAIT and not core.pool.disposing:
                if ticket.deadline < INFINITY:
                    ticket.timer = pool.loop.call_later(max(0.0, ticket.deadline - core.now()), alarm)
                self.coro = alarm.future.__await__()
                self.phase = WAITING
                return 0
        self.phase = ACQUIRING
        self.coro = pool._serve(ticket, verdict)
        return 0

    cdef bint is_served(self) except -1:
        """Whether the wait in line has ended with a connection that nobody needs to look at; else the Python half is
        ready to go on."""
        cdef Ticket ticket = self.ticket
        cdef int verdict
        ticket.stop_timer()
        self.phase = ACQUIRING
        verdict = self.pool._core.poll(ticket)
        if verdict == USE and self.pool.direct:
            return True
        self.coro = self.pool._serve(ticket, verdict)
        return False

    cdef inline int take_over(self, slot_t* s) except -1:
        """The acquire has ended well."""
        if self.entered:
            self.phase = HELD
            self.hold(self.pool._core, <Slot>slot_object(s), s.lease)
        else:
            self.phase = OVER
        return 0

    # --- the hooks at an idle hit ---

    cdef slot_t* present(self, slot_t* s, glance_t* glance) except? NULL:
        """Let the hooks look at an idle hit. Where something is wrong with it, or a hook has something to wait for, the
        Python half goes on."""
        cdef AsyncioPool pool = self.pool
        cdef Slot slot = <Slot>slot_object(s)       # whatever a hook does, the record stays
        cdef int found = FINE
        trouble = None
        glance.deadline = glance.began + seconds_allowed(pool.limit(self.timeout), pool.acquire_timeout)
        try:
            found = self.look_over(slot, glance)
            if found == FINE and pool.lend(s, glance):
                return s
        except BaseException as error:
            pool._core.end_hook(glance, CALL_CANCELLED, self.key, error)
            trouble = error
        self.ticket = pool._core.ticket(self.key, pool.limit(self.timeout), pool.acquire_timeout)
        self.ticket.adopt(slot, glance)
        if found == UNDER_WAY:
            self.coro = pool._go_on(self.ticket, self.ticket.hook, self.coro, begun_step(pool._core, self.key, glance))
        else:
            self.coro = pool._recover(self.ticket, found == FOUND_DEAD, trouble)
        self.phase = ACQUIRING
        return NULL

    cdef int look_over(self, Slot slot, glance_t* glance) except -1:
        """Call the hooks, count and time them, as long as they have nothing to wait for."""
        cdef AsyncioPool pool = self.pool
        cdef Core core = pool._core
        cdef double now = glance.began
        cdef bint alive
        if pool._check_aliveness is not None:
            glance.hook, glance.hook_began = HOOK_CHECK, now
            outcome = self.call(pool._check_aliveness, self.key, slot.conn)
            if outcome is UNFINISHED:
                return UNDER_WAY
            alive = outcome
            if not alive:
                core.end_hook(glance, CALL_DEAD, self.key, None)
                return FOUND_DEAD
            now = core.hook_went_well(glance)
        if pool._on_acquire is not None and now < glance.deadline:
            glance.hook, glance.hook_began = HOOK_ON_ACQUIRE, now
            if self.call(pool._on_acquire, self.key, slot.conn) is UNFINISHED:
                return UNDER_WAY
            now = core.hook_went_well(glance)
        if now >= glance.deadline:
            return TOO_LATE
        glance.hook = N_HOOKS
        return FINE

    cdef object call(self, hook, endpoint, conn):
        """Call a hook and let it run until it waits; return its result, or UNFINISHED: then `coro` is what is to be
        awaited of it."""
        cdef bint waits = False
        outcome = first_step(hook(endpoint, conn), self.pool.steps_of, self.pool.begun, &waits)
        if not waits:
            return outcome
        self.coro = outcome
        return UNFINISHED

    cdef int drive(self, value, PyObject** result) except -1:
        """Let the Python half go on."""
        cdef PySendResult status
        try:
            status = PyIter_Send(<PyObject*>self.coro, <PyObject*>value, result)
            if status == PYGEN_RETURN:
                outcome = <object>result[0]
                Py_DECREF(outcome)
                result[0] = NULL
                if self.phase == WAITING and not self.is_served():
                    return self.drive(None, result)
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
        self.take_over(&ticket.slot.s)
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

    # --- release ---

    cdef bint begin_release(self) except -1:
        """Release, or do what a release has left to do; True where there is something to wait for: then the Python half
        is ready to go on."""
        cdef AsyncioPool pool = self.pool
        cdef int phase = self.phase
        error = self.body
        self.body = None
        self.phase = OVER
        if phase == LEAVING:
            if not self.holds():
                self.leave_stale(self.key, error)
                return False
            pool.check_loop()
            pool._core.before('release')
            pool._core.take_back(self.slot, self.lease, self.epoch)
        if phase != TIDYING and not self.bring(error):
            return self.coro is not None
        if not pool.untidy():
            return False
        self.coro = pool._tidy(self.key)
        self.phase = RETURNING_IT
        return True

    cdef bint bring(self, body) except -1:
        """Release by way of `on_release`. Returns whether it is over, with something left to do; else `coro` is what to
        wait for, if there is something."""
        cdef AsyncioPool pool = self.pool
        cdef Core core = pool._core
        cdef Slot slot = self.slot
        cdef glance_t glance
        cdef double now = 0
        glance.lease = self.lease
        glance.epoch = self.epoch
        self.phase = RETURNING_IT
        if core.traces_hits:
            self.slot = None
            self.coro = pool._release(checkout_of(core, slot, &glance, None), body)
            return False
        glance.hook, glance.hook_began = HOOK_ON_RELEASE, core.now()
        if pool._on_release is None:
            now = glance.hook_began
        else:
            self.hook = 'on_release'
            try:
                outcome = self.call(pool._on_release, slot.endpoint, slot.conn)
                if outcome is not UNFINISHED:
                    now = core.hook_went_well(&glance)
            except BaseException as error:
                core.end_hook(&glance, CALL_CANCELLED, slot.endpoint, error)
                self.slot = None
                self.coro = pool._spoil(checkout_of(core, slot, &glance, 'on_release'), error, body)
                return False
            if outcome is UNFINISHED:
                self.slot = None
                self.coro = pool._release(
                    checkout_of(core, slot, &glance, 'on_release'), body, self.coro,
                    begun_step(core, slot.endpoint, &glance))
                return False
        self.slot = None
        self.phase = OVER
        if pool.give_back(slot, &glance, now) == PUT_BACK:
            return False
        core.after()
        return True

    def __dealloc__(self):
        cdef Ticket ticket = self.ticket
        if ticket is not None and not ticket.ended and ticket.epoch == ticket.core.pool.epoch:
            Py_INCREF(ticket)
            gcp_push(&ticket.core.pool.abandoned_waiters, &ticket.w, &ticket.w.next_abandoned)
            ticket.core.request_drain(NULL if ticket.ep is None else &ticket.ep.e)


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
cdef AsyncLease any_one = AsyncLease.__new__(AsyncLease)
call_directly(AsyncLease, <char*>&any_one.called - <char*><PyObject*>any_one, ('__aenter__', '__aexit__'))
gcp_keep_async_leases(AsyncLease)
