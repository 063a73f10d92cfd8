# The state: what a slot, an endpoint, a waiter and a pool are. Plain C structs that point at each other, so that a step
# can change them without touching a Python object. Each struct lives inside the Python object that owns its memory.

cdef enum slot_state:
    FREE, IDLE, USED, RETURNING, DISPOSING

cdef enum waiter_state:
    # the verdicts that a front sees
    NEW, WAIT, CREATE, USE, SHUT, DONE

cdef enum close_reason:
    IDLE_TIMEOUT, MAX_LIFETIME, DEAD, DISCARDED, EVICTED, POOL_CLOSED, HOOK_ERROR, N_REASONS

cdef enum acquire_result:
    HIT, CREATED, WAITED, TIMED_OUT, CANCELLED, ERROR, N_RESULTS

cdef enum release_outcome:
    HANDOFF, TO_DISPOSAL, TO_IDLE, N_OUTCOMES     # the last one beside the first of the results: both are hot


cdef struct waiter_t


cdef struct counters_t:
    uint64_t releases[<int>N_OUTCOMES]
    uint64_t acquires[<int>N_RESULTS]
    uint64_t created
    uint64_t closed[<int>N_REASONS]
    uint64_t leaks


# The fields that an idle hit touches come first, to lie in as few cache lines as may be.

cdef struct slot_t:          # one connection
    ring_t near              # in its endpoint: base, extras, used or limbo
    ring_t far               # in the pool: idle bases or idle extras in the order of release, or the victims
    endpoint_t* ep
    PyObject* conn           # borrowed from the Slot
    double since             # when it entered its state
    double expires
    uint64_t lease           # new with each checkout: whoever holds another number holds nothing
    int state
    bint extra
    bint lent                # its acquire ended well: a release will be counted
    bint leaked              # held for too long, and counted as such
    int reason
    double born
    Py_ssize_t due           # its place in the heap of lifetimes, or -1
    PyObject* self           # the Slot
    ring_t pledge            # in the pool's ring of victims that have promised their place
    endpoint_t* promised_to  # who may create one when this victim is gone
    slot_t* next_orphan
    uint64_t orphan_lease
    bint started             # orphaned after its dispose was called


cdef struct endpoint_t:
    PyObject* key            # borrowed from the Endpoint
    ring_t base              # idle, acquired first in, first out
    ring_t used              # in the order of checkout
    int n_base
    int n_extra
    int n_used
    int waiting
    counters_t counters
    ring_t extras            # idle, acquired last in, first out
    ring_t limbo             # being disposed of
    ring_t line              # waiters, first come first
    ring_t link              # in the pool
    Py_ssize_t creating
    Py_ssize_t disposing
    Py_ssize_t promised      # permits that victims of other endpoints will leave to this one
    Py_ssize_t rank          # its place in the heap of the blocked, or -1
    double create_time       # smoothed, seconds; 0 before the first
    PyObject* self           # the Endpoint; while listed, the pool's ring owns a reference
    Py_ssize_t lost_permits  # of tickets that were dropped; among the creating until the next call
    endpoint_t* next_empty
    bint noted               # in the list of the empty
    bint listed              # known to the pool


cdef struct waiter_t:
    ring_t node
    endpoint_t* ep
    uint64_t seq             # age: smaller is older
    PyObject* self           # the Ticket; while in line or woken, the core owns a reference
    waiter_t* next_woken
    waiter_t* next_orphan
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
    ring_t pledged           # victims whose place is promised, oldest first
    ring_t endpoints
    Py_ssize_t n_endpoints
    due_heap_t due
    blocked_heap_t blocked
    table_t held             # who holds which connection
    table_t inherited        # held by the parent of this forked process
    double now               # when the step in progress happens
    # what a step leaves for its caller to do
    waiter_t* woken          # first come first
    waiter_t* last_woken
    endpoint_t* empties
    bint poke                # the collector sleeps longer than it should
    # left by finalizers, drained by the next call
    slot_t* orphans
    waiter_t* lost
    bint lost_permits
    # counters
    uint64_t leases
    uint64_t arrivals
    uint64_t epoch           # grows in a forked child
    uint64_t random
    double create_time
    double wake_at           # when the collector will look next; -inf without one
    bint closed
    counters_t retired
    metrics_t metrics


cdef inline Py_ssize_t held(endpoint_t* ep) noexcept nogil:
    """What an endpoint has to work with."""
    return ep.n_base + ep.n_extra + ep.n_used + ep.creating


cdef inline Py_ssize_t taken(endpoint_t* ep) noexcept nogil:
    """What counts against an endpoint's cap."""
    return held(ep) + ep.disposing + ep.promised


cdef inline waiter_t* first_waiter(endpoint_t* ep) noexcept nogil:
    return <waiter_t*>ep.line.next.owner


cdef inline slot_t* first_slot(ring_t* ring) noexcept nogil:
    return <slot_t*>ring.next.owner


# --- the owners ---

cdef class Core
cdef class Checkout
cdef class Ticket(Checkout)
cdef class Victim


@cython.final
@cython.internal
cdef class Slot:
    """The long-lived record of one connection."""
    cdef slot_t s
    cdef object conn
    cdef object endpoint     # the key
    cdef object created_by   # the span in which it was created, where somebody records spans

    def __cinit__(self):
        ring_init(&self.s.near, &self.s)
        ring_init(&self.s.far, &self.s)
        ring_init(&self.s.pledge, &self.s)
        self.s.self = <PyObject*>self
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
        e.self = <PyObject*>self
        e.key = <PyObject*>key
        e.rank = -1
        ring_init(&e.base, NULL)
        ring_init(&e.extras, NULL)
        ring_init(&e.used, NULL)
        ring_init(&e.limbo, NULL)
        ring_init(&e.line, NULL)
        ring_init(&e.link, e)


# Slots hang on their endpoint, and endpoints on their core, by C pointers that own references. The cyclic garbage
# collector has to see them: a connection that refers to its pool would otherwise keep both alive for ever.

cdef traverseproc endpoint_traverse_attributes
cdef traverseproc core_traverse_attributes
cdef inquiry core_clear_attributes


cdef int visit_line(ring_t* ring, visitproc visit, void* arg) noexcept:
    cdef ring_t* node = ring.next
    cdef int stop
    while node != ring:
        stop = visit((<waiter_t*>node.owner).self, arg)
        if stop:
            return stop
        node = node.next
    return 0


cdef int visit_slots(ring_t* ring, visitproc visit, void* arg) noexcept:
    cdef ring_t* node = ring.next
    cdef int stop
    while node != ring:
        stop = visit((<slot_t*>node.owner).self, arg)
        if stop:
            return stop
        node = node.next
    return 0


cdef int endpoint_traverse(PyObject* self, visitproc visit, void* arg) noexcept:
    cdef endpoint_t* e = &(<Endpoint>self).e
    cdef int stop = endpoint_traverse_attributes(self, visit, arg)
    if not stop and e.listed:
        stop = visit_slots(&e.base, visit, arg) or visit_slots(&e.extras, visit, arg) \
            or visit_slots(&e.used, visit, arg) or visit_slots(&e.limbo, visit, arg) \
            or visit_line(&e.line, visit, arg)
    return stop


cdef int core_traverse(PyObject* self, visitproc visit, void* arg) noexcept:
    cdef pool_t* pool = &(<Core>self).pool
    cdef slot_t* s = pool.orphans
    cdef waiter_t* w = pool.lost
    cdef int stop = core_traverse_attributes(self, visit, arg)
    cdef ring_t* node = pool.endpoints.next
    while not stop and node != NULL and node != &pool.endpoints:
        stop = visit((<endpoint_t*>node.owner).self, arg)
        node = node.next
    while not stop and s != NULL:
        stop = visit(s.self, arg)
        s = s.next_orphan
    while not stop and w != NULL:
        stop = visit(w.self, arg)
        w = w.next_orphan
    return stop


cdef int core_clear(PyObject* self) noexcept:
    """The pool is garbage: let go of everything, so that what refers to it from there goes too."""
    (<Core>self).pool.epoch += 1        # what handles are left hold nothing
    (<Core>self).close_ledger()
    (<Core>self).drop_all(False)
    (<Core>self).drop_abandoned()
    return core_clear_attributes(self)


endpoint_traverse_attributes = (<PyTypeObject*>Endpoint).tp_traverse
(<PyTypeObject*>Endpoint).tp_traverse = endpoint_traverse
