# The registry: endpoints by their key. A key's `__hash__` and `__eq__` are user code, so they run outside the lock.

from gcp.core.heap cimport heap_has_room, heap_remove
from gcp.core.platform cimport PyDict_GetItemWithError, gcp_delete_if, gcp_lock, gcp_unlock
from gcp.core.ring cimport ring_empty, ring_insert, ring_remove, ring_t
from gcp.core.scheduling cimport expires_before
from gcp.core.screening cimport forget_over, update_screening
from gcp.core.state cimport (
    OPEN, USED, counters_t, endpoint_object, endpoint_t, limits_t, pool_t, set_limits, slot_in_endpoint, slot_object,
    slot_t, taken,
)
from gcp.core.steering cimport hide, show
from gcp.core.table cimport home_of, table_find, table_resize, table_shrink, table_t


cdef inline Endpoint find_endpoint(Core core, key):
    """Return the record of an endpoint, or None. Runs the key's `__hash__` and `__eq__`."""
    cdef PyObject* found = PyDict_GetItemWithError(core.endpoints, key)
    return None if found == NULL else <Endpoint>found


cdef Endpoint known_endpoint(Core core, key):
    """Return the record of an endpoint that a caller has named; None: the pool does not know it.

    :raises TypeError: if the key cannot be hashed
    """
    cdef Endpoint ep
    check_hashable(key)
    ep = find_endpoint(core, key)
    return None if ep is None or not ep.e.listed else ep


cdef Endpoint register_endpoint(Core core, key):
    """Return the record of an endpoint; make one if there is none. While limits are asked for, which runs user code,
    another thread may list the record, and drop it: then there is to be a new one."""
    cdef Endpoint ep
    while True:
        ep = find_endpoint(core, key)
        if ep is None:
            ep = core.endpoints.setdefault(key, Endpoint(key))
        while not ep.e.listed and not ep.e.dropped:
            list_endpoint(core, ep)
        if ep.e.listed:
            return ep
        try:
            gcp_delete_if(core.endpoints, key, is_dropped)
        except KeyError:
            pass    # the thread that dropped it has removed it


cdef inline bint room_for_key(pool_t* pool) noexcept nogil:
    """Make room for one more endpoint in the table of keys, in which suspended endpoints have theirs as well."""
    cdef size_t n = <size_t>pool.n_endpoints
    return 2 * (n + 1) <= pool.known.mask or table_resize(&pool.known, 2 * n + 1)


cdef int list_endpoint(Core core, Endpoint ep) except -1:
    """List a record with its limits, unless another thread has listed it, or limits have changed meanwhile."""
    cdef pool_t* pool = &core.pool
    cdef uint64_t version = core.limits_version
    cdef limits_t own = own_limits(core, ep.key, core.limits_of)
    cdef bint room = True
    gcp_lock(&core.mutex)
    if not ep.e.listed and not ep.e.dropped and core.limits_version == version:
        room = heap_has_room(&pool.blocked, pool.n_endpoints + 1) and room_for_key(pool) \
            and heap_has_room(&pool.expiring, pool.n_endpoints + 1)
        if room:
            ring_insert(&pool.endpoints, &ep.e.link)
            pool.n_endpoints += 1
            pool.listings += 1
            ep.e.listing = pool.listings
            ep.e.own = own
            set_limits(pool, &ep.e)
            pool.hidden += 1
            if pool.suspended == OPEN:
                show(pool, &ep.e)
            update_screening(pool)
            ep.e.listed = True
            Py_INCREF(ep)
    gcp_unlock(&core.mutex)
    if not room:
        raise MemoryError
    return 0


cdef void forget_call(pool_t* pool, endpoint_t* e) noexcept nogil:
    """Take an endpoint without waiters out of the list of those whose timekeeper is to be woken."""
    cdef endpoint_t** link = &pool.called
    while link[0] != e:
        link = &link[0].next_called
    link[0] = e.next_called
    e.in_called = False


cdef bint unregister(pool_t* pool, endpoint_t* e) noexcept nogil:
    """Drop the record of an endpoint unless it is in use again. Its counts go to the retired totals."""
    if e.waiting or taken(e) or e.kept or e.suspended or not e.listed or not ring_empty(&e.in_failing):
        return False
    if e.in_called:
        forget_call(pool, e)
    e.failures = 0
    ring_remove(&e.link)
    heap_remove(&pool.expiring, &e.expiring, expires_before)
    forget_over(pool, e)
    ring_remove(&e.in_short)
    e.retiring = False
    e.refill_steps = 0
    e.refill_at = 0
    hide(pool, e)
    pool.hidden -= 1
    pool.n_endpoints -= 1
    if pool.hidden == 0:
        table_shrink(&pool.known)
    e.listed = False
    e.dropped = True
    add_counters(&pool.retired, &e.counters)
    memset(&e.counters, 0, sizeof(counters_t))
    return True


cdef int is_dropped(PyObject* endpoint) noexcept:
    """Whether a record may leave the dict: it stays if it is a new one."""
    return (<Endpoint>endpoint).e.dropped


cdef int forget_empty_endpoints(Core core) except -1:
    """Drop the records of endpoints that have neither connections nor waiters any more."""
    cdef pool_t* pool = &core.pool
    cdef endpoint_t* e
    cdef Endpoint ep
    cdef bint gone
    while pool.empties != NULL:
        gcp_lock(&core.mutex)
        e = pool.empties
        if e == NULL:
            gcp_unlock(&core.mutex)
            break
        pool.empties = e.next_empty
        e.in_empties = False
        gone = unregister(pool, e)
        gcp_unlock(&core.mutex)
        if not gone:
            continue
        ep = <Endpoint>endpoint_object(e)
        Py_DECREF(ep)
        try:
            gcp_delete_if(core.endpoints, ep.key, is_dropped)
        except Exception:
            pass    # removed already; or the key cannot be hashed any more: its record is never found again
    return 0


# --- who holds a connection ---

cdef inline slot_t* table_find_of(table_t* table, PyObject* conn, endpoint_t* ep) noexcept nogil:
    """Return the slot of an endpoint that has this connection, or NULL. Another endpoint may have the same object."""
    cdef size_t i
    if table.items == NULL:
        return NULL
    i = home_of(conn, table.mask)
    while table.items[i] != NULL:
        if table.items[i][0] == conn and (<slot_t*>table.items[i]).ep == ep:
            return <slot_t*>table.items[i]
        i = (i + 1) & table.mask
    return NULL


cdef inline slot_t* find_held(Core core, conn, endpoint) except? NULL:
    """Find a held connection by identity. Runs user code where the key is not the very object."""
    cdef slot_t* s = <slot_t*>table_find(&core.pool.held, <PyObject*>conn)
    cdef Endpoint ep
    if s == NULL or s.ep.key == <PyObject*>endpoint:
        return s
    try:
        ep = find_endpoint(core, endpoint)
    except TypeError:
        check_hashable(endpoint)
        raise
    return NULL if ep is None else table_find_of(&core.pool.held, <PyObject*>conn, &ep.e)


cdef int check_order(Core core, conn, endpoint) except -1:
    """Refuse a release whose arguments are swapped."""
    if table_find(&core.pool.held, <PyObject*>endpoint) == NULL or table_find(&core.pool.held, <PyObject*>conn) != NULL:
        return 0
    raise ConnectionNotAcquiredError(
        f'the arguments of release are swapped: the connection comes first; write release(conn, endpoint), not '
        f'release(endpoint, conn) (endpoint {describe(conn)}, connection of type {type(endpoint).__name__})')


cdef Slot find_holder(Core core, conn, endpoint):
    """Find the slot of a held connection: by identity, else by equality. None where a release has nothing to do: in a
    forked child, and after a close.

    :raises ConnectionNotAcquiredError: if the connection is not held for this endpoint
    """
    cdef slot_t* s = find_held(core, conn, endpoint)
    cdef Endpoint ep
    cdef Slot slot
    if s != NULL:
        return <Slot>slot_object(s)
    ep = find_endpoint(core, endpoint)
    slot = None if ep is None else find_equal(conn, ep)
    if slot is not None:
        return slot
    if core.pool.closed or table_find(&core.pool.inherited, <PyObject*>conn) != NULL or forget_forced(core, conn):
        return None
    raise ConnectionNotAcquiredError(
        f'this connection is not acquired for endpoint {describe(endpoint)}: it is foreign, of another endpoint, '
        f'or was released already')


cdef bint forget_forced(Core core, conn) except -1:
    """Whether a connection was taken from its holder by a retirement. It is remembered for one release."""
    if not core.forced:
        return False
    for key, taken in list(core.forced.items()):
        if taken is conn or taken == conn:
            core.forced.pop(key, None)
            return True
    return False


cdef Slot find_equal(conn, Endpoint ep):
    """Find a held connection by equality: a caller may have rebuilt its (reader, writer) tuple. Runs `__eq__`."""
    cdef list slots = []
    cdef ring_t* node
    cdef Slot slot
    node = ep.e.used.next
    while node != &ep.e.used:
        slots.append(<Slot>slot_object(slot_in_endpoint(node)))
        node = node.next
    for slot in slots:
        if slot.s.state == USED and slot.conn == conn and slot.s.state == USED:
            return slot
    return None
