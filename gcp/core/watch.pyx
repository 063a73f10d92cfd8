# What a caller waits for while it happens in the background: that endpoints are warmed up, that the pool is ready, that
# an endpoint is retired, that suspended endpoints hold no connection, that what was expired is gone.

from gcp.core.jobs cimport end_retirement, keep, next_job_at, retire_endpoint
from gcp.core.platform cimport gcp_lock, gcp_lock_outer, gcp_unlock, gcp_unlock_outer
from gcp.core.scheduling cimport note_if_empty
from gcp.core.ring cimport ring_t
from gcp.core.state cimport RETIRED, USED, base_size, cap, endpoint_t, slot_in_endpoint, slot_t, taken
from gcp.core.steering cimport count_drain
from gcp.core.transitions cimport take_from_holders

cdef int MOST_FORCED = 1000     # holders

cdef enum watch_kind:
    WARM_UP, READINESS, RETIREMENT, DRAIN, EXPIRY


cdef inline Py_ssize_t ready(endpoint_t* e) noexcept nogil:
    """Return how many connections an endpoint has."""
    return e.n_base + e.n_extra + e.n_used


@cython.final
cdef class Watch:
    """What a caller waits for. Its driver asks `done`, and waits for its event as long as `time_to_wait` says; then it
    calls `close`, and `conclude`, which raises what is to be raised."""
    cdef Core core
    cdef str name            # the pool's
    cdef int kind
    cdef uint64_t epoch
    cdef dict records        # Endpoint: how many connections it is to have
    cdef dict errors         # the first error of each endpoint that is warmed up
    cdef double deadline
    cdef object timeout
    cdef object context
    cdef public object event  # set when there may be something new

    def done(self):
        """Return whether there is nothing left to wait for."""
        cdef Core core = self.core
        cdef bint over, due
        cdef double now
        core.before('watch')
        if (self.kind != EXPIRY and was_closed(core)) or self.epoch != core.pool.epoch:
            return True
        now = core.now()
        gcp_lock(&core.mutex)
        over = self.is_over()
        due = next_job_at(&core.pool) <= now
        gcp_unlock(&core.mutex)
        if due and core.wake_background is not None:
            core.wake_background()      # a pool without a collector has nothing else that tells the time
        return over

    def time_to_wait(self):
        """Return for how long to wait at most, seconds: until the deadline, or until a connect is to be tried again.
        0: the time is over."""
        cdef Core core = self.core
        cdef double when
        cdef double now = core.now()
        gcp_lock(&core.mutex)
        when = next_job_at(&core.pool)
        gcp_unlock(&core.mutex)
        if now >= self.deadline:
            return 0.0
        return max(0.001, min(when, self.deadline) - now)

    def close(self):
        """Stop waiting."""
        cdef Core core = self.core
        cdef Endpoint ep
        cdef list records = list(self.records)
        cdef bint ours
        gcp_lock(&core.mutex)
        ours = self in core.watches
        if ours:
            core.watches.remove(self)
        for ep in records if ours else ():
            if self.kind == WARM_UP:
                ep.e.wanted = wanted_of(core, ep)
            elif self.kind == RETIREMENT and not is_being_retired(core, ep):
                end_retirement(&core.pool, &ep.e)
        if ours and self.kind == DRAIN:
            count_drain(&core.pool, -1)
        gcp_unlock(&core.mutex)
        core.after()

    def missing(self):
        """Return how many connections are missing, by endpoint."""
        cdef Core core = self.core
        cdef Endpoint ep
        cdef list found = []
        cdef Py_ssize_t size
        gcp_lock(&core.mutex)
        if self.kind == READINESS:
            for ep in core.kept:
                size = base_size(&ep.e)
                if ready(&ep.e) < size:
                    found.append((ep, size - ready(&ep.e)))
        for ep, wanted in self.records.items():
            size = min(<Py_ssize_t>wanted, cap(&ep.e))
            if ready(&ep.e) < size and ep not in self.errors:
                found.append((ep, size - ready(&ep.e)))
        gcp_unlock(&core.mutex)
        return {(<Endpoint>ep).key: size for ep, size in found}

    def conclude(self):
        """Raise what has gone wrong, if something has.

        :raises ConnectionPoolClosedError: if the pool was closed meanwhile
        :raises PoolNotReadyError: if connections are missing, and no error says why
        :raises TimeoutError: if time ran out before what was suspended, or expired, was released
        """
        if self.kind == RETIREMENT or self.epoch != self.core.pool.epoch:
            return
        if self.kind == EXPIRY:
            conclude_expiry(self)
            return
        if was_closed(self.core):
            raise ConnectionPoolClosedError(f'{self.name} was closed meanwhile')
        if self.kind == DRAIN:
            conclude_drain(self)
            return
        missing = self.missing()
        if not missing or not self.late():
            return
        listed = ', '.join([f'{describe(key)}: {n} missing' for key, n in missing.items()])
        raise PoolNotReadyError(f'{self.name} is not ready: {listed}', missing=missing) from self.cause(missing)

    def raised(self):
        """Return the errors of the endpoints that could not be warmed up, one each."""
        gcp_lock(&self.core.mutex)
        errors = list(self.errors.values())
        gcp_unlock(&self.core.mutex)
        return [own_error(error, None) for error in errors]

    def force(self):
        """Take the connections of an endpoint that is being retired from their holders."""
        cdef Core core = self.core
        cdef Endpoint ep
        cdef double now
        core.before('force')
        now = core.now()
        gcp_lock(&core.mutex)
        core.pool.now = now
        forgotten = []              # what is remembered no more may die, but not within the lock
        for ep in self.records:
            remember_forced(core, &ep.e, forgotten)
            take_from_holders(&core.pool, &ep.e, RETIRED)
        gcp_unlock(&core.mutex)
        core.after()

    # --- for the core ---

    cdef bint late(self) except -1:
        return self.core.now() >= self.deadline

    cdef object cause(self, missing):
        """Return the last error of an endpoint of which connections are missing."""
        cdef Endpoint ep
        for key in missing:
            ep = find_endpoint(self.core, key)
            if ep is not None:
                gcp_lock_outer(&self.core.mutex)
                trouble = ep.trouble
                gcp_unlock_outer(&self.core.mutex)
                if trouble is not None:
                    return own_error(trouble, None)
        return None

    cdef int look(self) except -1:
        """Wake the caller: it looks whether there is something new."""
        cdef Core core = self.core
        cdef bint over = self.kind == WARM_UP or was_closed(core)
        if not over:
            gcp_lock(&core.mutex)
            over = self.is_over()
            gcp_unlock(&core.mutex)
        if over:
            set_event(self.event)
        return 0

    cdef bint is_over(self) except -1:
        """Whether what it waits for has come. Within the lock."""
        cdef Endpoint ep
        if self.kind == EXPIRY:
            return self.core.pool.stale == 0
        if self.kind == DRAIN:
            return is_drained(self) or not is_suspended(self)
        if self.kind == READINESS:
            for ep in self.core.kept:
                if ready(&ep.e) < base_size(&ep.e):
                    return False
            return True
        for ep, size in self.records.items():
            if self.kind == RETIREMENT:
                if ep.e.listed and taken(&ep.e) > ep.e.reserved:
                    return False
            elif ep in self.errors:
                if ep.e.jobs:
                    return False
            elif size > 0:
                size = min(size, cap(&ep.e))        # it may have shrunk
                if ep.e.retiring or not ep.e.listed or ready(&ep.e) >= size:
                    self.records[ep] = 0        # once it was warm, it is done
                else:
                    return False
        return True

    cdef bint note_error(self, Endpoint ep, error) except -1:
        """Note the error of a connect. Returns whether its caller will raise it. Within the lock."""
        if self.kind != WARM_UP or self.records.get(ep, 0) == 0:
            return False
        if ep in self.errors:
            return False
        self.errors[ep] = error
        ep.e.wanted = wanted_of(self.core, ep)
        return True


cdef int add_watch(Watch watch) except -1:
    """Have a watch told of what happens. The list changes within the lock."""
    gcp_lock(&watch.core.mutex)
    watch.core.watches.append(watch)
    gcp_unlock(&watch.core.mutex)
    return 0


cdef int remember_forced(Core core, endpoint_t* e, list forgotten) except -1:
    """Remember connections that are about to be taken from their holders: releasing those does nothing then. Those of
    MOST_FORCED holders that never release are remembered, no more. Within the lock.

    :param forgotten: gets what is remembered no more
    """
    cdef ring_t* node = e.used.next
    cdef slot_t* s
    while node != &e.used:
        s = slot_in_endpoint(node)
        node = node.next
        if s.acquired and s.state == USED:
            s.forced = True
            key = <size_t>s.conn
            forgotten.append(core.forced.pop(key, None))
            core.forced[key] = <object>s.conn
    while len(core.forced) > MOST_FORCED:
        forgotten.append(core.forced.pop(next(iter(core.forced))))
    return 0


cdef int wanted_of(Core core, Endpoint ep) except -1:
    """Return to how many connections an endpoint is to be brought by the warm-ups in progress. Within the lock."""
    cdef Watch watch
    cdef int most = 0
    for watch in core.watches:
        if watch.kind == WARM_UP and ep not in watch.errors:
            most = max(most, <int>watch.records.get(ep, 0))
    return most


cdef object warm_up_context(Core core, Endpoint ep):
    """Return the context variables of a warm-up of an endpoint, or None. Within the lock."""
    cdef Watch watch
    for watch in core.watches:
        if watch.kind == WARM_UP and watch.records.get(ep, 0):
            return watch.context
    return None


cdef bint is_being_retired(Core core, Endpoint ep) except -1:
    """Whether a retirement of an endpoint is in progress. Within the lock."""
    cdef Watch watch
    for watch in core.watches:
        if watch.kind == RETIREMENT and ep in watch.records:
            return True
    return False


cdef Watch new_watch(BaseConnectionPool pool, int kind, timeout):
    cdef Watch watch = Watch.__new__(Watch)
    timeout = check_timeout(timeout)
    watch.core = pool._core
    watch.name = pool.name
    watch.kind = kind
    watch.epoch = watch.core.pool.epoch
    watch.records = {}
    watch.context = copy_context()
    watch.errors = {}
    watch.timeout = timeout
    watch.deadline = INFINITY if timeout is None else watch.core.now() + max(0.0, <double>timeout)
    if kind != RETIREMENT and kind != EXPIRY and was_closed(watch.core):
        raise ConnectionPoolClosedError(f'{pool.name} is closed')
    return watch


def begin_warm_up(BaseConnectionPool pool, tuple keys, size, timeout, event):
    """Begin to warm endpoints up; they are kept from now on.

    :param size: how many connections each is to have; None: `min_idle`
    :param timeout: seconds; None: no limit
    :param event: set when it may be done
    :raises ValueError: if `size` is above a cap
    :raises EndpointRetiredError: if one of them is being retired
    """
    cdef Core core = pool._core
    cdef Watch watch = new_watch(pool, WARM_UP, timeout)
    cdef Endpoint ep
    watch.event = event
    for key in keys:
        check_hashable(key)
    check_size(pool, size)
    core.before('warm_up')
    for key in keys:
        ep = register_endpoint(core, key)
        watch.records[ep] = limits_now(core, ep)[1] if size is None else size
    try:
        check_sizes(watch)
    except BaseException:
        gcp_lock(&core.mutex)
        for ep in watch.records:
            note_if_empty(&core.pool, &ep.e)
        gcp_unlock(&core.mutex)
        core.after()
        raise
    try:
        keep_all(core, watch)
    except BaseException:
        watch.close()
        raise
    core.after()
    return watch


cdef int keep_all(Core core, Watch watch) except -1:
    """Keep the endpoints of a warm-up. One that another thread has used meanwhile, and that was dropped, is registered
    again."""
    cdef dict records = watch.records
    watch.records = {}
    add_watch(watch)
    for ep, wanted in records.items():
        while not keep_endpoint(core, watch, ep, wanted):
            ep = register_endpoint(core, (<Endpoint>ep).key)
    return 0


cdef bint keep_endpoint(Core core, Watch watch, Endpoint ep, int wanted) except -1:
    """Keep an endpoint, and have it brought to so many connections. Returns False if its record was dropped."""
    cdef bint listed
    gcp_lock(&core.mutex)
    listed = ep.e.listed
    if listed:
        watch.records[ep] = wanted
        ep.e.wanted = max(ep.e.wanted, wanted)
        ep.e.refill_at = ep.e.refill_steps = 0
        keep(&core.pool, &ep.e)
        core.kept[ep] = None
    gcp_unlock(&core.mutex)
    return listed


cdef int check_size(BaseConnectionPool pool, size) except -1:
    """Check how many connections an endpoint is to be warmed up to."""
    if size is None:
        return 0
    if isinstance(size, bool) or not hasattr(size, '__index__'):
        raise TypeError(f'size must be a whole number or None, not {type(size).__name__}: {size!r}')
    if size < 0:
        raise ValueError(f'size must be at least 0, not {size}')
    most = pool._core.limits[0]
    if size > most:
        raise ValueError(f'size={size} is more than total_max_size={most}')
    return 0


cdef int check_sizes(Watch watch) except -1:
    """Check that endpoints can be warmed up to their sizes."""
    cdef Core core = watch.core
    cdef Endpoint ep
    for ep, size in watch.records.items():
        if is_retiring(core, ep):
            raise EndpointRetiredError(f'{watch.name}: endpoint {describe(ep.key)} is being retired', endpoint=ep.key)
        most = limits_now(core, ep)[0]
        if size > most:
            raise ValueError(f'size={size} is more than max_size={most} of endpoint {describe(ep.key)}')
    total = sum(watch.records.values())
    most = core.limits[0]
    if total > most:
        raise ValueError(
            f'size: {total} connections of {len(watch.records)} endpoints are more than total_max_size={most}')
    return 0


def begin_readiness(BaseConnectionPool pool, timeout, event):
    """Begin to wait until each kept endpoint has its `min_idle` connections."""
    cdef Watch watch = new_watch(pool, READINESS, timeout)
    watch.event = event
    add_watch(watch)
    return watch


cdef object refused(Acquire acquire):
    """Make the error of an acquire whose endpoint is being retired."""
    return EndpointRetiredError(
        f'{acquire.pool.name}: endpoint {describe(acquire.key)} is being retired: it takes no new acquires',
        endpoint=acquire.key)


def begin_retirement(BaseConnectionPool pool, key, timeout, event):
    """Begin to retire an endpoint: it takes no new acquires until this has ended.

    :raises ConnectionPoolNotFound: if the pool does not know it
    """
    cdef Core core = pool._core
    cdef Watch watch = new_watch(pool, RETIREMENT, timeout)
    cdef Endpoint ep
    cdef double now
    watch.event = event
    core.before('retire')
    ep = known_endpoint(core, key)
    if ep is None:
        if was_closed(core):
            return watch
        raise ConnectionPoolNotFound(f'{pool.name}: there is no endpoint {describe(key)} to retire')
    watch.records[ep] = 0
    now = core.now()
    gcp_lock(&core.mutex)
    core.watches.append(watch)
    core.kept.pop(ep, None)
    core.pool.now = now
    retire_endpoint(&core.pool, &ep.e)
    gcp_unlock(&core.mutex)
    core.after()
    return watch
