# The state: what a slot, an endpoint, a waiter and a pool are. Plain C structs that point at each other, so that a step
# can change them without touching a Python object. Each struct lives inside the Python object that owns its memory.

cdef enum slot_state:
    FREE, IDLE, USED, RETURNING, DISPOSING

cdef enum waiter_state:
    # the verdicts that a front sees
    NEW, WAIT, CREATE, USE, TURNED_AWAY, DONE

cdef enum close_reason:
    IDLE_TIMEOUT, MAX_LIFETIME, DEAD, DISCARDED, EVICTED, POOL_CLOSED, HOOK_FAILED, N_REASONS

cdef enum acquire_result:
    HIT, CREATED, WAITED, TIMED_OUT, CANCELLED, ERROR, N_RESULTS

cdef enum release_outcome:
    HANDOFF, TO_DISPOSAL, TO_IDLE, N_OUTCOMES     # the last one beside the first of the results: both are hot


cdef struct waiter_t

ctypedef unsigned char flag_t


cdef struct counters_t:
    uint64_t releases[<int>N_OUTCOMES]
    uint64_t acquires[<int>N_RESULTS]
    uint64_t created
    uint64_t closed[<int>N_REASONS]
    uint64_t leaks


# What an idle hit touches comes first, and lies in two cache lines of 64 bytes each: the object's header (16 bytes)
# belongs to the first. Whoever a ring's node belongs to is known from where the node lies in its struct: see
# `slot_in_endpoint` and others.

cdef struct slot_t:          # one connection
    PyObject* conn           # owned by the Slot; known by it: see the table
    ring_t in_endpoint              # in its endpoint: base, extras, used or disposals
    ring_t in_pool               # in the pool: idle bases or idle extras in the order of release, or the victims
    endpoint_t* ep
    double since             # when it entered its state
    double expires
    uint64_t lease           # new with each checkout: whoever holds another number holds nothing
    unsigned char state
    unsigned char reason
    flag_t extra
    flag_t acquired              # its acquire ended well: a release will be counted
    flag_t leaked            # held for too long, and counted as such
    flag_t started           # orphaned after its dispose was called
    double born
    ring_t reservation            # in the pool's ring of victims that have reserved their place
    endpoint_t* reserved_for  # who may create one when this victim is gone
    Py_ssize_t due           # its place in the heap of lifetimes, or -1
    slot_t* next_abandoned
    uint64_t abandoned_lease


cdef struct endpoint_t:
    PyObject* key            # owned by the Endpoint; known by it: see the table
    ring_t base              # idle, acquired first in, first out
    ring_t used              # in the order of checkout
    int n_base
    int n_extra
    int n_used
    int waiting
    counters_t counters
    ring_t extras            # idle, acquired last in, first out
    ring_t disposals             # being disposed of
    ring_t queue             # waiters, first come first
    ring_t link              # in the pool
    int creating
    int disposing
    int reserved             # permits that victims of other endpoints will leave to this one
    int abandoned_permits         # of tickets that were dropped; among the creating until the next call
    Py_ssize_t rank          # its place in the heap of the blocked, or -1
    double create_time       # smoothed, seconds; 0 before the first
    endpoint_t* next_empty
    flag_t in_empties             # in the list of the empty
    flag_t listed            # known to the pool; while it is, the pool's ring owns a reference


cdef struct waiter_t:
    ring_t node
    endpoint_t* ep
    uint64_t seq             # age: smaller is older
    PyObject* self           # the Ticket; while in line or woken, the core owns a reference
    waiter_t* next_woken
    waiter_t* next_abandoned
    slot_t* slot
    double began             # when its acquire was called
    int ahead                # how many were in line when it came
    uint64_t lease
    int state
    bint queued              # has been in line


cdef struct pool_t:
    # limits
    Py_ssize_t max_size
    Py_ssize_t total_max_size
    Py_ssize_t min_idle
    double idle_timeout
    double max_lifetime
    double jitter
    double leak_after        # a use that takes longer counts as a leak; inf: none does
    # where connections are now
    Py_ssize_t idle
    Py_ssize_t used
    Py_ssize_t creating
    Py_ssize_t disposing
    Py_ssize_t waiting
    Py_ssize_t size          # the sum of the four
    ring_t idle_bases        # pool-wide, longest idle first
    ring_t idle_extras
    ring_t victims           # decided on, not yet taken away for disposal
    ring_t reserving           # victims whose place is reserved, oldest first
    ring_t endpoints
    Py_ssize_t n_endpoints
    due_heap_t due
    blocked_heap_t blocked
    table_t known            # endpoints by their key: by the very object, that is
    table_t held             # who holds which connection
    table_t inherited        # held by the parent of this forked process
    double now               # when the step in progress happens
    double next_expiry           # nothing that is idle expires before
    # what a step leaves for its caller to do
    waiter_t* woken          # first come first
    waiter_t* last_woken
    endpoint_t* empties
    bint wake_collector                # the collector sleeps longer than it should
    # left by finalizers, drained by the next call
    bint pending              # there is something
    slot_t* abandoned_slots
    waiter_t* abandoned_waiters
    bint abandoned_permits
    # counters
    uint64_t leases
    uint64_t arrivals
    uint64_t epoch           # grows in a forked child
    uint64_t random
    double create_time
    double collector_wakes_at           # when the collector will look next; -inf without one
    bint closed
    counters_t retired
    metrics_t metrics


cdef inline Py_ssize_t held(endpoint_t* ep) noexcept nogil:
    """What an endpoint has to work with."""
    return ep.n_base + ep.n_extra + ep.n_used + ep.creating


cdef inline Py_ssize_t taken(endpoint_t* ep) noexcept nogil:
    """What counts against an endpoint's cap."""
    return held(ep) + ep.disposing + ep.reserved


# --- from a ring's node to whom it belongs ---

cdef inline slot_t* slot_in_endpoint(ring_t* node) noexcept nogil:
    cdef slot_t* any = <slot_t*>node        # not one: it only says where in one the node lies
    return <slot_t*>(<char*>node - (<char*>&any.in_endpoint - <char*>any))


cdef inline slot_t* slot_in_pool(ring_t* node) noexcept nogil:
    cdef slot_t* any = <slot_t*>node
    return <slot_t*>(<char*>node - (<char*>&any.in_pool - <char*>any))


cdef inline slot_t* slot_reservation(ring_t* node) noexcept nogil:
    cdef slot_t* any = <slot_t*>node
    return <slot_t*>(<char*>node - (<char*>&any.reservation - <char*>any))


cdef inline endpoint_t* endpoint_link(ring_t* node) noexcept nogil:
    cdef endpoint_t* any = <endpoint_t*>node
    return <endpoint_t*>(<char*>node - (<char*>&any.link - <char*>any))


cdef inline waiter_t* waiter_node(ring_t* node) noexcept nogil:
    cdef waiter_t* any = <waiter_t*>node
    return <waiter_t*>(<char*>node - (<char*>&any.node - <char*>any))


cdef inline waiter_t* first_waiter(endpoint_t* ep) noexcept nogil:
    return waiter_node(ep.queue.next)


# A slot and an endpoint are what their objects begin with.

cdef inline PyObject* slot_object(slot_t* s) noexcept nogil:
    return <PyObject*>(<char*>s - sizeof(PyObject))


cdef inline PyObject* endpoint_object(endpoint_t* e) noexcept nogil:
    return <PyObject*>(<char*>e - sizeof(PyObject))


# --- the owners ---

cdef class Core
cdef class Holder
cdef class Acquire(Holder)
cdef class Release(Holder)
cdef class Victim
cdef class Batch
cdef class HookCall
cdef class FinalCounts
cdef class BaseConnectionPool


@cython.final
@cython.internal
cdef class Slot:
    """The long-lived record of one connection."""
    cdef slot_t s
    cdef object conn
    cdef object endpoint     # the key
    cdef object created_by   # the span in which it was created, where somebody records spans

    def __cinit__(self):
        ring_init(&self.s.in_endpoint)
        ring_init(&self.s.in_pool)
        ring_init(&self.s.reservation)
        self.s.due = -1


@cython.final
@cython.internal
cdef class Endpoint:
    """The record of one endpoint; owns its slots."""
    cdef endpoint_t e
    cdef object key
    cdef object last_error   # of create, kept while somebody waits for its outcome

    def __cinit__(self, key):
        cdef endpoint_t* e = &self.e
        self.key = key
        e.key = <PyObject*>key
        e.rank = -1
        ring_init(&e.base)
        ring_init(&e.extras)
        ring_init(&e.used)
        ring_init(&e.disposals)
        ring_init(&e.queue)
        ring_init(&e.link)


cdef int check_layout() except -1:
    """See to it that `slot_object` and `endpoint_object` are right."""
    cdef Slot slot = Slot()
    cdef Endpoint ep = Endpoint(None)
    if slot_object(&slot.s) != <PyObject*>slot or endpoint_object(&ep.e) != <PyObject*>ep:
        raise SystemError('gcp._core was compiled in a way that it does not understand')
    return 0


check_layout()


# Slots hang on their endpoint, and endpoints on their core, by C pointers that own references. The cyclic garbage
# collector has to see them: a connection that refers to its pool would otherwise keep both alive for ever.

cdef traverseproc endpoint_traverse_attributes
cdef traverseproc core_traverse_attributes
cdef inquiry core_clear_attributes


cdef int visit_line(ring_t* ring, visitproc visit, void* arg) noexcept:
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
            or visit_line(&e.queue, visit, arg)
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
    """The pool is garbage: drop everything, so that what refers to it from there is freed, too."""
    (<Core>self).pool.epoch += 1        # what handles are left hold nothing
    close_final_counts(<Core>self)
    drop_slots(&(<Core>self).pool, False)
    drop_abandoned(&(<Core>self).pool)
    return core_clear_attributes(self)


endpoint_traverse_attributes = (<PyTypeObject*>Endpoint).tp_traverse
(<PyTypeObject*>Endpoint).tp_traverse = endpoint_traverse
