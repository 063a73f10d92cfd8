# What finalizers leave behind. A finalizer may run anywhere, also inside a transition of another thread: it takes no
# lock and runs no Python code, but appends to a list that the next call reclaims.

from gcp.core.platform cimport PyObject_CallNoArgs, gcp_lock, gcp_push, gcp_take, gcp_unlock
from gcp.core.ring cimport ring_insert
from gcp.core.state cimport (
    DISCARDED, DISPOSING, endpoint_t, first_waiter, neediest, pool_t, slot_object, slot_t, waiter_t,
)
from gcp.core.transitions cimport discard_slot, reclaim_permits


cdef void abandon_holder(Core core, Holder holder):
    """Leave a slot whose holder was garbage-collected to the next call."""
    cdef slot_t* s = &holder.slot.s
    if holder.epoch != core.pool.epoch or s.lease != holder.lease or s.abandoned_lease == s.lease:
        return
    Py_INCREF(holder.slot)
    s.abandoned_lease = holder.lease
    gcp_push(&core.pool.abandoned_slots, s, &s.next_abandoned)
    request_drain(core, s.ep)


cdef void abandon_victim(Core core, Victim victim):
    """Leave a victim that was not reported gone to the next call, which disposes of it, or reports it."""
    cdef slot_t* s = &victim.slot.s
    if victim.epoch != core.pool.epoch or s.state != DISPOSING:
        return
    Py_INCREF(victim.slot)
    s.abandoned_lease = 0
    s.started = victim.started
    gcp_push(&core.pool.abandoned_slots, s, &s.next_abandoned)
    request_disposal(core, s)


cdef void abandon_acquire(Acquire acquire):
    """Leave an acquire whose awaitable was garbage-collected to the next call."""
    cdef Core core = acquire.core
    Py_INCREF(acquire)
    gcp_push(&core.pool.abandoned_waiters, &acquire.w, &acquire.w.next_abandoned)
    request_drain(core, NULL if acquire.ep is None else &acquire.ep.e)


cdef void request_drain(Core core, endpoint_t* ep):
    """Have what was abandoned reclaimed soon: by what the front has set, by the caller that closes the pool, by the
    waiter that it would serve, or by the collector."""
    cdef object wake = core.on_abandoned
    core.pool.pending = True
    if wake is None and core.pool.closed:
        wake = core.on_drained
    elif wake is None and ep != NULL:
        if ep.waiting == 0 and core.pool.blocked.n:
            ep = neediest(&core.pool)
        if ep.waiting:
            wake = (<Acquire>first_waiter(ep).self).event
    if wake is None and core.watches:
        wake = (<Watch>core.watches[0]).event
    if wake is None:
        wake = core.wake_collector
    if wake is not None:
        try:
            PyObject_CallNoArgs(wake)
        except Exception:
            pass


cdef void request_disposal(Core core, slot_t* victim):
    """Have a returned victim disposed of soon: by the waiter for whom its place is reserved, if there is one. That one
    sleeps until then."""
    cdef endpoint_t* needy = victim.reserved_for
    request_drain(core, victim.ep if needy == NULL or needy.waiting == 0 else needy)


cdef int reclaim(Core core) except -1:
    """Take back all that was abandoned: leases that were never released, acquires that were dropped."""
    cdef pool_t* pool = &core.pool
    cdef slot_t* s = <slot_t*>gcp_take(&pool.abandoned_slots)
    cdef waiter_t* w = <waiter_t*>gcp_take(&pool.abandoned_waiters)
    cdef slot_t* abandoned
    cdef Acquire acquire
    cdef double now = core.now()
    while s != NULL:
        abandoned, s = s, s.next_abandoned
        reclaim_slot(core, abandoned, now)
    while w != NULL:
        acquire = <Acquire>w.self
        w = w.next_abandoned
        Py_DECREF(acquire)
        withdraw_acquire(acquire, GeneratorExit())
    if pool.abandoned_permits:
        gcp_lock(&core.mutex)
        pool.now = now
        reclaim_permits(pool)
        gcp_unlock(&core.mutex)
    core.after()
    return 0


cdef int reclaim_slot(Core core, slot_t* abandoned, double now) except -1:
    cdef Slot slot = <Slot>slot_object(abandoned)
    cdef tuple use = None
    Py_DECREF(slot)
    if core.on_lost is not None and abandoned.abandoned_lease == abandoned.lease and abandoned.acquired:
        use = use_of(core, slot, now)
    gcp_lock(&core.mutex)
    core.pool.now = now
    if abandoned.abandoned_lease:
        if abandoned.lease == abandoned.abandoned_lease and is_held(abandoned):
            core.pool.metrics.abandoned_leases += abandoned.acquired
            discard_slot(&core.pool, abandoned, DISCARDED)
        else:
            use = None
    elif abandoned.state == DISPOSING and not abandoned.started:
        ring_insert(&core.pool.victims, &abandoned.in_pool)
    gcp_unlock(&core.mutex)
    if abandoned.abandoned_lease == 0 and abandoned.started:
        free_place(core, slot, now)
    return tell_lost(core, use)
