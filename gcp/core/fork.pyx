# fork(): a child starts with empty, working pools. The parent's connections are neither used nor finalized there: many
# drivers' finalizers would send a closing message over a socket that the parent is still using.

from cpython.mem cimport PyMem_RawFree

from gcp.core.connects cimport forget_failures
from gcp.core.histogram cimport histogram_t
from gcp.core.platform cimport GCP_STRIPES, gcp_lock_outer, gcp_mutex, gcp_mutex_init, gcp_unlock_outer
from gcp.core.ring cimport ring_empty, ring_init, ring_insert, ring_remove, ring_t
from gcp.core.screening cimport update_screening
from gcp.core.state cimport (
    DONE, FREE, OPEN, counters_t, endpoint_link, endpoint_object, endpoint_t, first_waiter, metrics_t, pool_t,
    slot_in_endpoint, slot_object, slot_t, stripe_t, waiter_t,
)
from gcp.core.table cimport table_find, table_t


cdef struct family_t:        # all cores of the process, so that a forked child finds its copies
    ring_t ring
    PyObject* core


cdef family_t all_cores
cdef gcp_mutex all_cores_mutex
ring_init(&all_cores.ring)
gcp_mutex_init(&all_cores_mutex)


cdef int join_family(Core core) except -1:
    core.family.core = <PyObject*>core
    gcp_lock_outer(&all_cores_mutex)
    ring_insert(&all_cores.ring, &core.family.ring)
    gcp_unlock_outer(&all_cores_mutex)
    return 0


cdef void leave_family(family_t* member) noexcept nogil:
    """A core ends. Before anything else: a child that is forked then does not find it."""
    if member.ring.next == NULL:
        return
    gcp_lock_outer(&all_cores_mutex)
    ring_remove(&member.ring)
    gcp_unlock_outer(&all_cores_mutex)


cdef void init_stripes(pool_t* pool) noexcept:
    """Make the stripes empty: of a new core, or in a forked child. The numbers of uses go on."""
    cdef stripe_t* stripe
    cdef int i
    for i in range(GCP_STRIPES):
        stripe = &pool.stripes[i]
        ring_init(&stripe.idle_bases)
        ring_init(&stripe.idle_extras)
        stripe.idle = stripe.used = 0
        memset(&stripe.use, 0, sizeof(histogram_t))
        if stripe.leases == 0:
            stripe.leases = i


cdef void empty_pool(pool_t* pool) noexcept:
    """Forget what there is, and what was counted."""
    init_stripes(pool)
    ring_init(&pool.victims)
    ring_init(&pool.reserving)
    ring_init(&pool.failing)
    pool.creating = pool.disposing = pool.waiting = pool.size = 0
    pool.reserved = pool.n_over = 0
    pool.due.n = pool.blocked.n = pool.expiring.n = pool.checks.n = 0
    pool.over = False
    pool.hidden = pool.stale = pool.drains = 0
    pool.suspended = OPEN
    pool.virtual = 0
    pool.lingerer = NULL
    update_screening(pool)
    ring_init(&pool.woken)
    pool.empties = NULL
    pool.called = NULL
    pool.abandoned_slots = NULL
    pool.abandoned_waiters = NULL
    pool.abandoned_permits = False
    pool.wake_collector = False
    pool.n_events = 0
    pool.collector_wakes_at = -INFINITY
    memset(&pool.retired, 0, sizeof(counters_t))
    memset(&pool.metrics, 0, sizeof(metrics_t))


cdef int reset_after_fork(Core core) except -1:
    """Empty a core in a forked child. What the parent held is remembered, so that its release does nothing there."""
    global main_thread
    cdef pool_t* pool = &core.pool
    cdef int i
    main_thread = PyThread_get_thread_ident()
    gcp_mutex_init(&core.mutex)
    for i in range(GCP_STRIPES):
        keep_inherited(&pool.stripes[i])
    drop_slots(pool, True)
    empty_pool(pool)
    pool.epoch += 1
    core.endpoints = {}
    forget_background(core)
    seed(core)
    if core.listener_thread is not None:
        core.listener_thread.reset_after_fork()
    if core.on_fork is not None:
        core.on_fork()
    return 0


cdef void keep_inherited(stripe_t* stripe) noexcept:
    """Remember what the parent holds. In a child of a child, its parent's take the place of its grandparent's."""
    if stripe.inherited.items == NULL or stripe.held.items != NULL:
        PyMem_RawFree(stripe.inherited.items)
        stripe.inherited = stripe.held
        stripe.held.items = NULL
    stripe.held.mask = 0
    stripe.held.n = 0


cdef bint is_inherited(pool_t* pool, PyObject* conn) noexcept:
    """Whether a connection is one that the parent of this forked process used."""
    cdef int i
    for i in range(GCP_STRIPES):
        if table_find(&pool.stripes[i].inherited, conn) != NULL:
            return True
    return False


cdef void drop_slots(pool_t* pool, bint inherited):
    """Forget all endpoints, slots and waiters. Inherited connections are kept alive for ever: never finalized."""
    cdef endpoint_t* e
    cdef waiter_t* w
    cdef ring_t* rings[4]
    cdef int i
    while not ring_empty(&pool.endpoints):
        e = endpoint_link(pool.endpoints.next)
        ring_remove(&e.link)
        ring_remove(&e.in_unbegun)
        ring_remove(&e.in_short)
        e.listed = e.shown = False
        e.suspended = OPEN
        forget_failures(pool, e)
        e.in_called = False
        rings[0], rings[1], rings[2], rings[3] = &e.base, &e.extras, &e.used, &e.disposals
        for i in range(4):
            while not ring_empty(rings[i]):
                drop_slot(slot_in_endpoint(rings[i].next), inherited)
        while not ring_empty(&e.queue):
            w = first_waiter(e)
            ring_remove(&w.node)
            w.state = DONE
            if not inherited:
                Py_DECREF(<object>w.self)
        if not inherited:
            Py_DECREF(<object>endpoint_object(e))
    pool.n_endpoints = 0
    PyMem_RawFree(pool.known.items)
    PyMem_RawFree(pool.members.items)
    memset(&pool.known, 0, sizeof(table_t))
    memset(&pool.members, 0, sizeof(table_t))


cdef void drop_slot(slot_t* s, bint inherited):
    ring_remove(&s.in_endpoint)
    ring_remove(&s.in_pool)
    ring_remove(&s.reservation)
    s.state = FREE
    s.lease = 0
    s.due = -1
    s.check = -1
    if not inherited:
        Py_DECREF(<object>slot_object(s))


cdef void drop_abandoned(pool_t* pool):
    """Forget what finalizers left."""
    cdef slot_t* s = pool.abandoned_slots
    cdef waiter_t* w = pool.abandoned_waiters
    cdef PyObject* owned
    pool.abandoned_slots = NULL
    pool.abandoned_waiters = NULL
    while s != NULL:
        owned = slot_object(s)
        s = s.next_abandoned
        Py_DECREF(<object>owned)
    while w != NULL:
        owned = w.self
        w = w.next_abandoned
        Py_DECREF(<object>owned)


def _after_fork():
    cdef ring_t* node = all_cores.ring.next
    gcp_mutex_init(&all_cores_mutex)
    while node != &all_cores.ring:
        reset_after_fork(<Core>(<family_t*>node).core)
        node = node.next


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_after_fork)
