# Looking at a pool while it works: what an acquire of an endpoint would wait for now, who is in the wait queues, and
# the endpoints that matter most. Copied under the lock into C structs, and made Python objects of after it: of ten
# thousand endpoints, only those that are asked for cost an object.

from gcp.core.connects cimport is_probe
from gcp.core.histogram cimport N_USE_BOUNDS, histogram_t
from gcp.core.permits cimport endpoint_may_connect, pool_may_connect
from gcp.core.platform cimport gcp_lock, gcp_lock_outer, gcp_unlock, gcp_unlock_outer
from gcp.core.reserve cimport for_all, holds_back
from gcp.core.ring cimport ring_t
from gcp.core.state cimport (
    OPEN, cap, endpoint_link, endpoint_object, endpoint_t, first_waiter, held, pool_t, slot_in_endpoint, suspension,
    taken, waiter_node,
)
from gcp.core.stripes cimport add_use_times, count_idle, count_used

cdef str CONNECTS = ''      # what an acquire does that finds no idle connection, and need not wait


cdef struct view_t:          # of one endpoint
    counts_t counts
    PyObject* record         # the Endpoint: a reference
    PyObject* block          # what an acquire would wait for: one of a few constants, or NULL: for nothing
    Py_ssize_t limit         # that of the block
    double began             # when its oldest waiter began to wait; inf: none waits
    double used_since        # when its longest held connection was acquired; inf: none is held
    double expected          # how long one more acquire would wait, seconds; negative: not known
    double trouble           # the higher, the earlier it is shown
    bint retiring
    bint suspended


cdef struct queued_t:        # one waiter
    PyObject* record         # of its endpoint: a reference
    PyObject* block
    Py_ssize_t limit
    Py_ssize_t position
    double began
    double deadline


# --- one endpoint ---

cdef str what_would_block(pool_t* pool, endpoint_t* e):
    """Return what an acquire that comes now would wait for, or be refused for; '' if it would connect, None if there
    is an idle connection for it."""
    cdef bint held_back
    if pool.closed:
        return 'closed'
    if e.retiring:
        return 'retiring'
    if suspension(pool, e) != OPEN:
        return 'suspended'
    held_back = e.reserve > 0 and holds_back(pool, e, NULL)
    if e.waiting == 0 and e.n_base + e.n_extra and not held_back:
        return None
    if e.broken and not is_probe(pool, e):
        return 'breaker'
    if (
        e.waiting == 0 and not held_back and taken(e) < cap(e) and endpoint_may_connect(pool, e)
        and pool_may_connect(pool)
    ):
        if pool.size < pool.total_max_size or count_idle(pool):
            return CONNECTS
    return what_blocks(pool, e, NULL)


cdef double mean_use(pool_t* pool, endpoint_t* e) noexcept nogil:
    """Return how long a connection is used, seconds: of this endpoint, else of the pool; 0 if that is not known."""
    cdef histogram_t all
    cdef uint64_t n = 0
    cdef int i
    if e.use_time > 0:
        return e.use_time
    memset(&all, 0, sizeof(histogram_t))
    add_use_times(pool, &all)
    for i in range(N_USE_BOUNDS + 1):
        n += all.counts[i]
    return all.sum / n if n else 0.0


cdef double expected_wait(pool_t* pool, endpoint_t* e, str block):
    """Return how long an acquire that comes now would wait, seconds; negative if that is not known. As admission by
    deadline does, it assumes that connections are used as long as before."""
    cdef double use = mean_use(pool, e)
    cdef double wait
    cdef double create = e.create_time if e.create_time > 0 else pool.create_time
    if block is None or block == CONNECTS:
        return 0.0
    if block == 'breaker' or block == 'retry delay':
        return max(0.0, e.retry_at - pool.now)
    if block == 'creation' or block.endswith('connect limit') or block == 'connect workers':
        return create if create > 0 else -1.0
    if block == 'reserve':
        wait = (e.waiting + 1) * use / for_all(e) if use > 0 else INFINITY
        wait = min(wait, pool.reserve_timeout) if e.waiting == 0 else wait
        return wait if wait < INFINITY else -1.0
    if block == 'endpoint cap' and use > 0 and held(e):
        return (e.waiting + 1) * use / held(e)
    if block == 'total cap' and use > 0 and count_used(pool):
        return (pool.waiting + 1) * use / count_used(pool)
    return -1.0


cdef void view_endpoint(pool_t* pool, endpoint_t* e, view_t* view):
    """Copy what is to be said of an endpoint. Within the lock: makes no object that the garbage collector knows."""
    cdef str block = what_would_block(pool, e)
    copy_endpoint(pool, e, &view.counts)
    view.record = endpoint_object(e)
    Py_INCREF(<object>view.record)
    view.block = NULL if block is None else <PyObject*>block
    view.limit = limit_of(pool, e, block) if block in CAPS else 0
    view.began = waiting_since(e)
    view.used_since = slot_in_endpoint(e.used.next).since if e.n_used > e.checking else INFINITY
    view.expected = expected_wait(pool, e, block)
    view.retiring = e.retiring
    view.suspended = suspension(pool, e) != OPEN


cdef str cap_of(PyObject* block, Py_ssize_t limit):
    """Return the limit that blocks, with its value, or None if it is no limit."""
    if block == NULL or <object>block not in CAPS:
        return None
    return f'{CAPS[<object>block]}={limit}'


cdef dict facts_of(Core core, view_t* view, double now):
    """Make plain values of a view, and drop it."""
    cdef Endpoint ep = <Endpoint>view.record
    cdef counts_t* counts = &view.counts
    try:
        return {
            **endpoint_of(counts, now),
            'endpoint': ep.key,
            'blocked_by': None if view.block == NULL or <str>view.block == CONNECTS else <object>view.block,
            'connects': view.block != NULL and <str>view.block == CONNECTS,
            'cap': cap_of(view.block, view.limit),
            'expected_wait': view.expected if view.expected >= 0 else None,
            'oldest_waiter': max(0.0, now - view.began),
            'oldest_checkout': max(0.0, now - view.used_since),
            'retry_at': counts.retry_at or None,
            'last_error': error_of(core, ep),
            'retiring': view.retiring,
            'suspended': view.suspended,
        }
    finally:
        Py_DECREF(ep)


def explain_endpoint(Core core not None, key):
    """Return what an acquire of an endpoint would wait for now, as plain values; None if the pool does not know it.

    :param key: the endpoint
    :raises TypeError: if it cannot be hashed
    """
    cdef pool_t* pool = &core.pool
    cdef view_t view
    cdef bint known
    cdef Endpoint ep
    ep = known_endpoint(core, key)
    if ep is None:
        return None
    cdef double now = core.now()
    gcp_lock(&core.mutex)
    pool.now = now
    known = ep.e.listed
    if known:
        view_endpoint(pool, &ep.e, &view)
    gcp_unlock(&core.mutex)
    return facts_of(core, &view, now) if known else None


def known_endpoints(Core core not None):
    """Return the endpoints that the pool knows: those that have connections or waiters, are kept, or have failed."""
    return list(core.endpoints)


# --- the endpoints that matter most ---

cdef double trouble_of(endpoint_t* e) noexcept nogil:
    """Rank an endpoint: first those with waiters, then those that fail, then the fullest."""
    cdef double full = <double>taken(e) / cap(e) if cap(e) else 0.0
    return 1e6 * e.waiting + 1e5 * e.broken + 1e4 * (e.failures > 0) + 1e3 * e.retiring + 100 * full + e.n_used * 1e-3


cdef Py_ssize_t insert_ranked(endpoint_t** best, double* ranks, Py_ssize_t n, Py_ssize_t room, endpoint_t* e) \
        noexcept nogil:
    """Insert an endpoint among the best, in descending order, if it is one of them. Return how many there are."""
    cdef double rank = trouble_of(e)
    cdef Py_ssize_t i
    if n == room and (room == 0 or rank <= ranks[n - 1]):
        return n
    i = n if n < room else n - 1
    while i > 0 and ranks[i - 1] < rank:
        ranks[i], best[i] = ranks[i - 1], best[i - 1]
        i -= 1
    ranks[i], best[i] = rank, e
    return min(n + 1, room)


cdef struct ranking_t:       # of the endpoints that matter most
    Py_ssize_t room
    Py_ssize_t n
    Py_ssize_t failing       # how many endpoints fail, of all
    view_t* views
    endpoint_t** best
    double* ranks


cdef void view_best(pool_t* pool, reading_t* reading, ranking_t* ranking):
    """Copy the endpoints that matter most, and add the counts of all up."""
    cdef Py_ssize_t i
    cdef ring_t* node = pool.endpoints.next
    cdef endpoint_t* e
    while node != &pool.endpoints:
        prefetch_endpoint(node.next)
        e = endpoint_link(node)
        ranking.n = insert_ranked(ranking.best, ranking.ranks, ranking.n, ranking.room, e)
        ranking.failing += e.failures > 0
        add_counters(&reading.total.counters, &e.counters)
        find_oldest(e, &reading.oldest)
        node = node.next
    for i in range(ranking.n):
        view_endpoint(pool, ranking.best[i], &ranking.views[i])


def inspect_pool(Core core not None, Py_ssize_t room):
    """Return ``(total, endpoints, how many endpoints there are)``: the counts of the whole pool, and what is to be said
    of the endpoints that matter most: those with waiters, those that fail, the fullest.

    :param room: how many endpoints at most
    """
    cdef pool_t* pool = &core.pool
    cdef reading_t reading
    cdef ranking_t ranking
    cdef Py_ssize_t i, known
    memset(&ranking, 0, sizeof(ranking_t))
    ranking.room = room
    try:
        ranking.views = <view_t*>allocate(room, sizeof(view_t))
        ranking.best = <endpoint_t**>allocate(room, sizeof(endpoint_t*))
        ranking.ranks = <double*>allocate(room, sizeof(double))
        begin_reading(core, &reading)
        gcp_lock(&core.mutex)
        read_pool(pool, &reading)
        view_best(pool, &reading, &ranking)
        known = pool.n_endpoints
        gcp_unlock(&core.mutex)
        total = {**end_reading(&reading), 'failing': ranking.failing}
        return total, [facts_of(core, &ranking.views[i], reading.now) for i in range(ranking.n)], known
    finally:
        free(ranking.views)
        free(ranking.best)
        free(ranking.ranks)


# --- the wait queues ---

cdef Py_ssize_t copy_queue(pool_t* pool, endpoint_t* e, queued_t* found, Py_ssize_t n, Py_ssize_t room):
    """Copy the waiters of an endpoint among those of others, the oldest first. Return how many there are."""
    cdef str block = what_blocks(pool, e, first_waiter(e))
    cdef Py_ssize_t limit = limit_of(pool, e, block) if block in CAPS else 0
    cdef Py_ssize_t i, position = 0
    cdef ring_t* node = e.queue.next
    while node != &e.queue:
        position += 1
        if e.reserve:
            block = what_blocks(pool, e, waiter_node(node))
            limit = limit_of(pool, e, block) if block in CAPS else 0
        if n == room and waiter_node(node).began >= found[n - 1].began:
            node = node.next
            continue        # not the end: an older one with a lower priority may come behind
        i = n if n < room else n - 1
        n = min(n + 1, room)
        while i > 0 and found[i - 1].began > waiter_node(node).began:
            found[i] = found[i - 1]
            i -= 1
        found[i].record = endpoint_object(e)
        found[i].block = <PyObject*>block
        found[i].limit = limit
        found[i].position = position
        found[i].began = waiter_node(node).began
        found[i].deadline = waiter_node(node).deadline
        node = node.next
    return n


cdef Py_ssize_t copy_queues(pool_t* pool, endpoint_t* one, queued_t* found, Py_ssize_t room):
    """Copy the oldest waiters of one endpoint, or of all, with a reference to their endpoint's record."""
    cdef ring_t* node = pool.endpoints.next
    cdef Py_ssize_t i, n = 0
    while node != &pool.endpoints:
        if endpoint_link(node).waiting and (one == NULL or endpoint_link(node) == one):
            n = copy_queue(pool, endpoint_link(node), found, n, room)
        node = node.next
    for i in range(n):
        Py_INCREF(<object>found[i].record)
    return n


cdef tuple queued_of(queued_t* found, double now):
    """Make plain values of a waiter, and drop the reference."""
    cdef Endpoint ep = <Endpoint>found.record
    try:
        return (
            ep.key, found.position, max(0.0, now - found.began),
            None if found.deadline == INFINITY else found.deadline - now,
            <object>found.block, cap_of(found.block, found.limit),
        )
    finally:
        Py_DECREF(ep)


def list_waiters(Core core not None, endpoints, Py_ssize_t room):
    """Return the acquires that wait, the oldest first, each as ``(endpoint, position, age, remaining, blocked_by,
    cap)``: its place in the wait queue of its endpoint, from 1, how long it has waited, how long it may still wait
    (None: without a limit), what holds it up.

    :param endpoints: None: those of all endpoints; else a tuple of one endpoint
    :param room: how many at most; negative: all
    """
    cdef pool_t* pool = &core.pool
    cdef Endpoint ep = None
    cdef Py_ssize_t i, size, n = 0
    cdef double now = core.now()
    cdef queued_t* found
    if endpoints is not None:
        ep = known_endpoint(core, endpoints[0])
        if ep is None:
            return []
    gcp_lock_outer(&core.mutex)
    size = pool.waiting if room < 0 else min(room, pool.waiting)
    gcp_unlock_outer(&core.mutex)
    if size <= 0:
        return []
    found = <queued_t*>malloc(size * sizeof(queued_t))
    if found == NULL:
        raise MemoryError
    gcp_lock(&core.mutex)
    pool.now = now
    n = copy_queues(pool, NULL if ep is None else &ep.e, found, size)
    gcp_unlock(&core.mutex)
    try:
        return [queued_of(&found[i], now) for i in range(n)]
    finally:
        free(found)
