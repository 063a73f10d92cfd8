# Steering: what an operator does with endpoints in use. Expiring what was opened before now, and suspending; the
# waiting for either is in watch.

from gcp.core.connects cimport expire_endpoint
from gcp.core.platform cimport gcp_lock, gcp_lock_outer, gcp_unlock, gcp_unlock_outer
from gcp.core.state cimport ACQUIRES_FAIL, ACQUIRES_WAIT, OPEN, endpoint_t, pool_t, suspension
from gcp.core.stripes cimport count_used
from gcp.core.steering cimport (
    count_drain, expire_every_endpoint, resume_all, resume_endpoint, suspend_all, suspend_endpoint,
)

cdef dict SUSPEND_MODES = {'wait': <int>ACQUIRES_WAIT, 'raise': <int>ACQUIRES_FAIL}


cdef int follow_up_soon(BaseConnectionPool pool) except -1:
    """Wake those that are served now, and have what was expired disposed of: in the pool's event loop, if it has
    one."""
    if isinstance(pool, AsyncPool) and not is_in_its_loop(<AsyncPool>pool):
        return follow_up_later(<AsyncPool>pool)
    follow_up(pool)
    return 0


ctypedef void (*steer_one_t)(pool_t*, endpoint_t*) noexcept nogil
ctypedef void (*steer_all_t)(pool_t*) noexcept nogil


cdef int steer(BaseConnectionPool pool, key, str transition, steer_one_t one, steer_all_t every) except -1:
    """Make a transition of one endpoint, or of all, and what follows from it.

    :param key: the endpoint; None: all. Of one that the pool does not know, nothing is to be done
    """
    cdef Core core = pool._core
    cdef Endpoint ep = None if key is None else known_endpoint(core, key)
    cdef double now
    if key is not None and ep is None:
        return 0
    core.before(transition)
    now = core.now()
    gcp_lock(&core.mutex)
    core.pool.now = now
    if ep is None:
        every(&core.pool)
    else:
        one(&core.pool, &ep.e)
    gcp_unlock(&core.mutex)
    return follow_up_soon(pool)


# --- expire ---

def expire_connections(BaseConnectionPool pool, key):
    """Let no connection be handed out again that was opened before now.

    :param key: the endpoint; None: all. One that is not known has none
    """
    steer(pool, key, 'expire_connections', expire_endpoint, expire_every_endpoint)


def begin_expiry(BaseConnectionPool pool, timeout, event):
    """Begin to wait until all connections that were expired are gone."""
    cdef Watch watch = new_watch(pool, EXPIRY, timeout)
    watch.event = event
    add_watch(watch)
    return watch


cdef int conclude_expiry(Watch watch) except -1:
    cdef Py_ssize_t stale
    gcp_lock_outer(&watch.core.mutex)
    stale = watch.core.pool.stale
    gcp_unlock_outer(&watch.core.mutex)
    if stale:
        raise TimeoutError(
            f'{watch.name}: {stale} connections that were opened before expire() are not gone within '
            f'{watch.timeout:g} s: they are held, or being created or disposed of')
    return 0


# --- suspend ---

def begin_suspension(BaseConnectionPool pool, key, mode, drain, timeout, event):
    """Suspend an endpoint, or all.

    :param key: the endpoint, known or not; None: all
    :param mode: 'wait' or 'raise': what acquires do
    :param drain: whether to wait until no connection is held
    :param event: set when there may be none
    :return: what to wait for, or None
    """
    cdef Core core = pool._core
    cdef Watch watch = new_watch(pool, DRAIN, timeout)
    cdef Endpoint ep
    if mode not in ('wait', 'raise'):
        raise ValueError(f"mode must be 'wait' or 'raise', not {mode!r}")
    if not isinstance(drain, bool):
        raise TypeError(f'wait must be True or False, not {type(drain).__name__}: {drain!r}')
    if key is not None:
        check_hashable(key)
    core.before('suspend')
    ep = suspend(core, key, SUSPEND_MODES[mode], drain)
    watch.event = event
    if drain:
        if ep is not None:
            watch.records[ep] = 0
        add_watch(watch)
    follow_up_soon(pool)
    return watch if drain else None


cdef Endpoint suspend(Core core, key, int mode, bint drain):
    """Suspend an endpoint, which is registered for that, or all. Returns its record."""
    cdef Endpoint ep = None
    cdef double now
    while True:
        if key is not None:
            ep = register_endpoint(core, key)
        now = core.now()
        gcp_lock(&core.mutex)
        if ep is None or ep.e.listed:
            break
        gcp_unlock(&core.mutex)
    core.pool.now = now
    if ep is None:
        suspend_all(&core.pool, mode)
    else:
        suspend_endpoint(&core.pool, &ep.e, mode)
    if drain:
        count_drain(&core.pool, 1)
    gcp_unlock(&core.mutex)
    return ep


def resume_endpoints(BaseConnectionPool pool, key):
    """End a suspension.

    :param key: the endpoint; None: all, and each that is suspended by itself
    """
    steer(pool, key, 'resume', resume_endpoint, resume_all)


cdef bint is_suspended(Watch watch) except -1:
    """Whether what a caller suspended still is. Within the lock."""
    cdef Endpoint ep
    if not watch.records:
        return watch.core.pool.suspended != OPEN
    for ep in watch.records:
        if suspension(&watch.core.pool, &ep.e) == OPEN:
            return False
    return True


cdef bint is_drained(Watch watch) except -1:
    """Whether nothing is held of what a caller suspended. Within the lock."""
    cdef Endpoint ep
    if not watch.records:
        return count_used(&watch.core.pool) + watch.core.pool.creating == 0
    for ep in watch.records:
        if ep.e.n_used + ep.e.creating:
            return False
    return True


cdef int conclude_drain(Watch watch) except -1:
    cdef Core core = watch.core
    cdef Endpoint ep
    cdef Py_ssize_t held
    cdef bint drained, suspended
    gcp_lock(&core.mutex)
    drained, suspended = is_drained(watch), is_suspended(watch)
    held = count_used(&core.pool) + core.pool.creating
    for ep in watch.records:
        held = ep.e.n_used + ep.e.creating
    gcp_unlock(&core.mutex)
    if drained:
        return 0
    if not suspended:
        raise RuntimeError(f'{watch.name} was resumed before all connections were released')
    raise TimeoutError(
        f'{watch.name} is suspended, but {held} connections are still held, or being created, after '
        f'{watch.timeout:g} s')


# --- what acquires are told ---

cdef str what_is_suspended(Core core, key, Endpoint ep):
    """Say what is suspended: an endpoint by itself, or the pool."""
    cdef bint by_itself = False
    if ep is not None:
        gcp_lock_outer(&core.mutex)
        by_itself = ep.e.suspended != OPEN
        gcp_unlock_outer(&core.mutex)
    return f'endpoint {describe(key)} is suspended' if by_itself else 'the pool is suspended'


cdef object suspended(Acquire acquire):
    """Make the error of an acquire that may not wait, because its endpoint is suspended."""
    cdef bint queued = acquire.tried or acquire.w.queued
    cdef str why = what_is_suspended(acquire.core, acquire.key, acquire.ep)
    return PoolSuspendedError(
        f'{acquire.pool.name}: no connection to {describe(acquire.key)}: {why}',
        pool=acquire.pool.name, endpoint=acquire.key, phase='waiting' if queued else 'admission')
