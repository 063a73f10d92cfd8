# Records: the Python objects that own the C structs of slots and endpoints, and how the garbage collector sees them.

cimport cython
from cpython.object cimport PyObject

from gcp.core.frames cimport gcp_forget_site, gcp_site
from gcp.core.platform cimport (
    PyObject_ClearWeakRefs, PyObject_GC_UnTrack, PyTypeObject, destructor, inquiry, traverseproc, visitproc,
)
from gcp.core.ring cimport ring_init, ring_t
from gcp.core.state cimport (
    endpoint_link, endpoint_object, endpoint_t, limits_t, pool_t, slot_in_endpoint, slot_object, slot_t, waiter_node,
    waiter_t,
)

cdef class Core
cdef class Holder
cdef class Acquire(Holder)
cdef class Release(Holder)
cdef class Job(Holder)
cdef class Watch
cdef class Victim
cdef class Batch
cdef class HookCall
cdef class FinalCounts
cdef class PoolView
cdef class ListenedPool(PoolView)
cdef class BaseConnectionPool(ListenedPool)
cdef class AsyncPool(BaseConnectionPool)


@cython.final
@cython.internal
cdef class Slot:
    """The record of one connection, from its creation until it has been disposed of."""
    cdef slot_t s
    cdef object conn
    cdef object endpoint     # the key
    cdef object created_by   # the span in which it was created, if a tracer records spans
    cdef gcp_site site       # where it was acquired last, if that was noted
    cdef uint64_t noted      # for which use

    def __cinit__(self):
        ring_init(&self.s.in_endpoint)
        ring_init(&self.s.in_pool)
        ring_init(&self.s.reservation)
        self.s.due = -1
        self.s.check = -1

    def __dealloc__(self):
        gcp_forget_site(&self.site)


@cython.final
@cython.internal
cdef class Endpoint:
    """The record of one endpoint. Owns a reference to each of its slots."""
    cdef endpoint_t e
    cdef object key
    cdef object last_error   # of create, kept while there are waiters, and while it tells when to connect again
    cdef object last_traceback   # of that error, as it left the hook
    cdef object trouble      # of its last connect in the background, if that has failed

    def __cinit__(self, key):
        cdef endpoint_t* e = &self.e
        self.key = key
        e.key = <PyObject*>key
        e.rank = -1
        e.expiring = -1
        forget_limits(&e.own)
        ring_init(&e.base)
        ring_init(&e.extras)
        ring_init(&e.used)
        ring_init(&e.disposals)
        ring_init(&e.queue)
        ring_init(&e.link)
        ring_init(&e.in_failing)
        ring_init(&e.in_unbegun)
        ring_init(&e.in_short)


cdef void forget_limits(limits_t* own) noexcept nogil:
    """Forget what an endpoint was given."""
    own.max_size = own.min_idle = own.max_waiting = own.floor = own.reserve = -1
    own.idle_timeout = own.max_lifetime = own.weight = -1.0


cdef int check_layout() except -1:
    """Check what `slot_object` and `endpoint_object` take for granted: where in its object a struct lies."""
    cdef Slot slot = Slot()
    cdef Endpoint ep = Endpoint(None)
    if slot_object(&slot.s) != <PyObject*>slot or endpoint_object(&ep.e) != <PyObject*>ep:
        raise SystemError('gcp._core: the C structs do not follow the header of their objects in this build')
    return 0


check_layout()


# An endpoint owns references to its slots, and a core to its endpoints, through C pointers that Cython does not know.
# The traversals below show them to the cyclic garbage collector; without them, a connection that refers to its pool
# would keep both alive for ever.

cdef traverseproc endpoint_traverse_attributes
cdef traverseproc core_traverse_attributes
cdef inquiry core_clear_attributes
cdef destructor core_dealloc_attributes


cdef int visit_queue(ring_t* ring, visitproc visit, void* arg) noexcept:
    cdef ring_t* node = ring.next
    cdef int stop
    while node != ring:
        stop = visit(waiter_node(node).self, arg)
        if stop:
            return stop
        node = node.next
    return 0


cdef int visit_slots(ring_t* ring, visitproc visit, void* arg) noexcept:
    cdef ring_t* node = ring.next
    cdef int stop
    while node != ring:
        stop = visit(slot_object(slot_in_endpoint(node)), arg)
        if stop:
            return stop
        node = node.next
    return 0


cdef int endpoint_traverse(PyObject* self, visitproc visit, void* arg) noexcept:
    cdef endpoint_t* e = &(<Endpoint>self).e
    cdef int stop = endpoint_traverse_attributes(self, visit, arg)
    if not stop and e.listed:
        stop = visit_slots(&e.base, visit, arg) or visit_slots(&e.extras, visit, arg) \
            or visit_slots(&e.used, visit, arg) or visit_slots(&e.disposals, visit, arg) \
            or visit_queue(&e.queue, visit, arg)
    return stop


cdef int core_traverse(PyObject* self, visitproc visit, void* arg) noexcept:
    cdef pool_t* pool = &(<Core>self).pool
    cdef slot_t* s = pool.abandoned_slots
    cdef waiter_t* w = pool.abandoned_waiters
    cdef int stop = core_traverse_attributes(self, visit, arg)
    cdef ring_t* node = pool.endpoints.next
    while not stop and node != NULL and node != &pool.endpoints:
        stop = visit(endpoint_object(endpoint_link(node)), arg)
        node = node.next
    while not stop and s != NULL:
        stop = visit(slot_object(s), arg)
        s = s.next_abandoned
    while not stop and w != NULL:
        stop = visit(w.self, arg)
        w = w.next_abandoned
    return stop


cdef int core_clear(PyObject* self) noexcept:
    """Drop all references of a core that is garbage: this breaks the cycles that it is part of."""
    (<Core>self).pool.epoch += 1        # the leases that are left have ended
    close_final_counts((<Core>self).final_counts)
    drop_slots(&(<Core>self).pool, False)
    drop_abandoned(&(<Core>self).pool)
    return core_clear_attributes(self)


cdef void core_dealloc(PyObject* self) noexcept:
    """Nobody refers to a core any more. While Cython's function runs `__dealloc__`, it owns a reference, so that a weak
    reference would find the core alive: so those end before."""
    PyObject_GC_UnTrack(self)
    leave_family(&(<Core>self).family)
    close_final_counts((<Core>self).final_counts)
    PyObject_ClearWeakRefs(self)
    core_dealloc_attributes(self)


endpoint_traverse_attributes = (<PyTypeObject*>Endpoint).tp_traverse
(<PyTypeObject*>Endpoint).tp_traverse = endpoint_traverse
