# What a pool has counted, as plain values: one consistent copy, made under the lock and formatted after it.

from gcp.core.closing cimport write_off
from gcp.core.histogram cimport N_AGE_BOUNDS, N_USE_BOUNDS, N_WAIT_BOUNDS, gcp_ages, gcp_seconds, histogram_t
from gcp.core.permits cimport endpoint_may_connect, pool_may_connect
from gcp.core.platform cimport gcp_lock, gcp_unlock
from gcp.core.ring cimport ring_t
from gcp.core.scheduling cimport find_leaks
from gcp.core.state cimport (
    CALL_DEAD, HIT, HOOK_CHECK, HOOK_KEEPALIVE, N_HOOKS, N_HOOK_OUTCOMES, N_OUTCOMES, N_REASONS, N_RESULTS, base_size,
    cap, counters_t, endpoint_link, endpoint_t, first_waiter, idle_limit, lifetime, limits_t, metrics_t, pool_t,
    queue_limit, slot_in_endpoint, taken,
)

REASONS = (
    'idle_timeout', 'max_lifetime', 'dead', 'discarded', 'evicted', 'pool_closed', 'error', 'expired', 'max_uses',
    'retired',
)
RESULTS = ('hit', 'created', 'waited', 'timeout', 'cancelled', 'error', 'rejected')
CONNECT_FAILURES = ('transient', 'permanent')
BREAKER_STATES = ('closed', 'open', 'half_open')
OUTCOMES = ('handoff', 'discarded', 'idle')


cdef tuple bounds_of(const double* bounds, int n):
    cdef int i
    return tuple([bounds[i] for i in range(n)])


WAIT_BOUNDS = bounds_of(gcp_seconds, N_WAIT_BOUNDS)
USE_BOUNDS = bounds_of(gcp_seconds, N_USE_BOUNDS)
AGE_BOUNDS = bounds_of(gcp_ages, N_AGE_BOUNDS)


cdef struct counts_t:
    PyObject* key
    Py_ssize_t idle
    Py_ssize_t used
    Py_ssize_t creating
    Py_ssize_t disposing
    Py_ssize_t waiting
    Py_ssize_t connect_queue
    Py_ssize_t missing
    limits_t limits
    counters_t counters
    int failures
    int breaker
    double retry_at


cdef struct oldest_t:
    double waiter            # when it began to wait, by the core's clock; inf: none waits
    double use               # when the longest held connection was acquired; inf: none is held


cdef void add_counters(counters_t* to, counters_t* more) noexcept nogil:
    cdef int i
    to.created += more.created
    to.leaks += more.leaks
    for i in range(2):
        to.connect_failures[i] += more.connect_failures[i]
    for i in range(<int>N_REASONS):
        to.closed[i] += more.closed[i]
    for i in range(<int>N_RESULTS):
        to.acquires[i] += more.acquires[i]
    for i in range(<int>N_OUTCOMES):
        to.releases[i] += more.releases[i]


cdef limits_t limits_of_endpoint(endpoint_t* e) noexcept nogil:
    """Return the limits that hold for an endpoint."""
    cdef limits_t limits
    limits.max_size = cap(e)
    limits.min_idle = base_size(e)
    limits.idle_timeout = idle_limit(e)
    limits.max_lifetime = lifetime(e)
    limits.max_waiting = queue_limit(e)
    limits.weight = e.weight
    limits.floor = e.floor
    return limits


cdef Py_ssize_t connect_queue(pool_t* pool, endpoint_t* e) noexcept nogil:
    """Return how many acquires wait until their endpoint may connect: a limit of connects or a retry delay forbids it,
    not its cap."""
    if taken(e) - e.reserved >= cap(e) or (endpoint_may_connect(pool, e) and pool_may_connect(pool)):
        return 0
    return e.waiting


cdef Py_ssize_t missing(pool_t* pool, endpoint_t* e) noexcept nogil:
    """Return how many connections an endpoint lacks of its `min_idle`, if the pool is to open them: it refills kept
    endpoints, or a warm-up is in progress."""
    if not e.kept or not (pool.refills or e.wanted):
        return 0
    return max(0, base_size(e) - e.n_base - e.n_extra - e.n_used)


cdef void copy_endpoint(pool_t* pool, endpoint_t* e, counts_t* copy) noexcept nogil:
    copy.key = e.key
    copy.idle = e.n_base + e.n_extra + e.checking
    copy.used = e.n_used - e.checking
    copy.creating = e.creating
    copy.disposing = e.disposing
    copy.waiting = e.waiting
    copy.connect_queue = connect_queue(pool, e)
    copy.missing = missing(pool, e)
    copy.limits = limits_of_endpoint(e)
    copy.counters = e.counters
    copy.failures = e.failures
    copy.breaker = 0 if not e.broken else 2 if e.creating + e.reserved else 1
    copy.retry_at = e.retry_at if e.delayed else 0.0


cdef void copy_total(pool_t* pool, counts_t* copy) noexcept nogil:
    copy.key = NULL
    copy.idle = pool.idle + pool.checking
    copy.used = pool.used - pool.checking
    copy.creating = pool.creating
    copy.disposing = pool.disposing
    copy.waiting = pool.waiting
    copy.counters = pool.retired


cdef oldest_t find_oldest(pool_t* pool) noexcept nogil:
    """Find the longest waiting acquire and the longest held connection."""
    cdef oldest_t oldest
    cdef ring_t* node = pool.endpoints.next
    cdef endpoint_t* e
    oldest.waiter = oldest.use = INFINITY
    while node != &pool.endpoints:
        e = endpoint_link(node)
        node = node.next
        if e.waiting and first_waiter(e).began < oldest.waiter:
            oldest.waiter = first_waiter(e).began
        if e.n_used > e.checking and slot_in_endpoint(e.used.next).since < oldest.use:
            oldest.use = slot_in_endpoint(e.used.next).since
    return oldest


# --- as plain values ---

cdef tuple histogram_of(histogram_t* histogram, int n):
    """Return a histogram as ``(counts, sum)``."""
    cdef int i
    return tuple([histogram.counts[i] for i in range(n + 1)]), histogram.sum


cdef dict metrics_of(metrics_t* metrics):
    """Return what was timed. Only a check can find a connection dead."""
    cdef int i, j
    return {
        'use': histogram_of(&metrics.use, N_USE_BOUNDS),
        'wait': histogram_of(&metrics.wait, N_WAIT_BOUNDS),
        'age': histogram_of(&metrics.age, N_AGE_BOUNDS),
        'limits_errors': metrics.limits_errors,
        'hook_time': {
            HOOKS[i]: {
                'ok': histogram_of(&metrics.hook_time[i], N_WAIT_BOUNDS),
                'failed': histogram_of(&metrics.failed_hook_time[i], N_WAIT_BOUNDS),
            }
            for i in range(<int>N_HOOKS)
        },
        'hook_calls': {
            HOOKS[i]: {
                HOOK_OUTCOMES[j]: metrics.hook_calls[i][j]
                for j in range(<int>N_HOOK_OUTCOMES) if j != CALL_DEAD or i == HOOK_CHECK or i == HOOK_KEEPALIVE
            }
            for i in range(<int>N_HOOKS)
        },
    }


cdef dict counts_of(counts_t* copy):
    return {
        'idle': copy.idle,
        'used': copy.used,
        'creating': copy.creating,
        'disposing': copy.disposing,
        'waiting': copy.waiting,
        'created': copy.counters.created,
        'leaks': copy.counters.leaks,
        'closed': {REASONS[i]: copy.counters.closed[i] for i in range(<int>N_REASONS)},
        'acquires': {RESULTS[i]: copy.counters.acquires[i] for i in range(<int>N_RESULTS)},
        'releases': {OUTCOMES[i]: copy.counters.releases[i] for i in range(<int>N_OUTCOMES)},
        'connect_failures': {CONNECT_FAILURES[i]: copy.counters.connect_failures[i] for i in range(2)},
    }


cdef dict endpoint_of(counts_t* copy, double now):
    return {
        **counts_of(copy),
        'breaker': BREAKER_STATES[copy.breaker],
        'failures': copy.failures,
        'retry_delay': max(0.0, copy.retry_at - now),
        'connect_queue': copy.connect_queue,
        'missing': copy.missing,
        'limits': plain_limits(&copy.limits),
    }


cdef tuple plain_limits(limits_t* limits):
    """Return limits in the order of `gcp.EndpointLimits`."""
    return (
        limits.max_size, limits.min_idle, limits.idle_timeout, limits.max_lifetime,
        None if limits.max_waiting == PY_SSIZE_T_MAX else limits.max_waiting, limits.weight, limits.floor,
    )


cdef dict total_of(counts_t* total, metrics_t* metrics, double oldest_waiter, double oldest_use):
    """Return the whole pool's counts. A hit is not timed: it counts as a wait of 0."""
    cdef metrics_t complete = metrics[0]
    complete.wait.counts[0] += total.counters.acquires[<int>HIT]
    return {
        **counts_of(total),
        **metrics_of(&complete),
        'oldest_waiter': oldest_waiter,
        'oldest_checkout': oldest_use,
    }


cdef Py_ssize_t copy_endpoints(pool_t* pool, counts_t* copies, counts_t* total) noexcept:
    """Copy the counts of each endpoint, with a reference to its key, and add them to the total. Return how many."""
    cdef Py_ssize_t n = 0
    cdef ring_t* node = pool.endpoints.next
    while node != &pool.endpoints:
        copy_endpoint(pool, endpoint_link(node), &copies[n])
        Py_INCREF(<object>copies[n].key)
        add_counters(&total.counters, &copies[n].counters)
        n += 1
        node = node.next
    return n


cdef tuple take_snapshot(Core core):
    """Return ``(total, [(endpoint, counts), ...])``."""
    cdef list endpoints = []
    cdef pool_t* pool = &core.pool
    cdef Py_ssize_t room, i, n
    cdef counts_t* copies = NULL
    cdef counts_t total
    cdef metrics_t metrics
    cdef oldest_t oldest
    cdef double now
    while True:
        room = pool.n_endpoints + 8
        free(copies)
        copies = <counts_t*>malloc(<size_t>room * sizeof(counts_t))
        if copies == NULL:
            raise MemoryError
        now = core.now()
        gcp_lock(&core.mutex)
        if pool.n_endpoints <= room:
            break
        gcp_unlock(&core.mutex)
    pool.now = now
    find_leaks(pool)
    copy_total(pool, &total)
    metrics = pool.metrics
    oldest = find_oldest(pool)
    n = copy_endpoints(pool, copies, &total)
    gcp_unlock(&core.mutex)
    try:
        for i in range(n):
            endpoints.append((<object>copies[i].key, endpoint_of(&copies[i], now)))
        return total_of(&total, &metrics, max(0.0, now - oldest.waiter), max(0.0, now - oldest.use)), endpoints
    finally:
        free_copies(copies, n)


cdef void free_copies(counts_t* copies, Py_ssize_t n):
    cdef Py_ssize_t i
    for i in range(n):
        Py_DECREF(<object>copies[i].key)
    free(copies)


@cython.final
cdef class FinalCounts:
    """What a pool has counted, once it is gone: the totals of all pools must never step back."""
    cdef counts_t total
    cdef metrics_t metrics
    cdef bint closed
    cdef PyObject* owner     # borrowed: the core, until it becomes garbage

    @property
    def core(self):
        """The core, or None once it is gone. It may outlive its pool while a lease is held."""
        return None if self.owner == NULL else <Core>self.owner

    def read(self):
        """Return the totals as `Core.snapshot` does, or None while there is a core to ask."""
        if not self.closed:
            return None
        return total_of(&self.total, &self.metrics, 0.0, 0.0)


cdef void close_final_counts(Core core):
    """The pool is garbage: count what it still has as closed, and keep the totals."""
    cdef pool_t* pool = &core.pool
    cdef FinalCounts counts = core.final_counts
    cdef ring_t* node = pool.endpoints.next
    cdef endpoint_t* e
    if counts is None or counts.closed:
        return
    counts.closed = True
    counts.owner = NULL
    while node != &pool.endpoints:
        e = endpoint_link(node)
        node = node.next
        write_off(pool, e)
        add_counters(&pool.retired, &e.counters)
    counts.total.counters = pool.retired
    counts.metrics = pool.metrics
