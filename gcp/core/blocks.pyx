# What holds an acquire up, and the errors that say so.

from gcp.core.permits cimport endpoint_may_connect, pool_may_connect
from gcp.core.platform cimport gcp_lock, gcp_lock_outer, gcp_unlock, gcp_unlock_outer
from gcp.core.reserve cimport holds_back
from gcp.core.ring cimport ring_t
from gcp.core.state cimport (
    OPEN, cap, endpoint_link, endpoint_t, pool_t, queue_limit, slot_in_endpoint, slot_object, suspension, taken,
    waiter_t,
)
from gcp.core.stripes cimport count_idle, count_used

cdef int CLOSED_AT_MOST = 20     # connections are asked whether they are closed


cdef str what_blocks(pool_t* pool, endpoint_t* e, waiter_t* w):
    """Say what an acquire that waits for an endpoint waits for: one of those of `AcquireTimeoutError.blocked_by`.
    Within the lock.

    :param w: NULL: one that comes now, without a priority
    """
    if suspension(pool, e) != OPEN:
        return 'suspended'
    if holds_back(pool, e, w):
        return 'reserve'
    if taken(e) - e.reserved >= cap(e):
        return 'creation' if e.n_used == 0 and e.creating else 'endpoint cap'
    if e.delayed:
        return 'retry delay'
    if not endpoint_may_connect(pool, e):
        return 'connect limit'
    if e.jobs > e.waiting:
        return 'creation'
    if pool.connect_workers and pool.jobs + pool.reserved >= pool.connect_workers:
        return 'connect workers'
    if not pool_may_connect(pool):
        return 'total connect limit'
    return 'creation' if pool.creating and count_used(pool) == 0 else 'total cap'


cdef void note_block(Acquire acquire):
    """Remember what stands in the way, for the error's message. Within the lock."""
    cdef pool_t* pool = &acquire.core.pool
    cdef endpoint_t* e = &acquire.ep.e
    cdef bint own = taken(e) - e.reserved >= cap(e)
    cdef double oldest = INFINITY
    cdef ring_t* node
    acquire.blocked_by = what_blocks(pool, e, &acquire.w)
    limit = limit_of(pool, e, acquire.blocked_by)
    if own or acquire.blocked_by in ('connect limit', 'retry delay', 'suspended', 'reserve'):
        if e.n_used:
            oldest = slot_in_endpoint(e.used.next).since
        acquire.block = (e.n_base + e.n_extra, e.n_used, e.creating, e.waiting, limit, oldest)
        return
    node = pool.endpoints.next
    while node != &pool.endpoints:
        e = endpoint_link(node)
        if e.n_used and slot_in_endpoint(e.used.next).since < oldest:
            oldest = slot_in_endpoint(e.used.next).since
        node = node.next
    acquire.block = (count_idle(pool), count_used(pool), pool.creating, pool.waiting, limit, oldest)


cdef str closed_without_release(Acquire acquire):
    """Return a hint if connections that stand in the way were closed by their holders, which did not release them."""
    cdef pool_t* pool = &acquire.core.pool
    cdef endpoint_t* own = NULL if acquire.blocked_by.startswith('total ') else &acquire.ep.e
    cdef endpoint_t* e
    cdef ring_t* node
    cdef ring_t* used
    cdef list held = []
    gcp_lock(&acquire.core.mutex)
    node = pool.endpoints.next
    while node != &pool.endpoints:
        e = endpoint_link(node)
        node = node.next
        used = e.used.next
        while used != &e.used and (own == NULL or e == own):
            if slot_in_endpoint(used).acquired and len(held) < CLOSED_AT_MOST:
                held.append(<Slot>slot_object(slot_in_endpoint(used)))
            used = used.next
    gcp_unlock(&acquire.core.mutex)
    n = sum([is_closed(conn_in(acquire.core, slot)) for slot in held])
    if not n:
        return ''
    return (
        f', {n} of whose connections are closed but were never released: neither close() nor `with pool.acquire()` '
        f'gives a connection back; use `with pool.connection(endpoint)`, or release(conn, endpoint)')


cdef bint is_closed(conn):
    """Whether a connection says that it is closed, as those of psycopg and psycopg2, files and sockets do."""
    try:
        closed = getattr(conn, 'closed', None)
        if isinstance(closed, int):
            return closed != 0
        return isinstance(conn, socket) and conn.fileno() == -1
    except Exception:
        return False


# --- refusals ---

cdef str what_ended(Acquire acquire, str phase):
    """Say why an acquire has no time left, or will have none."""
    if phase == 'admission':
        return f'refused on arrival, as its wait is expected to take {acquire.w.expected:.3g} s'
    return f'time ran out in {phase}'


cdef object too_many_waiters(Acquire acquire):
    """Make the error of an acquire that may not wait, because too many do."""
    cdef Py_ssize_t limit
    gcp_lock_outer(&acquire.core.mutex)
    limit = queue_limit(&acquire.ep.e)
    gcp_unlock_outer(&acquire.core.mutex)
    return TooManyWaitersError(
        f'{acquire.pool.name}: no connection to {describe(acquire.key)}: {limit} acquires wait for one, which is '
        f'max_waiting={limit} of endpoint {describe(acquire.key)}, blocked by '
        f'{describe_block(acquire, acquire.blocked_by, acquire.block[4])}',
        endpoint=acquire.key, limit=limit)
