# What finalizers leave behind. A finalizer may run anywhere, with the GIL also between two lines of what calls a
# transition in the same thread. It runs no Python code of the pool's, but appends to a list that the next call
# reclaims. Without the GIL it takes the lock, which no thread holds while it runs a finalizer.

from gcp.core.checks cimport stop_checking
from gcp.core.platform cimport PyObject_CallNoArgs, gcp_lock, gcp_unlock, gcp_write
from gcp.core.ring cimport ring_insert
from gcp.core.state cimport (
    CREATE, DISCARDED, DISPOSING, USE, endpoint_t, first_waiter, neediest, pool_t, slot_object, slot_t,
)
from gcp.core.transitions cimport discard_slot, reclaim_permits


cdef void abandon_holder(Core core, Holder holder):
    """Leave a slot whose holder was garbage-collected to the next call."""
    cdef slot_t* s = &holder.slot.s
    cdef object wake = None
    gcp_lock(&core.mutex)
    if holder.epoch == core.pool.epoch and s.lease == holder.lease and s.abandoned_lease != s.lease:
        s.abandoned_lease = holder.lease
        leave_slot(core, s)
        wake = waker(core, s.ep)
    gcp_unlock(&core.mutex)
    call_quietly(wake)


cdef void abandon_victim(Core core, Victim victim):
    """Leave a victim that was not reported gone to the next call, which disposes of it, or reports it."""
    cdef slot_t* s = &victim.slot.s
    cdef object wake = None
    gcp_lock(&core.mutex)
    if victim.epoch == core.pool.epoch and s.state == DISPOSING:
        s.abandoned_lease = 0
        s.started = victim.started
        leave_slot(core, s)
        wake = waker(core, whom_it_serves(s))
    gcp_unlock(&core.mutex)
    call_quietly(wake)


cdef inline void leave_slot(Core core, slot_t* s):
    """Put a slot into the list of those that the next call reclaims, which owns a reference. Within the lock."""
    if s.in_abandoned:
        return
    s.in_abandoned = True
    Py_INCREF(<object>slot_object(s))
    s.next_abandoned = core.pool.abandoned_slots
    core.pool.abandoned_slots = s


cdef void abandon_acquire(Acquire acquire):
    """Leave an acquire whose awaitable was garbage-collected to the next call."""
    cdef Core core = acquire.core
    cdef object wake
    gcp_lock(&core.mutex)
    Py_INCREF(acquire)
    acquire.w.next_abandoned = core.pool.abandoned_waiters
    core.pool.abandoned_waiters = &acquire.w
    wake = waker(core, NULL if acquire.ep is None else &acquire.ep.e)
    gcp_unlock(&core.mutex)
    call_quietly(wake)


cdef void abandon_permit(Acquire acquire):
    """Leave the permit of an acquire that was dropped in the middle to the next call. Where it has a connection, it
    becomes its holder's."""
    cdef Core core = acquire.core
    cdef object wake = None
    gcp_lock(&core.mutex)
    if acquire.w.state == CREATE and acquire.ep.e.listed:
        acquire.ep.e.abandoned_permits += 1
        acquire.ep.e.abandoned_preferred += acquire.w.priority > 0
        core.pool.abandoned_permits = True
        wake = waker(core, &acquire.ep.e)
    elif acquire.w.state == USE:
        receive(acquire)
    gcp_unlock(&core.mutex)
    call_quietly(wake)


cdef void abandon_job(Job job):
    """Leave the permit of a job that was dropped in the middle to the next call. A connection is its holder's."""
    cdef Core core = job.core
    cdef object wake = None
    gcp_lock(&core.mutex)
    if job.slot is not None:
        stop_checking(&core.pool, &job.ep.e)
    elif job.ep.e.listed:
        job.ep.e.abandoned_permits += 1
        job.ep.e.abandoned_jobs += 1
        core.pool.abandoned_permits = True
        wake = waker(core, &job.ep.e)
    gcp_unlock(&core.mutex)
    call_quietly(wake)


cdef object waker(Core core, endpoint_t* ep):
    """Say that something was abandoned. Return what is to be called, so that it is reclaimed soon, or None: what the
    front has set, the caller that closes the pool, the waiter that it would serve, or the collector. Within the lock.

    Nothing is called of a core that is garbage itself. A function, or a `functools.partial`, that the garbage collector
    has cleared is not safe to call: that crashes the interpreter.
    """
    cdef object wake = core._on_abandoned
    gcp_write(&core.pool.pending, True)
    if core.is_garbage:
        return None
    if wake is None and core.pool.closed:
        wake = core.on_drained
    elif wake is None and ep != NULL:
        if ep.waiting == 0 and core.pool.blocked.n:
            ep = neediest(&core.pool)
        if ep.waiting:
            wake = (<Acquire>first_waiter(ep).self).event
    if wake is None and core.watches:
        wake = (<Watch>core.watches[0]).event
    return core._wake_collector if wake is None else wake


cdef void call_quietly(wake):
    if wake is not None:
        try:
            PyObject_CallNoArgs(wake)
        except Exception:
            pass


cdef inline endpoint_t* whom_it_serves(slot_t* victim) noexcept nogil:
    """Return the endpoint whose waiter is to be woken for a victim that came back: that one for whom its place is
    reserved, if there is one. It sleeps until then."""
    cdef endpoint_t* needy = victim.reserved_for
    return victim.ep if needy == NULL or needy.waiting == 0 else needy


cdef int reclaim(Core core) except -1:
    """Take back all that was abandoned: leases that were never released, acquires that were dropped."""
    cdef pool_t* pool = &core.pool
    cdef double now = core.now()
    cdef Slot slot = next_abandoned_slot(core)
    cdef Acquire acquire
    while slot is not None:
        reclaim_slot(core, slot, now)
        slot = next_abandoned_slot(core)
    acquire = next_abandoned_acquire(core)
    while acquire is not None:
        withdraw_acquire(acquire, GeneratorExit())
        acquire = next_abandoned_acquire(core)
    gcp_lock(&core.mutex)
    if pool.abandoned_permits:
        pool.now = now
        reclaim_permits(pool)
    gcp_unlock(&core.mutex)
    core.after()
    return 0


cdef Slot next_abandoned_slot(Core core):
    """Take a slot that finalizers left, or None. Its list has owned a reference."""
    cdef Slot slot = None
    gcp_lock(&core.mutex)
    if core.pool.abandoned_slots != NULL:
        slot = <Slot>slot_object(core.pool.abandoned_slots)
        slot.s.in_abandoned = False
        core.pool.abandoned_slots = slot.s.next_abandoned
    gcp_unlock(&core.mutex)
    if slot is not None:
        Py_DECREF(slot)
    return slot


cdef Acquire next_abandoned_acquire(Core core):
    """Take an acquire that finalizers left, or None. Its list has owned a reference."""
    cdef Acquire acquire = None
    gcp_lock(&core.mutex)
    if core.pool.abandoned_waiters != NULL:
        acquire = <Acquire>core.pool.abandoned_waiters.self
        core.pool.abandoned_waiters = acquire.w.next_abandoned
    gcp_unlock(&core.mutex)
    if acquire is not None:
        Py_DECREF(acquire)
    return acquire


cdef int reclaim_slot(Core core, Slot slot, double now) except -1:
    cdef slot_t* abandoned = &slot.s
    cdef tuple use = None
    cdef bint told = False
    cdef bint gone = False
    gcp_lock(&core.mutex)
    core.pool.now = now
    if abandoned.abandoned_lease:
        if abandoned.lease == abandoned.abandoned_lease and is_held(abandoned):
            told = abandoned.acquired
            if told and core.on_lost is not None:
                use = use_of(slot, now)
            core.pool.metrics.abandoned_leases += told
            discard_slot(&core.pool, abandoned, DISCARDED)
    elif abandoned.state == DISPOSING:
        gone = abandoned.started
        if not gone:
            ring_insert(&core.pool.victims, &abandoned.in_pool)
    gcp_unlock(&core.mutex)
    if gone:
        free_place(core, slot, now)
    return tell_lost(core, use)
