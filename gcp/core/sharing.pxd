# Sharing: which endpoints get the places of the total cap, where some have weights or floors of their own. Without any,
# `scheduling` shares by what endpoints hold, and nothing here has a part in it.
#
# Each endpoint has a virtual time, as in start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996): the place-
# seconds that it has had, divided by its weight. A place goes to the blocked endpoint whose virtual time is least.
# An endpoint that comes back does not catch up on what it did not ask for: it starts at the virtual time of the
# pool. What is shared are places, which are costly to move, not packets: so one moves only when its endpoint is
# ahead by a quantum.

from gcp.core.ring cimport ring_insert
from gcp.core.state cimport endpoint_t, first_waiter, held, pool_t, slot_t, waiter_t

cdef enum:
    # A quantum, in uses of a connection. With 50 endpoints that overload 20 places, it keeps evictions below one
    # percent of the acquires.
    QUANTUM = 96
    # A quantum, in connects.
    WORTH_CONNECTS = 8
    # Quanta by which an endpoint may be ahead. A floor above its share puts an endpoint ahead for ever.
    MOST_AHEAD = 10


cdef inline double quantum(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Return for how long a place stays with an endpoint, seconds: much longer than what it costs to move it."""
    return max(QUANTUM * ep.use_time, WORTH_CONNECTS * pool.create_time)


cdef inline double virtual_time(endpoint_t* ep, double now) noexcept nogil:
    """Return the virtual time of an endpoint."""
    return ep.virtual + ep.places * (now - ep.settled) / ep.weight if now > ep.settled else ep.virtual


cdef inline void settle(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Bring an endpoint's virtual time up to date, before or after its places have changed."""
    ep.virtual = virtual_time(ep, pool.now)
    ep.settled = max(ep.settled, pool.now)
    ep.places = held(ep) + ep.reserved
    ep.virtual = min(ep.virtual, pool.virtual + MOST_AHEAD * quantum(pool, ep) / ep.weight)


cdef inline void join_contest(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """An endpoint asks for places that others have: it starts at the virtual time of the pool."""
    ep.virtual = max(ep.virtual, pool.virtual)


cdef inline void advance(pool_t* pool, double virtual) noexcept nogil:
    """Note the virtual time of an endpoint that was served, or that is to be served next."""
    pool.virtual = max(pool.virtual, virtual)


cdef inline bint lacks_floor(endpoint_t* ep) noexcept nogil:
    """Whether an endpoint has less than its floor."""
    return held(ep) + ep.reserved < ep.floor


cdef inline bint owes_place(
    pool_t* pool, endpoint_t* ep, endpoint_t* needy, double now, Py_ssize_t mine
) noexcept nogil:
    """Whether an endpoint is to leave a place to a blocked one: to one below its floor, or to one whose virtual time is
    a quantum behind.

    :param mine: the places that it has, this one included
    """
    cdef Py_ssize_t theirs = held(needy) + needy.reserved
    cdef double ahead
    if theirs < needy.floor and mine > ep.floor:
        return True
    if (mine <= ep.floor and theirs >= needy.floor) or theirs * ep.weight >= mine * needy.weight:
        return False
    ahead = virtual_time(ep, now) - virtual_time(needy, now)
    return ahead * 2 * ep.weight * needy.weight >= quantum(pool, ep) * (ep.weight + needy.weight)


# --- connections that linger ---
#
# A client that uses one connection after the other has none between two uses. If its connection were evicted then, each
# use would cost two connects. So a connection stays with an endpoint that is not ahead, for as long as a connect takes:
# waiting for longer would cost more than it may save (the rule of ski rental).

cdef inline double connect_price(pool_t* pool, endpoint_t* needy) noexcept nogil:
    """Return how long a connect of an endpoint takes, seconds."""
    return needy.create_time if needy.create_time > 0 else pool.create_time


cdef inline bint lingers(pool_t* pool, slot_t* s, endpoint_t* needy) noexcept nogil:
    """Whether an idle connection is not to be evicted yet for a blocked endpoint."""
    return (
        pool.sharing and pool.now < s.since + connect_price(pool, needy)
        and not owes_place(pool, s.ep, needy, pool.now, held(s.ep))
    )


cdef inline void call_lingerer(pool_t* pool, endpoint_t* needy) noexcept nogil:
    """See to it that a waiter looks again when an idle connection lingers no more."""
    if pool.lingerer != NULL:
        return
    pool.lingerer = first_waiter(needy)
    pool.wake_collector = True          # so that a release looks what it has left to do
    if not needy.in_called:
        needy.in_called = True
        needy.next_called = pool.called
        pool.called = needy


cdef inline bint may_linger(pool_t* pool, slot_t* s, endpoint_t* needy, double now) noexcept nogil:
    """Whether a slot in no ring, whose own endpoint has no waiters, stays with it for a while. A waiter looks again
    then."""
    advance(pool, min(virtual_time(s.ep, now), virtual_time(needy, now)))
    if s.ep.suspended or owes_place(pool, s.ep, needy, now, held(s.ep) + 1):
        return False
    call_lingerer(pool, needy)
    return True


# --- endpoints without connections ---

cdef inline bint remember_ahead(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Remember an endpoint that has had more than its share, should it come back soon. Returns whether it has."""
    if ep.virtual <= pool.virtual:
        return False
    ep.failed_at = pool.now
    ring_insert(&pool.failing, &ep.in_failing)
    return True
