# Limits: the pool's, which may change while it is in use, and those of single endpoints, for which a mapping or a
# function of the caller is asked. That runs user code, so it happens outside the lock.

from gcp.core.platform cimport gcp_lock_outer, gcp_unlock_outer
from gcp.core.state cimport limits_t, pool_t


cdef extern from "Python.h":
    cdef Py_ssize_t PY_SSIZE_T_MAX

cdef double NEVER = INFINITY
cdef tuple RETRY = (0.1, 5.0, 2.0, 0.2)      # the delays of a breaker's probes where connects are not retried
cdef Py_ssize_t LOGGED_AT_MOST = 10000       # endpoints whose limits could not be determined

#: the limits of a core that were not given
cdef dict DEFAULT_LIMITS = {
    'max_size': 10, 'total_max_size': 100, 'min_idle': 1, 'idle_timeout': 60.0, 'max_lifetime': 3600.0,
    'lifetime_jitter': 0.05, 'leak_threshold': NEVER, 'max_uses': None, 'keepalive_interval': NEVER,
    'check_interval': 0.0, 'refill': False, 'connect_workers': 0, 'connect_timeout': None, 'max_connecting': None,
    'max_connecting_total': None, 'connect_retry': None, 'breaker_threshold': None, 'max_waiting': None,
    'admission': None, 'reserve': 0, 'reserve_timeout': NEVER,
}


cdef dict limits_among(options):
    """Return the options that the core knows."""
    return {name: getattr(options, name) for name in DEFAULT_LIMITS}


cdef Py_ssize_t no_more_than(limit) except? -1:
    """Return a limit of a number; None: there is none."""
    return PY_SSIZE_T_MAX if limit is None else limit


cdef int set_pool_limits(pool_t* pool, dict limits) except -1:
    """Set a pool's limits, all of them."""
    cdef str unknown = ', '.join(limits.keys() - DEFAULT_LIMITS.keys())
    if unknown:
        raise TypeError(f'a core has no limit {unknown}')
    pool.max_size = limits['max_size']
    pool.total_max_size = limits['total_max_size']
    pool.min_idle = limits['min_idle']
    pool.idle_timeout = limits['idle_timeout']
    pool.max_lifetime = limits['max_lifetime']
    pool.jitter = limits['lifetime_jitter']
    pool.leak_after = limits['leak_threshold']
    pool.max_uses = limits['max_uses'] or 0
    pool.keepalive_interval = limits['keepalive_interval']
    pool.check_interval = limits['check_interval']
    pool.refills = limits['refill']
    pool.skips_checks = limits['check_interval'] > 0
    pool.connect_workers = limits['connect_workers']
    pool.connect_timeout = NEVER if limits['connect_timeout'] is None else limits['connect_timeout']
    pool.max_connecting = no_more_than(limits['max_connecting'])
    pool.max_connecting_total = no_more_than(limits['max_connecting_total'])
    pool.retries = limits['connect_retry'] is not None
    pool.retry_initial, pool.retry_maximum, pool.retry_factor, pool.retry_jitter = limits['connect_retry'] or RETRY
    pool.breaker_threshold = limits['breaker_threshold'] or 0
    pool.max_waiting = no_more_than(limits['max_waiting'])
    pool.reserve = limits['reserve']
    pool.reserve_timeout = limits['reserve_timeout']
    pool.admits_by_deadline = limits['admission'] == 'deadline'
    return 0


# --- of single endpoints ---

cdef limits_t own_limits(Core core, key, limits_of) except *:
    """Return the limits that an endpoint is given. Runs user code. If it fails, the pool's limits hold: it is counted,
    and logged once for each endpoint."""
    cdef limits_t own
    cdef object given = None
    forget_limits(&own)
    if limits_of is None:
        return own
    try:
        given = limits_of(key)
    except Exception as error:
        limits_failed(core, key, error)
    if given is not None:
        (own.max_size, own.min_idle, own.idle_timeout, own.max_lifetime, own.max_waiting, own.weight,
         own.floor, own.reserve) = given
    return own


cdef int limits_failed(Core core, key, error) except -1:
    cdef bint first
    cdef object mark = hash(key)        # not the key, which would be kept alive
    gcp_lock_outer(&core.mutex)
    core.pool.metrics.limits_errors += 1
    first = mark not in core.limits_failed_for
    if first:
        if len(core.limits_failed_for) >= LOGGED_AT_MOST:
            core.limits_failed_for.clear()
        core.limits_failed_for.add(mark)
    gcp_unlock_outer(&core.mutex)
    if first and core.report is not None:
        core.report('limits failed for', key, error)
    return 0
