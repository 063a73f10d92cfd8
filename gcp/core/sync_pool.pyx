# The compiled half of the threading pool: drives idle hits, plain waits and releases. Whatever asks for more goes to
# the driver of the Python half.

from gcp.core.platform cimport gcp_read, gcp_swap
from gcp.core.state cimport CALL_DEAD, HOOK_CHECK, HOOK_ON_ACQUIRE, HOOK_ON_RELEASE, slot_t


cdef class SyncPool(BaseConnectionPool):
    """Serves idle hits without a Python frame, with and without hooks."""
    cdef public object _wait        # waits for an event without a time limit, and not beyond the end of the interpreter

    def acquire(self, endpoint, timeout=None, tag=None, priority=0):
        """Acquire a connection. The caller must release it; for a with statement use `connection`.

        :param endpoint: what to connect to; any hashable
        :param timeout: seconds for everything: waiting, creating, checking; zero or less: do not wait; ``inf``: no
                        limit; ``None``: the pool's ``acquire_timeout``
        :param tag: a word for `holders` that says what the connection is used for, of at most 64 characters
        :param priority: a whole number: of acquires that wait for the same endpoint, those with a higher one are served
                         first
        :raises AcquireTimeoutError: if it took longer
        :raises ConnectionPoolClosedError: if the pool is closed
        """
        cdef delivery_t to
        cdef slot_t* s
        cdef int first = check_priority(priority)
        if tag is None and not first:
            begin_delivery(&to, not self.direct)
            s = self.take(<PyObject*>endpoint, timeout, &to)
            return conn_of(s, &to)
        check_tag(tag)
        begin_delivery(&to)
        s = self.take_by_priority(endpoint, timeout, first, &to)
        if tag is not None:
            note_tagged(self, s, &to, tag)
        return conn_of(s, &to)

    def release(self, conn, endpoint, error=None):
        """Release a connection.

        :param conn: what `acquire` returned, or something equal to it
        :param endpoint: what it was acquired for
        :param error: what went wrong while it was held: the manager's `clean_after_error` decides whether the
                      connection is used again
        :raises ConnectionNotAcquiredError: if it is not held; nothing has changed then
        """
        if error is None:
            self.release_used(<PyObject*>conn, <PyObject*>endpoint)
        else:
            self.release_named(conn, endpoint, error)

    def connection(self, endpoint, timeout=None, tag=None, priority=0):
        """Return a context manager that acquires a connection and releases it at the end.

        :param endpoint: what to connect to; any hashable
        :param timeout: as for `acquire`
        :param tag: as for `acquire`
        :param priority: as for `acquire`
        """
        cdef Lease lease = self.new_lease(<PyObject*>endpoint, timeout)
        lease.priority = check_priority(priority)
        lease.tag = check_tag(tag)
        return lease

    # --- acquire ---

    cdef inline slot_t* take(self, PyObject* key, timeout, delivery_t* to) except NULL:
        """Acquire a slot: an idle one, else whatever the machine comes to.

        :param key: the endpoint, borrowed
        """
        cdef acquire_t a
        cdef slot_t* s = NULL
        if self.direct:
            s = self.take_slot(key, timeout, NULL, NULL, to)
        elif not traces_hits(self._core):
            s = self.take_slot(key, timeout, &a, NULL, to)
        if s == NULL:
            return self.serve_anew(<object>key, timeout, to)
        return s if self.direct or a.fresh == ENDED else self.call_hooks(s, &a, <object>key, timeout, to)

    cdef slot_t* take_by_priority(self, endpoint, timeout, int priority, delivery_t* to) except NULL:
        """Acquire a slot. With a priority, even an idle one is left to the machine."""
        if not priority:
            return self.take(<PyObject*>endpoint, timeout, to)
        return self.serve(self.open_acquire(endpoint, timeout, priority), None, to)

    cdef slot_t* serve_anew(self, endpoint, timeout, delivery_t* to) except NULL:
        """Drive an acquire that found no idle connection."""
        return self.serve(self.open_acquire(endpoint, timeout), None, to)

    cdef slot_t* call_hooks(self, slot_t* s, acquire_t* a, endpoint, timeout, delivery_t* to) except NULL:
        """Drive an idle hit: call its hooks. If something is wrong with it, it becomes an `Acquire`."""
        cdef Core core = self._core
        cdef Slot slot = <Slot>record_delivered(s, to)    # keeps the record, whatever a hook does
        cdef PyObject* conn = conn_delivered(s, to)
        default = default_timeout(self)
        allowed = default if timeout is None else check_timeout(timeout)
        a.deadline = a.began + seconds_allowed(allowed, default)
        a.hook_began = a.began
        after_slot(self, a)
        try:
            if a.todo == HOOK_CHECK:
                begin_hook(a)
                if is_alive(self, self._check_aliveness(endpoint, <object>conn, seconds_left(a)), True):
                    hook_went_well(self, a, core.hook_succeeded(HOOK_CHECK, a.hook_began))
                else:
                    core.hook_ended(HOOK_CHECK, a.hook_began, CALL_DEAD, endpoint, None)
                    after_death(self, a)
            if a.todo == HOOK_ON_ACQUIRE:
                begin_hook(a)
                expect_none(self, HOOK_ON_ACQUIRE, self._on_acquire(endpoint, <object>conn), True)
                hook_went_well(self, a, core.hook_succeeded(HOOK_ON_ACQUIRE, a.hook_began))
            if a.todo == DO_DONE and self.finish_hit(s, a):
                return s
        except BaseException as error:
            return self.serve(acquire_from_hit(self, slot, a, endpoint, allowed), error, to)
        return self.serve(acquire_from_hit(self, slot, a, endpoint, allowed), None, to)

    cdef slot_t* serve(self, Acquire acquire, error, delivery_t* to) except NULL:
        """Drive an acquire that is no idle hit. Whatever goes wrong, nothing is left behind.

        :param error: what a hook raised at an idle hit
        :param to: that of the idle hit ends here
        """
        cdef int todo
        drop_delivery(to)
        try:
            if error is not None:
                acquire.failed(error)
            todo = acquire.next()
            while todo == DO_WAIT and self.waits_plainly(acquire):
                acquire.wait_ended(self.wait(acquire))
                todo = acquire.next()
            if todo != DO_DONE:
                self._drive(acquire)
        except BaseException as trouble:
            acquire.abandon(trouble)
            trim(trouble)
            raise trouble
        return slot_of(acquire, to)

    cdef bint waits_plainly(self, Acquire acquire) noexcept:
        """Whether a wait is nothing but that: no disposal is to be watched meanwhile."""
        return not acquire.nowait and count_disposing(self._core) == 0

    cdef bint wait(self, Acquire acquire) except -1:
        cdef double seconds = acquire.patience(INFINITY)
        if type(acquire.event) is Event and seconds < INFINITY:
            return (<Event>acquire.event).wait(seconds)
        return self._wait(acquire.event, seconds)

    cdef inline Lease new_lease(self, PyObject* key, timeout):
        cdef Lease lease = Lease.__new__(Lease)
        if GCP_BINDS_METHODS:
            lease.called = gcp_lease_call
        lease.pool = self
        lease.key = <object>key
        lease.timeout = timeout
        return lease

    # --- release ---

    cdef inline int release_used(self, PyObject* conn, PyObject* key) except -1:
        """Release a connection by name, after a use without an error. Both are borrowed."""
        cdef int outcome = self.put_back_named(conn, key) if self.plain else NOT_HELD
        if outcome == PUT_BACK_AND_MORE:
            return self.clean_up(<object>key)
        return self.release_named(<object>conn, <object>key, None) if outcome == NOT_HELD else 0

    cdef int release_named(self, conn, endpoint, error) except -1:
        """Release a connection by name, with all that this may need."""
        cdef uint64_t lease = 0
        cdef Slot slot = claim(self._core, conn, endpoint, &lease)
        return 0 if slot is None else self.release_after(slot, lease, error, None)

    cdef int release_after(self, Slot slot, uint64_t lease, error, body) except -1:
        """Release a connection that has left its holder, unless the manager says that it must not be used again.

        :param error: what went wrong meanwhile, or None
        :param body: the same if it is about to be raised: an error of the release is chained to it
        """
        if error is None or not self.judges or keeps(self, slot, lease, error):
            return self.release_slot(slot, lease, body)
        return self.clean_up(slot.endpoint)

    cdef int release_slot(self, Slot slot, uint64_t lease, body) except -1:
        """Release a connection that has left its holder: call `on_release`, put it back."""
        cdef Core core = self._core
        cdef Release release
        cdef release_t r
        r.epoch = core.pool.epoch
        r.lease = lease
        if self._on_release is not None and traces_hits(core):
            self._drive_release(new_release(self, slot, r.epoch, lease, body))
            return 0
        r.hook_began = core.now()
        try:
            if self._on_release is not None:
                expect_none(self, HOOK_ON_RELEASE, self._on_release(slot.endpoint, conn_in(core, slot)), True)
        except BaseException as error:
            release = new_release(self, slot, r.epoch, lease, body)
            release.hook_began = r.hook_began
            release.failed(error)
            self._drive_release(release)
            return 0
        if self._on_release is not None:
            r.hook_began = core.hook_succeeded(HOOK_ON_RELEASE, r.hook_began)
        if self.put_back_seen(slot, &r, r.hook_began) == PUT_BACK_AND_MORE:
            self.clean_up(slot.endpoint)
        return 0

    cpdef object _drive_release(self, release):
        try:
            self._drive(release)
        except BaseException:
            if has_victims(self._core):
                wake_collector(self._core)
            raise

    cdef int clean_up(self, endpoint) except -1:
        """Dispose of what a release left, and of a few connections that have expired."""
        cdef Core core = self._core
        core.after()
        if not self.has_garbage():
            return 0
        if gcp_read(&self.collects):
            core.collect(batch_size(self))
        hook = dispose_hook_of(self)
        if hook is not None and victims_belong_to(core, endpoint):
            batch = gather(core)
            if batch is not None:
                dispose_here(batch, hook, self._disposer.report)
        elif has_victims(core):
            try:
                self._disposer.dispose(endpoint, GRACE)
            except BaseException:
                wake_collector(core)
                raise
        return 0


cdef inline object seconds_left(acquire_t* a):
    return None if a.deadline == INFINITY else max(0.0, a.deadline - a.hook_began)


@cython.final
@cython.no_gc_clear
cdef class Lease(Holder):
    """One use of a connection, as a context manager: what ``connection`` of a threading pool returns. It can be entered
    once: the connection is acquired then, and released at the end of the block."""
    # Up to Python 3.13 it is what `with` calls, too: see `BoundLease`.
    __class_getitem__ = classmethod(GenericAlias)
    cdef gcp_called_t called
    cdef SyncPool pool
    cdef object key
    cdef object timeout
    cdef object tag
    cdef int priority
    cdef bint entered
    cdef bint discarded

    def __enter__(self):
        return self.enter()

    def __exit__(self, kind, error, traceback):
        self.leave(error)
        return False

    def discard(self):
        """Give the connection back now, to be disposed of. Nothing is left to do at the end of the block.

        :raises RuntimeError: if the lease holds none
        :raises ConnectionNotAcquiredError: if the connection was released already
        """
        cdef Slot slot = self.slot
        if slot is None:
            raise RuntimeError('this lease holds no connection: it was not entered, or was left already')
        take_back(self.core, slot, self.lease, self.epoch)
        self.slot = None
        self.discarded = True
        self.pool._drive_release(discard_now(self.pool, slot, self.lease, 'discarded'))

    cdef object enter(self):
        cdef delivery_t to
        cdef slot_t* s
        if gcp_swap(&self.entered, True):
            raise RuntimeError('a lease can be entered only once: call connection() again')
        begin_delivery(&to)
        if self.priority:
            s = self.pool.take_by_priority(self.key, self.timeout, self.priority, &to)
        else:
            s = self.pool.take(<PyObject*>self.key, self.timeout, &to)
        if self.tag is not None:
            note_tagged(self.pool, s, &to, self.tag)
        return conn_held(s, &to, self.pool._core, self)

    cdef int leave(self, error) except -1:
        cdef SyncPool pool = self.pool
        cdef int outcome
        if self.slot is None:
            return self.leave_empty()
        self.core.before('release')
        if not pool.plain or (error is not None and pool.judges):
            return self.leave_after(error)
        outcome = pool.put_back_held(self)
        if outcome == NOT_HELD:
            return self.leave_stale(self.key, error)
        self.slot = None
        return pool.clean_up(self.key) if outcome == PUT_BACK_AND_MORE else 0

    cdef int leave_after(self, error) except -1:
        """Leave a connection that a hook wants to see."""
        cdef Slot slot = self.slot
        if not takes_back(self.core, slot, self.lease, self.epoch):
            return self.leave_stale(self.key, error)
        self.slot = None
        return self.pool.release_after(slot, self.lease, error, error)

    cdef int leave_empty(self) except -1:
        if not self.discarded:
            raise RuntimeError('this lease was not entered, or was left already')
        self.discarded = False
        return 0


# --- as `with` sees it ---

cdef PyObject* enter_lease(PyObject* lease) except NULL:
    conn = (<Lease>lease).enter()
    Py_INCREF(conn)
    return <PyObject*>conn


cdef PyObject* leave_lease(PyObject* lease, PyObject* error) except NULL:
    cdef object nothing = False
    (<Lease>lease).leave(<object>error)
    Py_INCREF(nothing)
    return <PyObject*>nothing


gcp_lease_enter = enter_lease
gcp_lease_leave = leave_lease
cdef Lease any_lease = Lease.__new__(Lease)
call_directly(
    Lease, <char*>&any_lease.called - <char*><PyObject*>any_lease, gcp_lease_method, ('__enter__', '__exit__')
)


# --- called with few arguments: see fastcall ---

cdef object acquire_one "gcp_acquire_of_few"(PyObject** args):
    cdef delivery_t to
    cdef slot_t* s
    begin_delivery(&to, not (<SyncPool>args[0]).direct)
    s = (<SyncPool>args[0]).take(args[1], None, &to)
    return conn_of(s, &to)


cdef object connection_one "gcp_connection_of_few"(PyObject** args):
    return (<SyncPool>args[0]).new_lease(args[1], None)


cdef object release_two "gcp_release_of_few"(PyObject** args):
    (<SyncPool>args[0]).release_used(args[1], args[2])


call_few(SyncPool, 'acquire', gcp_acquire_take_few)
call_few(SyncPool, 'connection', gcp_connection_take_few)
call_few(SyncPool, 'release', gcp_release_take_few)
