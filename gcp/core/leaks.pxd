# Leaks: uses that take longer than the threshold. They are counted when they end, or when they are found.

from gcp.core.ring cimport ring_t
from gcp.core.state cimport endpoint_t, pool_t, slot_in_endpoint, slot_t


cdef inline void count_leak(slot_t* s) noexcept nogil:
    """Count a use that takes longer than the threshold, once."""
    if not s.leaked:
        s.leaked = True
        s.ep.counters.leaks += 1


cdef inline double find_leaks_of(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Count the uses of an endpoint that take longer than the threshold: the longest comes first in its ring. Return
    when there may be more; of those that begin after now, none."""
    cdef ring_t* node = ep.used.next
    cdef double again = pool.now + pool.leak_after
    while node != &ep.used:
        if pool.now - slot_in_endpoint(node).since <= pool.leak_after:
            return min(again, slot_in_endpoint(node).since + pool.leak_after)
        if slot_in_endpoint(node).acquired:
            count_leak(slot_in_endpoint(node))
        else:
            again = pool.now        # a hook has it: its acquire may end well
        node = node.next
    return again
