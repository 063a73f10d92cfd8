# What is done in the background, for no caller: a connect, or a check of an idle connection. A worker of a front asks
# `Core.next_job` and drives the job as it drives an acquire: `next` says what is to be done, `completed` and `failed`
# say how that ended. What there is to do is decided in the layer of jobs.

from gcp.core.checks cimport (
    begin_check, checks_due, end_check, most_checks, needs_another_worker, plan_checks, put_off_check, stop_checking,
)
from gcp.core.connects cimport expire_endpoint
from gcp.core.jobs cimport begin_connect, book_job, fail_job, fail_waiter, note_time, put_off_job, waiter_of_job
from gcp.core.permits cimport end_stale_connect
from gcp.core.platform cimport gcp_lock, gcp_lock_outer, gcp_unlock, gcp_unlock_outer
from gcp.core.ring cimport ring_init
from gcp.core.state cimport (
    CALL_CANCELLED, CALL_DEAD, CALL_OK, DEAD, HOOK_CHECK, HOOK_CREATE, HOOK_FAILED, HOOK_KEEPALIVE, HOOK_ON_DEAD,
    N_HOOKS, OPEN, count_hook_call, endpoint_object, endpoint_t, first_waiter, pool_t, slot_object, slot_t, suspension,
    waiter_t,
)
from gcp.core.table cimport table_find
from gcp.core.transitions cimport discard_slot

cdef double CHECK_TIMEOUT = 5.0     # seconds: how long a check in the background may take, at most


cdef int prepare_background(Core core) except -1:
    """Prepare a new core."""
    cdef pool_t* pool = &core.pool
    core.watches = []
    core.kept = {}
    core.forced = {}
    pool.worker_wakes_at = INFINITY
    ring_init(&pool.unbegun)
    ring_init(&pool.short)
    return 0


cdef int forget_background(Core core) except -1:
    """Forget what is done for a pool, in a forked child."""
    cdef pool_t* pool = &core.pool
    core.watches.clear()
    core.kept.clear()
    core.forced.clear()
    pool.jobs = pool.checking = 0
    pool.checks.n = pool.checks_ahead = 0
    pool.checks_go_on = False
    pool.worker_wakes_at = INFINITY
    pool.wake_background = False
    ring_init(&pool.unbegun)
    ring_init(&pool.short)
    return 0


cdef int tell_background(Core core) except -1:
    """Have the workers look whether there is something to do, and those who wait whether they are done."""
    cdef Watch watch
    cdef list watches
    gcp_lock_outer(&core.mutex)
    core.pool.wake_background = False
    watches = core.watches[:]
    gcp_unlock_outer(&core.mutex)
    try:
        for watch in watches:
            watch.look()
        if core.wake_background is not None:
            core.wake_background()
    except BaseException:       # a signal came: the next call has them look
        gcp_lock_outer(&core.mutex)
        core.pool.wake_background = True
        gcp_unlock_outer(&core.mutex)
        raise
    return 0


cpdef Job next_job(BaseConnectionPool pool, bint only_checks=False):
    """Return what is to be done in the background next; it has begun. None: there is nothing to do now.

    :param only_checks: whether it is to be a check
    """
    cdef Core core = pool._core
    cdef Job job
    core.before('job')
    if was_closed(core):
        return None
    job = Job.__new__(Job)
    job.pool = pool
    job.own = NO_ENDPOINT
    context = begin_next(core, job, only_checks)
    if job.ep is None:
        core.after()
        return None
    job.context = Context() if context is None else context.copy()
    if job.is_check and pool._keepalive is not None:
        job.todo = HOOK_KEEPALIVE
    core.after()
    return job


cdef object begin_next(Core core, Job job, bint only_checks):
    """Begin what is to be done next, if there is something, and have another worker look if there is more. Return the
    context variables on whose behalf it is done, or None."""
    cdef pool_t* pool = &core.pool
    cdef endpoint_t* e = NULL
    cdef waiter_t* w
    cdef slot_t* s = NULL
    cdef object context = None
    cdef double now = core.now()
    gcp_lock(&core.mutex)
    pool.now = now
    if not only_checks:
        e = begin_connect(pool)
    if e != NULL:
        w = waiter_of_job(e)
        context = warm_up_context(core, <Endpoint>endpoint_object(e)) if w == NULL else (<Acquire>w.self).context
        begin_job(job, core, <Endpoint>endpoint_object(e), HOOK_CREATE)
        pool.wake_background = True
    else:
        s = begin_check(pool)
    if s != NULL:
        begin_job(job, core, <Endpoint>endpoint_object(s.ep), HOOK_CHECK)
        job.slot = <Slot>slot_object(s)
        job.lease = s.lease
        job.is_check = True
        pool.wake_background = pool.wake_background or needs_another_worker(pool)
    elif e == NULL and not core.workers_rest:
        plan_checks(pool)
        note_time(pool)
    gcp_unlock(&core.mutex)
    return context


cpdef double rest(Core core, double longest) except -1:
    """A worker that has found nothing to do rests. Return until when it keeps the time for the others, by the core's
    clock: then checks are due, and it is to look for them, or call `end_rest` before. inf: it does not.

    :param longest: how long a worker rests at most, seconds
    """
    cdef pool_t* pool = &core.pool
    cdef double now = core.now()
    cdef double when = INFINITY
    gcp_lock(&core.mutex)
    pool.now = now
    plan_checks(pool)
    if pool.worker_wakes_at == INFINITY and pool.checking < most_checks(pool) and checks_due(pool) <= now + longest:
        pool.worker_wakes_at = when = checks_due(pool)
    note_time(pool)
    gcp_unlock(&core.mutex)
    core.after()
    return when


cpdef int end_rest(Core core) except -1:
    """The worker that keeps the time for the others does not rest any more."""
    gcp_lock_outer(&core.mutex)
    core.pool.worker_wakes_at = INFINITY
    gcp_unlock_outer(&core.mutex)
    return 0


cdef void begin_job(Job job, Core core, Endpoint ep, int todo) noexcept:
    job.core = core
    job.began = core.pool.now
    job.epoch = core.pool.epoch
    job.ep = ep
    job.key = ep.key
    job.expiries = ep.e.expiries
    job.todo = todo


cdef int put_off(Job job) except -1:
    """End a job that was not begun, if its endpoint was suspended meanwhile."""
    cdef Core core = job.core
    cdef pool_t* pool = &core.pool
    cdef bint off
    cdef double now
    if job.epoch != pool.epoch or not is_suspended_now(core, job.ep):
        return 0
    core.before('put_off')
    now = core.now()
    gcp_lock(&core.mutex)
    pool.now = now
    off = job.epoch == pool.epoch and suspension(pool, &job.ep.e) != OPEN
    if off and job.slot is None:
        put_off_job(pool, &job.ep.e, job.expiries)
    elif off and job.current():
        put_off_check(pool, &job.slot.s, now)
    gcp_unlock(&core.mutex)
    return job.leave() if off else 0


@cython.final
@cython.no_gc_clear
cdef class Job(Holder):
    """A connect or a check in the background. A driver asks `next`, does that, and tells `completed` or `failed`, until
    `next` returns `TODO_DONE`; whatever leaves the driver goes to `abandon`. No error of a hook is raised: that of a
    connect goes to whom it was to serve, all others are reported."""
    cdef BaseConnectionPool pool
    cdef Endpoint ep
    cdef readonly object key
    cdef readonly object context     # the context variables with which its hooks are to be called
    cdef readonly object own         # for a driver: it has no victims of its own
    cdef readonly bint is_check
    cdef int todo
    cdef uint64_t expiries           # those of its endpoint when it was permitted
    cdef double began
    cdef HookCall call
    cdef Slot fresh                  # allocated before create is called: the record of what it will return
    cdef object newborn              # what an asynchronous create has returned, until it is booked
    cdef bint misused                # its create returned what makes no sense: another try would return the same
    cdef bint ended

    cpdef int next(self) except -1:
        """Return what is to be done now: a hook to call, or `TODO_DONE`."""
        if self.call is None and self.todo != HOOK_ON_DEAD and not self.ended:
            put_off(self)
        return self.todo

    cpdef int completed(self, result=None) except -1:
        """Say that the hook has ended well.

        :param result: what it returned
        """
        cdef int todo = self.todo
        if todo >= N_HOOKS:
            return 0
        if not makes_sense(todo, result):
            self.newborn = None
            self.misused = True
            return self.failed(nonsense(self.pool._manager, todo, result, not isinstance(self.pool, AsyncPool)))
        if todo == HOOK_CREATE:
            return self.created(result)
        if todo == HOOK_ON_DEAD:
            self.end_call(CALL_OK, None)
            return self.discard(DEAD)
        if result is not False:
            self.end_call(CALL_OK, None)
            return self.found_alive()
        self.end_call(CALL_DEAD, None)
        if self.pool._on_connection_dead is None:
            return self.discard(DEAD)
        self.todo = HOOK_ON_DEAD
        return 0

    cpdef int failed(self, error) except -1:
        """Say that the hook has raised an error."""
        cdef int todo = self.todo
        if todo == HOOK_CREATE:
            return self.connect_failed(error)
        explain(self.pool, todo, self.key, error)
        self.end_call(outcome_of(error), error)
        try:
            if isinstance(error, Exception):
                self.pool._report(f'{HOOKS[todo]} failed for', self.key, error)
        finally:
            self.discard(DEAD if todo == HOOK_ON_DEAD else HOOK_FAILED)
        return 0

    cpdef int abandon(self, error) except -1:
        """End a job that a driver left with an error: give back the permit, or discard the connection. Does nothing to
        one that has ended."""
        if not self.ended:
            self.end_call(CALL_CANCELLED, error)
            if self.todo != HOOK_CREATE:
                self.discard(HOOK_FAILED)
            elif not self.keep_newborn():
                self.give_back(CALL_CANCELLED, error, False)
        return 0

    def begin_call(self):
        """Call the asynchronous hook that `next` asked for; return what is to be awaited."""
        self.open_call()
        started = self.call_hook(False)
        self.misused = True
        check_awaitable(self.pool._manager, self.todo, started)
        self.misused = False
        return new_job_creation(self, started) if self.todo == HOOK_CREATE else started

    def make_call(self):
        """Call the blocking hook that `next` asked for, and say how it ended. All in one compiled piece: no signal
        handler can run between a connection's birth and its booking, and lose it."""
        try:
            self.open_call()
            result = self.call_hook(True)
        except BaseException as error:
            self.failed(error)
        else:
            self.completed(result)

    def remaining(self):
        """Return the seconds that are left for the hook; None: there is no limit."""
        cdef double limit = connect_limit(self.core)
        if self.todo != HOOK_CREATE:
            limit = min(limit, CHECK_TIMEOUT)
            allowed = default_timeout(self.pool)
            if allowed is not None and allowed > 0:
                limit = min(limit, <double>allowed)
        return None if limit == INFINITY else max(0.0, self.began + limit - self.core.now())

    def time_to_wait(self):
        """Return for how long to wait for a disposal, seconds: not at all."""
        return 0.0

    @property
    def kind(self):
        """The name of the hook that is to be called."""
        return HOOKS[self.todo] if self.todo < N_HOOKS else 'done'

    # --- hooks ---

    cdef int open_call(self) except -1:
        """A hook is about to be called."""
        if self.todo >= N_HOOKS:
            raise RuntimeError('this job has ended')
        self.began = self.core.now()
        if self.todo == HOOK_CREATE:
            if self.pool._telemetry is not None:
                self.pool._telemetry.recheck()
            have_looked_after(self.pool)
            self.fresh = prepare_booking(self.core, self.ep)
        self.call = new_hook_call(self.core, self.todo, self.key, None, False)
        return self.call.begin()

    cdef int end_call(self, int outcome, error) except -1:
        cdef HookCall call = self.call
        self.call = None
        return 0 if call is None else call.finish(outcome, error)

    cdef object call_hook(self, bint blocking):
        cdef BaseConnectionPool pool = self.pool
        cdef tuple args = (self.key,) if self.slot is None else (self.key, conn_in(self.core, self.slot))
        hook = (
            pool._manager.create if self.todo == HOOK_CREATE else pool._keepalive if self.todo == HOOK_KEEPALIVE
            else pool._check_aliveness if self.todo == HOOK_CHECK else pool._on_connection_dead)
        if not blocking or self.todo == HOOK_ON_DEAD:
            return hook(*args)
        return hook(*args, timeout=self.remaining())

    # --- connects ---

    cdef int created(self, conn) except -1:
        """Book a new connection: it serves the oldest waiter of its endpoint, or is idle."""
        cdef Core core = self.core
        cdef Slot slot = self.fresh
        cdef bint known
        cdef double now
        if slot is None:        # a test that calls no hook
            self.fresh = prepare_booking(self.core, self.ep)
            self.began = core.now()
            slot = self.fresh
        core.before('job_created')
        slot.conn = conn
        slot.endpoint = self.ep.key
        slot.s.conn = <PyObject*>conn
        note_creation(core, slot)
        now = core.now()
        if self.epoch != core.pool.epoch:       # of the parent of a forked child
            self.finish()
            return self.end_call(CALL_CANCELLED, None)
        gcp_lock(&core.mutex)
        core.pool.now = now
        known = table_find(&core.pool.members, <PyObject*>conn) != NULL
        if not known:
            Py_INCREF(slot)                     # the endpoint's
            book_job(&core.pool, &self.ep.e, &slot.s, now, counted(self.call, now - self.began), self.expiries)
        gcp_unlock(&core.mutex)
        self.newborn = None
        if known:
            self.misused = True
            return self.connect_failed(repeated(self.pool._manager, conn))
        self.fresh = None
        forget_error(core, self.ep, True)
        set_trouble(core, self.ep, None)
        self.finish()
        try:
            self.end_call(CALL_OK, None)
        finally:
            core.after()
            dispose_soon(self.pool, 0.0)
        return 0

    cdef bint keep_newborn(self) except -1:
        """Book what an asynchronous `create` returned although something went wrong since."""
        conn, self.newborn = self.newborn, None
        if conn is None or not makes_sense(HOOK_CREATE, conn):
            return False
        self.created(conn)
        return True

    cdef int connect_failed(self, error) except -1:
        """Tell those who wait for the connection that there will be none."""
        if self.keep_newborn():
            return 0
        explain(self.pool, HOOK_CREATE, self.key, error)
        self.end_call(outcome_of(error), error)
        return self.give_back(outcome_of(error), error, True)

    cdef int give_back(self, int outcome, error, bint tell) except -1:
        """Give back the permit of a connect that has failed. Its error goes to the endpoint's oldest waiter, unless
        connects are tried again, and to those who warm the endpoint up.

        :param tell: whether the waiter is told; otherwise it gets another connect
        """
        cdef Core core = self.core
        cdef bint counts = isinstance(error, Exception) and not self.misused
        cdef bint told
        limit_passed(core, error, INFINITY)
        kind = classify(self.pool, self.key, error) if counts else None
        kept = kept_error(error)
        core.before('job_failed')
        self.finish()
        if self.epoch != core.pool.epoch:
            return 0
        set_trouble(core, self.ep, kept)
        set_error_of(core, self.ep, kept)
        told = tell and self.note_error(kept, kind is ErrorClass.PERMANENT)
        told = self.report_failed(outcome, kept, kind, counts, tell) or told
        forget_error(core, self.ep, False)
        core.after()
        if not told and not was_closed(core) and isinstance(error, Exception):
            self.pool._report('create failed in the background for', self.key, error)
        return 0

    cdef bint note_error(self, error, bint permanent) except -1:
        """Tell those who warm the endpoint up, unless another try is made. Returns whether there was one to tell."""
        cdef Core core = self.core
        cdef Watch watch
        cdef bint told = False
        gcp_lock(&core.mutex)
        if core.pool.retries and not permanent and not self.misused:
            told = warm_up_context(core, self.ep) is not None
        else:
            for watch in core.watches:
                told = watch.note_error(self.ep, error) or told
        gcp_unlock(&core.mutex)
        return told

    cdef bint report_failed(self, int outcome, error, kind, bint counts, bint tell) except -1:
        """Report a failed connect to the core, with what its manager says of it. Returns whether a waiter is told."""
        cdef Core core = self.core
        cdef pool_t* pool = &core.pool
        cdef endpoint_t* e = &self.ep.e
        cdef bint told
        cdef double now = core.now()
        gcp_lock(&core.mutex)
        pool.now = now
        count_hook_call(&pool.metrics, HOOK_CREATE, outcome, now - self.began)
        if kind is ErrorClass.STALE:
            expire_endpoint(pool, e)
        told = e.waiting > 0 and pool.retries and counts
        if tell and e.waiting and not first_waiter(e).creates and not (pool.retries and counts):
            fail_waiter(pool, e)
            told = True
        end_stale_connect(pool, e, self.expiries)
        fail_job(pool, e, counts, kind is ErrorClass.PERMANENT)
        tell_woken(pool, error)
        gcp_unlock(&core.mutex)
        return told

    # --- checks ---

    cdef int found_alive(self) except -1:
        """Return a connection that is alive: it serves the oldest waiter, or is idle again."""
        cdef Core core = self.core
        cdef double now
        core.before('job_checked')
        now = core.now()
        gcp_lock(&core.mutex)
        if self.current():
            end_check(&core.pool, &self.slot.s, now, now - self.began)
        gcp_unlock(&core.mutex)
        return self.leave()

    cdef int discard(self, int reason) except -1:
        """Make the connection a victim."""
        cdef Core core = self.core
        cdef double now
        core.before('job_discard')
        now = core.now()
        gcp_lock(&core.mutex)
        core.pool.now = now
        if self.current():
            stop_checking(&core.pool, &self.ep.e)
            discard_slot(&core.pool, &self.slot.s, reason)
        gcp_unlock(&core.mutex)
        return self.leave()

    cdef int leave(self) except -1:
        self.slot = None
        self.finish()
        self.core.after()
        return dispose_soon(self.pool, 0.0)

    # --- the end ---

    cdef void finish(self) noexcept:
        self.ended = True
        self.todo = DO_DONE

    def __dealloc__(self):
        # Dropped in the middle: its permit, or its connection, goes back with the next call.
        if self.core is not None and not self.ended and self.epoch == self.core.pool.epoch:
            abandon_job(self)
