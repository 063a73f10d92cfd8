# Reserve: places of an endpoint that are only for acquires with a priority above 0, here called preferred. The others,
# the ordinary ones, borrow such a place after they have waited for `reserve_timeout`. Where there is no reserve,
# nothing here has a part in anything.
#
# What counts are places, not connections: an idle connection takes none. What a preferred acquire holds comes off the
# reserve, not off the places of the others. A place that is on its way to a waiter (a connect in the background, the
# place of a victim that is reserved for the endpoint) goes to the preferred ones first.

from gcp.core.ring cimport ring_t
from gcp.core.state cimport (
    OPEN, cap, endpoint_t, first_waiter, pool_t, slot_in_endpoint, slot_t, suspension, taken, waiter_node, waiter_t,
)


# --- which places are taken, and for whom ---

cdef inline Py_ssize_t ordinary_places(endpoint_t* ep) noexcept nogil:
    """Return how many places of an endpoint are taken for ordinary acquires, or are about to become free."""
    cdef Py_ssize_t on_the_way = min(ep.jobs + ep.reserved, ep.preferring)
    return taken(ep) - ep.n_base - ep.n_extra - ep.n_preferred - ep.preferred_permits - on_the_way


cdef inline Py_ssize_t for_all(endpoint_t* ep) noexcept nogil:
    """Return how many places of an endpoint ordinary acquires may take without borrowing."""
    return cap(ep) - ep.reserve


cdef inline bint may_borrow(pool_t* pool, waiter_t* w) noexcept nogil:
    """Whether an acquire may take a place of the reserve: it has a priority, or has waited for long enough."""
    return w.priority > 0 or w.borrows or pool.now >= w.began + pool.reserve_timeout


cdef inline bint may_take(pool_t* pool, waiter_t* w) noexcept nogil:
    """Whether an acquire may take a free place of its endpoint, as far as the reserve is concerned."""
    return w.ep.reserve == 0 or ordinary_places(w.ep) < for_all(w.ep) or may_borrow(pool, w)


cdef inline bint may_serve(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Whether the first waiter of an endpoint may take a free place, as far as the reserve is concerned."""
    return may_take(pool, first_waiter(ep))


cdef inline bint may_hit(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Whether an ordinary acquire that comes now may take an idle connection of an endpoint with a reserve."""
    return ep.waiting == 0 and ordinary_places(ep) < for_all(ep) and suspension(pool, ep) == OPEN


cdef inline bint may_ask(pool_t* pool, endpoint_t* ep, int before, int mine) noexcept nogil:
    """Whether one more place may be had for a waiter of an endpoint, as far as the reserve is concerned.

    :param before: how many waiters there are for whom a place is on its way
    :param mine: 1: the place is reserved for the endpoint already, so that it is counted
    """
    cdef ring_t* node = ep.queue.next
    if ep.reserve == 0 or before < ep.preferring or ordinary_places(ep) - mine < for_all(ep):
        return True
    while before > 0 and node.next != &ep.queue:
        node = node.next
        before -= 1
    return may_borrow(pool, waiter_node(node))


cdef inline bint holds_back(pool_t* pool, endpoint_t* ep, waiter_t* w) noexcept nogil:
    """Whether nothing but the reserve keeps an acquire from a free place of its endpoint.

    :param w: NULL: one that comes now, without a priority
    """
    if ep.reserve == 0 or taken(ep) - ep.reserved - ep.n_base - ep.n_extra >= cap(ep):
        return False
    return ordinary_places(ep) >= for_all(ep) and (w == NULL or not may_borrow(pool, w))


# --- what preferred acquires hold ---

cdef inline void count_permit(waiter_t* w, int more) noexcept nogil:
    """Count the permit that an acquire gets, or gives back: -1."""
    if w.priority > 0:
        w.ep.preferred_permits += more


cdef inline bint is_preferred(slot_t* s) noexcept nogil:
    """Whether a preferred acquire has the last use of a connection. One that was not used yet has the number 0."""
    return s.preferred != 0 and s.preferred == s.lease


cdef inline void begin_preferred(slot_t* s, waiter_t* w) noexcept nogil:
    """Count a connection that an acquire gets. Its use has begun."""
    if w.priority > 0:
        s.preferred = s.lease
        s.ep.n_preferred += s.ep.reserve > 0


cdef inline void end_preferred(slot_t* s) noexcept nogil:
    """Count a connection that was released, or taken from its holder. It has the number of its last use still."""
    if is_preferred(s):
        s.preferred = 0
        s.ep.n_preferred -= s.ep.reserve > 0


cdef inline void recount_preferred(endpoint_t* ep) noexcept nogil:
    """Count the connections anew that preferred acquires hold: releases do not count where there is no reserve."""
    cdef ring_t* ring
    cdef ring_t* node
    cdef slot_t* s
    cdef int i
    ep.n_preferred = 0
    for i in range(3):
        ring = &ep.base if i == 0 else &ep.extras if i == 1 else &ep.used
        node = ring.next
        while node != ring:
            s = slot_in_endpoint(node)
            node = node.next
            if i < 2:
                s.preferred = 0
            ep.n_preferred += is_preferred(s)
