# What a pool has counted, as plain values: one consistent copy, made under the lock and formatted after it.

from cpython.list cimport PyList_New, PyList_SET_ITEM

from gcp.core.closing cimport write_off
from gcp.core.histogram cimport (
    N_AGE_BOUNDS, N_USE_BOUNDS, N_WAIT_BOUNDS, gcp_ages, gcp_seconds, histogram_t,
)
from gcp.core.permits cimport endpoint_may_connect, pool_may_connect
from gcp.core.platform cimport (
    gcp_lock, gcp_lock_outer, gcp_mutex, gcp_mutex_init, gcp_prefetch, gcp_read, gcp_unlock,
    gcp_unlock_outer, gcp_write,
)
from gcp.core.ring cimport ring_t
from gcp.core.state cimport (
    CALL_DEAD, HIT, HOOK_CHECK, HOOK_KEEPALIVE, N_HOOKS, N_HOOK_OUTCOMES, N_OUTCOMES, N_REASONS, N_RESULTS, OPEN,
    base_size, cap, counters_t, endpoint_link, endpoint_t, idle_limit, lifetime, limits_t, metrics_t, pool_t,
    queue_limit, slot_in_endpoint, suspension, taken, waiter_node,
)
from gcp.core.stripes cimport add_use_times, count_idle, count_used

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
    bint suspended
    Py_ssize_t stale


cdef struct oldest_t:
    double waiter            # when it began to wait, by the core's clock; inf: none waits
    double use               # when the longest held connection was acquired; inf: none is held


# A pool of this many endpoints is read with the GIL released before and after: other threads wait for the walk only.
cdef enum:
    MANY = 1000


cdef inline void add_counters(counters_t* to, counters_t* more) noexcept nogil:
    """Add counters up: their struct consists of numbers of one type."""
    cdef size_t i
    for i in range(sizeof(counters_t) // sizeof(uint64_t)):
        (<uint64_t*>to)[i] += (<uint64_t*>more)[i]


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
    limits.reserve = e.reserve
    return limits


cdef Py_ssize_t connect_queue(pool_t* pool, endpoint_t* e) noexcept nogil:
    """Return how many acquires wait until their endpoint may connect: a limit of connects or a retry delay forbids it,
    not its cap."""
    if not e.waiting or suspension(pool, e) != OPEN or taken(e) - e.reserved >= cap(e):
        return 0
    if endpoint_may_connect(pool, e) and pool_may_connect(pool):
        return 0
    return e.waiting


cdef Py_ssize_t missing(pool_t* pool, endpoint_t* e) noexcept nogil:
    """Return how many connections an endpoint lacks of its `min_idle`, if the pool is to open them: it refills kept
    endpoints, or a warm-up is in progress."""
    if not e.kept or not (pool.refills or e.wanted):
        return 0
    return max(0, base_size(e) - e.n_base - e.n_extra - e.n_used)


cdef void copy_endpoint(pool_t* pool, endpoint_t* e, counts_t* copy) noexcept nogil:
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
    copy.suspended = suspension(pool, e) != OPEN
    copy.stale = e.stale


cdef void copy_total(pool_t* pool, counts_t* copy) noexcept nogil:
    copy.idle = count_idle(pool) + pool.checking
    copy.used = count_used(pool) - pool.checking
    copy.creating = pool.creating
    copy.disposing = pool.disposing
    copy.waiting = pool.waiting
    copy.counters = pool.retired
    copy.suspended = pool.suspended != OPEN
    copy.stale = pool.stale


cdef double waiting_since(endpoint_t* e) noexcept nogil:
    """Return when the acquire was called that has waited longest for an endpoint; inf: none waits. The first in the
    queue is another one where that has a higher priority."""
    cdef ring_t* node = e.queue.next
    cdef double began = INFINITY
    while node != &e.queue:
        began = min(began, waiter_node(node).began)
        node = node.next
    return began


cdef inline void find_oldest(endpoint_t* e, oldest_t* oldest) noexcept nogil:
    """Note the longest waiting acquire and the longest held connection of an endpoint if they are the pool's so far."""
    if e.waiting:
        oldest.waiter = min(oldest.waiter, waiting_since(e))
    if e.n_used > e.checking and slot_in_endpoint(e.used.next).since < oldest.use:
        oldest.use = slot_in_endpoint(e.used.next).since


cdef inline void prefetch_endpoint(ring_t* node) noexcept nogil:
    """Load what a walk reads of an endpoint: without this it takes twice as long."""
    cdef char* e = <char*>endpoint_link(node)
    cdef size_t offset = 0
    while offset < sizeof(endpoint_t):
        gcp_prefetch(e + offset)
        offset += 64


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
        'abandoned_leases': metrics.abandoned_leases,
        'reclaim_runs': metrics.reclaim_runs,
        'listener_errors': metrics.listener_errors,
        'listener_events_dropped': metrics.listener_events_dropped,
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
        'suspended': copy.suspended,
        'stale': copy.stale,
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
        limits.reserve or None,
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


# --- all endpoints ---

cdef struct reading_t:       # what is read of a pool beside its endpoints
    counts_t total
    metrics_t metrics
    oldest_t oldest
    double now


cdef int begin_reading(Core core, reading_t* reading) except -1:
    """Count leaks, and read the clock. It may be user code, in tests."""
    find_leaks(core)
    reading.now = core.now()
    reading.oldest.waiter = reading.oldest.use = INFINITY
    return 0


cdef void read_pool(pool_t* pool, reading_t* reading) noexcept nogil:
    """Copy the counts of a pool, without those of its present endpoints."""
    pool.now = reading.now
    copy_total(pool, &reading.total)
    copy_metrics(pool, &reading.metrics)


cdef void copy_metrics(pool_t* pool, metrics_t* copy) noexcept nogil:
    """Copy what was timed."""
    copy[0] = pool.metrics
    add_use_times(pool, &copy.use)


cdef dict end_reading(reading_t* reading):
    """Return the counts of a pool as plain values."""
    cdef double now = reading.now
    return total_of(
        &reading.total, &reading.metrics, max(0.0, now - reading.oldest.waiter), max(0.0, now - reading.oldest.use))


cdef void copy_endpoints(pool_t* pool, counts_t* copies, PyObject** keys, oldest_t* oldest) noexcept:
    """Copy the counts of each endpoint, and take a reference to its key."""
    cdef ring_t* node = pool.endpoints.next
    cdef Py_ssize_t n = 0
    while node != &pool.endpoints:
        prefetch_endpoint(node.next)
        copy_endpoint(pool, endpoint_link(node), &copies[n])
        keys[n] = endpoint_link(node).key
        Py_INCREF(<object>keys[n])
        find_oldest(endpoint_link(node), oldest)
        n += 1
        node = node.next


cdef void add_copies(counts_t* copies, Py_ssize_t n, counters_t* to) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        add_counters(to, &copies[i].counters)


cdef void* allocate(Py_ssize_t n, size_t size) except NULL:
    """Allocate an array of zeros. A large one is written to at once, without the GIL: a page's first access is slow."""
    cdef size_t wanted = <size_t>max(n, 1) * size
    cdef void* array = malloc(wanted)
    if array == NULL:
        raise MemoryError
    if n > MANY:
        with nogil:
            memset(array, 0, wanted)
    else:
        memset(array, 0, wanted)
    return array


cdef list list_of_keys(PyObject** keys, Py_ssize_t n):
    """Return keys as a list, which takes over the references."""
    cdef list listed
    cdef Py_ssize_t i
    try:
        listed = PyList_New(n)
    except MemoryError:
        for i in range(n):
            Py_DECREF(<object>keys[i])
        raise
    for i in range(n):
        PyList_SET_ITEM(listed, i, <object>keys[i])
    return listed


@cython.final
cdef class EndpointCounts:
    """The endpoints of a pool and their counts at one moment: a sequence of ``(endpoint, counts)``. The counts of an
    endpoint become Python objects when they are asked for.

    :ivar endpoints: the endpoints, in the same order
    """
    cdef counts_t* copies
    cdef double now
    cdef readonly list endpoints

    def __len__(self):
        return len(self.endpoints)

    def __getitem__(self, Py_ssize_t i):
        if not 0 <= i < len(self.endpoints):
            raise IndexError(i)
        return self.endpoints[i], endpoint_of(&self.copies[i], self.now)

    def __iter__(self):
        return map(self.__getitem__, range(len(self.endpoints)))

    def __eq__(self, other):
        return list(self) == list(other)

    def __dealloc__(self):
        free(self.copies)


cdef tuple take_snapshot(Core core):
    """Return ``(total, counts of the endpoints)``."""
    cdef EndpointCounts counts = EndpointCounts()
    cdef PyObject** keys = NULL
    cdef reading_t reading
    cdef Py_ssize_t room, n
    try:
        while True:
            room = count_endpoints(core) + 8
            free(counts.copies)
            counts.copies = NULL
            counts.copies = <counts_t*>allocate(room, sizeof(counts_t))
            free(keys)
            keys = NULL
            keys = <PyObject**>allocate(room, sizeof(PyObject*))
            begin_reading(core, &reading)
            gcp_lock(&core.mutex)
            n = core.pool.n_endpoints
            if n <= room:
                break
            gcp_unlock(&core.mutex)
        read_pool(&core.pool, &reading)
        copy_endpoints(&core.pool, counts.copies, keys, &reading.oldest)
        gcp_unlock(&core.mutex)
        counts.endpoints = list_of_keys(keys, n)
    finally:
        free(keys)
    counts.now = reading.now
    if n > MANY:
        with nogil:
            add_copies(counts.copies, n, &reading.total.counters)
    else:
        add_copies(counts.copies, n, &reading.total.counters)
    return end_reading(&reading), counts


@cython.final
cdef class FinalCounts:
    """What a pool has counted, once it is gone: the totals of all pools must never step back."""
    cdef gcp_mutex mutex
    cdef counts_t total
    cdef metrics_t metrics
    cdef bint closed
    cdef object reference    # a weak one, to the core
    cdef PyObject* owner     # borrowed: the core, until it becomes garbage. Changes within the lock

    def __cinit__(self):
        gcp_mutex_init(&self.mutex)

    @property
    def core(self):
        """The core, or None once it is gone. It may outlive its pool while a lease is held."""
        return None if gcp_read(&self.closed) else self.reference()

    def read(self):
        """Return the totals as `Core.snapshot` does, or None while there is a core to ask."""
        if self.core is not None:
            return None
        close_final_counts(self)    # between the end of its weak references and its own, nobody else has done that
        return total_of(&self.total, &self.metrics, 0.0, 0.0)


cdef void close_final_counts(FinalCounts counts) noexcept:
    """The pool is garbage: count what it still has as closed, and keep the totals."""
    cdef pool_t* pool
    cdef ring_t* node
    cdef endpoint_t* e
    if counts is None:
        return
    gcp_lock_outer(&counts.mutex)
    if counts.owner != NULL:
        pool = &(<Core>counts.owner).pool
        counts.owner = NULL
        node = pool.endpoints.next
        while node != &pool.endpoints:
            e = endpoint_link(node)
            node = node.next
            write_off(pool, e)
            add_counters(&pool.retired, &e.counters)
        counts.total.counters = pool.retired
        copy_metrics(pool, &counts.metrics)
        gcp_write(&counts.closed, True)
    gcp_unlock_outer(&counts.mutex)
