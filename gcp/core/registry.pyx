# The registry: endpoints by their key. A key's `__hash__` and `__eq__` are user code, so they run outside the lock.

from gcp.core.heap cimport heap_has_room, heap_remove
from gcp.core.platform cimport (
    gcp_delete_if, gcp_drop_found, gcp_lock, gcp_lock_outer, gcp_lock_stripe, gcp_look_up, gcp_read_byte, gcp_stripe,
    gcp_unlock, gcp_unlock_outer, gcp_unlock_stripe, gcp_write_byte,
)
from gcp.core.resizing cimport set_limits
from gcp.core.ring cimport ring_empty, ring_insert, ring_remove, ring_t
from gcp.core.scheduling cimport expires_before
from gcp.core.screening cimport forget_over, update_screening
from gcp.core.state cimport (
    OPEN, USED, counters_t, endpoint_object, endpoint_t, limits_t, pool_t, slot_in_endpoint, slot_object,
    slot_t, taken,
)
from gcp.core.steering cimport hide, show
from gcp.core.table cimport home_of, table_resize, table_shrink, table_t


cdef inline Endpoint find_endpoint(Core core, key):
    """Return the record of an endpoint, or None. Runs the key's `__hash__` and `__eq__`."""
    cdef PyObject* found = gcp_look_up(core.endpoints, key)
    cdef Endpoint ep = None
    if found != NULL:
        ep = <Endpoint>found
        gcp_drop_found(found)
    return ep


cdef Endpoint known_endpoint(Core core, key):
    """Return the record of an endpoint that a caller has named; None: the pool does not know it.

    :raises TypeError: if the key cannot be hashed
    """
    cdef Endpoint ep
    check_hashable(key)
    ep = find_endpoint(core, key)
    return None if ep is None or not is_listed(core, ep) else ep


cdef Endpoint register_endpoint(Core core, key):
    """Return the record of an endpoint; make one if there is none. While limits are asked for, which runs user code,
    another thread may list the record, and drop it: then there is to be a new one."""
    cdef Endpoint ep
    while True:
        ep = find_endpoint(core, key)
        if ep is None:
            ep = core.endpoints.setdefault(key, Endpoint(key))
        while list_endpoint(core, ep):
            pass        # limits have changed meanwhile
        if is_listed(core, ep):
            return ep
        try:
            gcp_delete_if(core.endpoints, key, is_dropped)
        except KeyError:
            pass    # the thread that dropped it has removed it


cdef inline bint room_for_key(pool_t* pool) noexcept nogil:
    """Make room for one more endpoint in the table of keys, in which suspended endpoints have theirs as well."""
    cdef size_t n = <size_t>pool.n_endpoints
    return 2 * (n + 1) <= pool.known.mask or table_resize(&pool.known, 2 * n + 1)


cdef bint is_new(Core core, Endpoint ep, uint64_t* version) noexcept:
    """Whether a record was neither listed nor dropped.

    :param version: set to that of the limits
    """
    cdef bint new
    gcp_lock_outer(&core.mutex)
    new = not ep.e.listed and not ep.e.dropped
    version[0] = core.limits_version
    gcp_unlock_outer(&core.mutex)
    return new


cdef bint list_endpoint(Core core, Endpoint ep) except -1:
    """List a record with its limits, unless another thread has listed it, or dropped it. Returns whether that is still
    to be done, since limits have changed meanwhile."""
    cdef pool_t* pool = &core.pool
    cdef uint64_t version = 0
    cdef limits_t own
    cdef bint room = True
    cdef bint left
    if not is_new(core, ep, &version):
        return False
    own = own_limits(core, ep.key, core.limits_of)
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
    left = not ep.e.listed and not ep.e.dropped
    gcp_unlock(&core.mutex)
    if not room:
        raise MemoryError
    return left


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
    gcp_write_byte(&e.dropped, True)
    add_counters(&pool.retired, &e.counters)
    memset(&e.counters, 0, sizeof(counters_t))
    return True


cdef int is_dropped(PyObject* endpoint) noexcept:
    """Whether a record may leave the dict: it stays if it is a new one."""
    return gcp_read_byte(&(<Endpoint>endpoint).e.dropped)


cdef int forget_empty_endpoints(Core core) except -1:
    """Drop the records of endpoints that have neither connections nor waiters any more."""
    cdef pool_t* pool = &core.pool
    cdef endpoint_t* e
    cdef Endpoint ep
    cdef bint gone
    while True:
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

cdef inline slot_t* find_held_of(table_t* held, PyObject* conn, PyObject* key) noexcept nogil:
    """Return the slot of the endpoint with this key that has a connection, or NULL. Another endpoint may have the same
    object."""
    cdef size_t i
    if held.items == NULL:
        return NULL
    i = home_of(conn, held.mask)
    while held.items[i] != NULL:
        if held.items[i][0] == conn and (<slot_t*>held.items[i]).ep.key == key:
            return <slot_t*>held.items[i]
        i = (i + 1) & held.mask
    return NULL


cdef Slot find_held_by_key(Core core, conn, PyObject* key, uint64_t* lease):
    """Find a held connection of the endpoint whose key is this very object, or return None.

    :param lease: set to the number of its use
    """
    cdef int stripe = gcp_stripe(key)
    cdef Slot slot = None
    cdef slot_t* s
    gcp_lock_stripe(&core.mutex, stripe)
    s = find_held_of(&core.pool.stripes[stripe].held, <PyObject*>conn, key)
    if s != NULL:
        slot = <Slot>slot_object(s)
        lease[0] = s.lease
    gcp_unlock_stripe(&core.mutex, stripe)
    return slot


cdef Endpoint endpoint_of_release(Core core, endpoint):
    """Return the record of an endpoint whose key is equal to one that a caller has named, but not the same object, or
    None. Runs user code."""
    cdef Endpoint ep
    try:
        ep = find_endpoint(core, endpoint)
    except TypeError:
        check_hashable(endpoint)
        raise
    return None if ep is None or ep.key is endpoint else ep


cdef int check_order(Core core, conn, endpoint) except -1:
    """Refuse a release whose arguments are swapped."""
    if not is_held_anywhere(core, endpoint) or is_held_anywhere(core, conn):
        return 0
    raise ConnectionNotAcquiredError(
        f'the arguments of release are swapped: the connection comes first; write release(conn, endpoint), not '
        f'release(endpoint, conn) (endpoint {describe(conn)}, connection of type {type(endpoint).__name__})')


cdef Slot find_holder(Core core, conn, endpoint, uint64_t* lease):
    """Find the slot of a held connection by an equal key, else of one that is equal. None where a release has nothing
    to do: in a forked child, and after a close.

    :param lease: set to the number of its use
    :raises ConnectionNotAcquiredError: if the connection is not held for this endpoint
    """
    cdef Endpoint ep = find_endpoint(core, endpoint)
    cdef Slot slot = None
    if ep is not None:
        slot = find_held_by_key(core, conn, ep.e.key, lease)
        if slot is None:
            slot = find_equal(core, conn, ep, lease)
    if slot is not None:
        return slot
    if was_closed(core) or is_inherited(&core.pool, <PyObject*>conn) or forget_forced(core, conn):
        return None
    raise ConnectionNotAcquiredError(
        f'this connection is not acquired for endpoint {describe(endpoint)}: it is foreign, of another endpoint, '
        f'or was released already')


cdef bint forget_forced(Core core, conn) except -1:
    """Whether a connection was taken from its holder by a retirement. It is remembered for one release."""
    cdef list all_taken
    gcp_lock_outer(&core.mutex)
    all_taken = list(core.forced.items())
    gcp_unlock_outer(&core.mutex)
    for key, taken in all_taken:
        if taken is conn or taken == conn:
            gcp_lock_outer(&core.mutex)
            core.forced.pop(key, None)
            gcp_unlock_outer(&core.mutex)
            return True
    return False


cdef Slot find_equal(Core core, conn, Endpoint ep, uint64_t* lease):
    """Find a held connection by equality: a caller may have rebuilt its (reader, writer) tuple. Runs `__eq__`."""
    cdef list uses = []
    cdef ring_t* node
    cdef Slot slot
    gcp_lock(&core.mutex)
    node = ep.e.used.next
    while node != &ep.e.used:
        slot = <Slot>slot_object(slot_in_endpoint(node))
        if slot.s.state == USED:
            uses.append((slot, slot.conn, slot.s.lease))
        node = node.next
    gcp_unlock(&core.mutex)
    for slot, other, number in uses:
        if other == conn and is_use(core, slot, number):
            lease[0] = number
            return slot
    return None
