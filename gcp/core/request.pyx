# What an acquire asks of the core, one transition each: for a slot, for its verdict, to book a connection, to end.

from gcp.core.connects cimport keep_time, serve_due, watch_lingering, watch_reserve
from gcp.core.frames cimport gcp_dropped, gcp_init_dropped, gcp_know_thread, gcp_note_site
from gcp.core.histogram cimport N_WAIT_BOUNDS, gcp_seconds, observe
from gcp.core.platform cimport gcp_count, gcp_lock, gcp_lock_outer, gcp_unlock, gcp_unlock_outer
from gcp.core.reserve cimport count_permit
from gcp.core.ring cimport ring_empty, ring_init, ring_remove
from gcp.core.scheduling cimport note_if_empty
from gcp.core.state cimport (
    ACQUIRE_TIMED_OUT, CALL_ERROR, CANCELLED, CONNECTION_ACQUIRED, CREATE, CREATED, CROWDED_OUT, DEAD, DONE, ERROR, HIT,
    HOOK_CREATE, HOOK_FAILED, HOPELESS, NEW, N_HOOKS, OPEN, REJECTED, TIMED_OUT, TURNED_AWAY, USE, WAIT, WAITED,
    count_hook_call, counters_t, endpoint_object, endpoint_t, pool_t, slot_object, slot_t, suspension,
)
from gcp.core.table cimport table_find
from gcp.core.transitions cimport book_connection, discard_slot, end_release, make_room, request_slot, withdraw


cdef Acquire new_acquire(BaseConnectionPool pool, endpoint, timeout):
    """Make an acquire. It is in no queue yet and holds nothing.

    :param timeout: seconds; ``None``: no limit; zero or less: do not wait
    """
    cdef Core core = pool._core
    cdef Acquire acquire = Acquire.__new__(Acquire)
    cdef double seconds = seconds_allowed(timeout, default_timeout(pool))
    cdef gcp_dropped dropped
    gcp_init_dropped(&dropped)
    gcp_know_thread()
    acquire.pool = pool
    acquire.key = endpoint
    acquire.own = NO_ENDPOINT
    acquire.timeout = timeout
    acquire.nowait = timeout is not None and timeout <= 0
    acquire.w.creates = acquire.nowait or not has_connect_workers(core)
    acquire.w.began = core.now()
    acquire.a.deadline = acquire.w.began + seconds
    if not acquire.w.creates:
        acquire.context = copy_context()
    acquire.a.todo = DO_ASK
    acquire.a.hook = N_HOOKS
    acquire.create_began = NEVER
    acquire.alarm = INFINITY
    acquire.core = core
    if pool.tracks:
        gcp_note_site(&acquire.site, pool.running_task(), &dropped)     # there was nothing before
    ring_init(&acquire.w.node)
    acquire.w.self = <PyObject*>acquire
    arrive(acquire)
    return acquire


cdef Acquire acquire_from_hit(BaseConnectionPool pool, Slot slot, acquire_t* hit, endpoint, timeout):
    """Make an acquire of an idle hit that cannot end as one."""
    cdef Acquire acquire = new_acquire(pool, endpoint, timeout)
    acquire.a = hit[0]
    acquire.slot = slot
    acquire.lease = hit.lease
    acquire.epoch = hit.epoch
    acquire.w.seq = hit.arrival
    acquire.w.began = hit.began
    acquire.w.state = USE
    if acquire.current():
        acquire.ep = <Endpoint>endpoint_object(slot.s.ep)
    return acquire


cdef inline slot_t* slot_of(Acquire acquire, delivery_t* to):
    """Hand the slot of an acquire that has ended well over. The pool owns it."""
    cdef Core core = acquire.core
    cdef slot_t* s = &acquire.slot.s
    gcp_lock(&core.mutex)
    deliver(s, False, NULL, to)
    if acquire.pool.tracks:
        move_site(acquire, &to.dropped)
    gcp_unlock(&core.mutex)
    acquire.slot = None
    return s


cdef void arrive(Acquire acquire):
    cdef pool_t* pool = &acquire.core.pool
    acquire.epoch = pool.epoch
    acquire.w.state = NEW
    acquire.w.seq = gcp_count(&pool.arrivals)


cdef inline void receive(Acquire acquire) noexcept:
    """Take over the slot that a transition assigned. Within the lock."""
    if acquire.w.slot != NULL:
        acquire.slot = <Slot>slot_object(acquire.w.slot)
        acquire.lease = acquire.w.lease
        acquire.w.slot = NULL
        if acquire.slot.s.fresh:
            acquire.slot.s.fresh = False
            acquire.made, acquire.waited = True, False


# --- asking and waiting ---

cdef inline void own_for_queue(Acquire acquire) noexcept:
    """Take the reference for the wait queue, with the lock held. One that was served so lately that its event is not
    set yet is in the ring of the woken still: its reference passes to the queue."""
    if ring_empty(&acquire.w.node):
        Py_INCREF(acquire)
    else:
        ring_remove(&acquire.w.node)


cdef inline int submit(Acquire acquire, bint again, double now) noexcept:
    """Request a slot, with the lock held. The reference that the wait queue owns is taken here."""
    cdef pool_t* pool = &acquire.core.pool
    cdef int verdict
    pool.now = now
    if again and acquire.current():
        discard_slot(pool, &acquire.slot.s, DEAD)
    if acquire.epoch != pool.epoch:
        arrive(acquire)
    acquire.w.ep = &acquire.ep.e
    acquire.w.queued = False
    acquire.w.admitted = again or acquire.nowait
    acquire.w.deadline = acquire.a.deadline
    acquire.create_began = NEVER
    own_for_queue(acquire)
    verdict = request_slot(pool, &acquire.w, now)
    if acquire.w.queued:
        # Does it wait for a disposal that it has set off, or for others?
        acquire.set_off = (
            acquire.ep.e.reserved + acquire.ep.e.disposing >= acquire.ep.e.waiting
            and suspension(pool, &acquire.ep.e) == OPEN)
        acquire.waited = acquire.waited or not acquire.set_off
        if acquire.core._tracer is not None:
            acquire.blocked_by = what_blocks(pool, &acquire.ep.e, &acquire.w)      # for its span
    if verdict == CREATE:
        acquire.create_began = now
    elif verdict == CROWDED_OUT or verdict == HOPELESS:
        note_block(acquire)
    if again:
        acquire.slot = None         # `ask` keeps it until the lock is free
        acquire.a.hook = N_HOOKS
    if verdict == USE:
        receive(acquire)
    return verdict


cdef int ask(Acquire acquire, bint again) except -1:
    """Ask for a slot. Returns the verdict: USE, CREATE, WAIT or TURNED_AWAY.

    :param again: the acquire's connection is dead: it becomes a victim in the same transition, so that no younger
                  acquire takes the place that it leaves
    """
    cdef Core core = acquire.core
    cdef Slot _last = acquire.slot
    cdef int verdict
    cdef bint queued
    cdef double now
    core.before('retry' if again else 'request')
    while True:
        if not again and was_closed(core):
            acquire.w.state = TURNED_AWAY
            return TURNED_AWAY
        if acquire.ep is None or not is_listed(core, acquire.ep):
            acquire.ep = register_endpoint(core, acquire.key)
        now = core.now()
        gcp_lock(&core.mutex)
        if acquire.ep.e.listed:
            break
        gcp_unlock(&core.mutex)
    verdict = submit(acquire, again, now)
    queued = acquire.w.queued
    gcp_unlock(&core.mutex)
    acquire.disposed = False
    if not queued:
        Py_DECREF(acquire)
    core.after()
    tracer = tracer_of(core)
    if tracer is not None and verdict != USE and acquire.caller is None:
        acquire.caller = tracer.caller()    # now: an acquire may be dropped by any thread or task
    return look(acquire)        # other threads may have run since


cdef int arm(Acquire acquire, event) except -1:
    """Say which event ends the wait. Returns the verdict: WAIT, or what has come meanwhile."""
    cdef Core core = acquire.core
    cdef endpoint_t* e = &acquire.ep.e
    cdef bint timed
    cdef double now
    core.before('arm')
    gcp_lock(&core.mutex)
    _last, acquire.event = acquire.event, event
    timed = e.delayed or core.pool.lingerer == &acquire.w or (e.reserve and acquire.w.priority <= 0)
    gcp_unlock(&core.mutex)
    if not timed:
        return look(acquire)
    now = core.now()
    gcp_lock(&core.mutex)
    timed = acquire.epoch == core.pool.epoch and acquire.w.state == WAIT
    if timed:
        core.pool.now = now
        acquire.alarm = INFINITY
        if core.pool.lingerer == &acquire.w:
            acquire.alarm = watch_lingering(&core.pool, &acquire.w)
        if acquire.w.state == WAIT:
            acquire.alarm = min(acquire.alarm, watch_reserve(&core.pool, &acquire.w))
        if e.delayed and acquire.w.state == WAIT:
            serve_due(&core.pool, e, now)
            acquire.alarm = min(acquire.alarm, keep_time(&core.pool, &acquire.w))
        if acquire.nowait or acquire.alarm >= acquire.a.deadline:
            acquire.alarm = INFINITY
    gcp_unlock(&core.mutex)
    if timed:
        core.after()
    return look(acquire)


cdef int poll(Acquire acquire) except -1:
    """Return the verdict."""
    acquire.core.before('poll')
    return look(acquire)


cdef int look(Acquire acquire) except -1:
    cdef int state
    if acquire.epoch != acquire.core.pool.epoch:    # a forked child inherits no wait queue
        return ask(acquire, False)
    gcp_lock_outer(&acquire.core.mutex)
    state = acquire.w.state
    if state == USE and acquire.slot is None:
        receive(acquire)
    gcp_unlock_outer(&acquire.core.mutex)
    if state == CREATE and acquire.create_began == NEVER:
        acquire.create_began = acquire.core.now()
        keep_cause(acquire)
    return state


cdef int expire(Acquire acquire) except -1:
    """Leave the wait queue at the deadline. Returns WAIT if nothing had come, else the verdict that had."""
    cdef Core core = acquire.core
    cdef int found
    cdef double now
    core.before('expire')
    if acquire.epoch != core.pool.epoch:
        return look(acquire)
    now = core.now()
    gcp_lock(&core.mutex)
    core.pool.now = now
    found = acquire.w.state
    if found == WAIT:
        withdraw(&core.pool, &acquire.w)
        note_block(acquire)
    gcp_unlock(&core.mutex)
    if found != WAIT:
        return look(acquire)
    Py_DECREF(acquire)
    keep_cause(acquire)
    forget_error(core, acquire.ep, False)
    core.after()
    return WAIT


# --- creation ---

cdef int have_looked_after(BaseConnectionPool pool) except -1:
    """Before a connection is created: see that what looks for expired and leaked ones runs."""
    collector = collector_of(pool)
    if collector is not None:
        collector.ensure()
    if pool._monitored is not None and counts_leaks(pool._core):
        pool._monitored.ensure()
    return 0


cdef Slot prepare_booking(Core core, Endpoint ep):
    """Allocate all that a connection needs, before `create` is called: one that was created must not be lost. Returns
    its record."""
    cdef Slot slot = Slot.__new__(Slot)
    cdef bint room
    gcp_lock(&core.mutex)
    room = make_room(&core.pool, &ep.e)
    gcp_unlock(&core.mutex)
    if not room:
        raise MemoryError
    return slot


cdef int book(Acquire acquire, conn) except -1:
    """Turn the permit into a connection. Returns USE, or TURNED_AWAY if the pool was closed meanwhile: the connection
    is a victim then. Returns NEW, and changes nothing, if the pool has the connection already."""
    cdef Core core = acquire.core
    cdef Slot slot
    cdef bint known
    cdef double now
    if acquire.fresh is None:       # a test that calls no hook
        acquire.fresh = prepare_booking(core, acquire.ep)
    slot = acquire.fresh
    cdef bint room
    core.before('created')
    now = core.now()
    if not is_listed(core, acquire.ep):
        acquire.ep = register_endpoint(core, acquire.key)   # a forked child: its parent's records are gone
    slot.conn = conn
    slot.endpoint = acquire.ep.key
    slot.s.conn = <PyObject*>conn
    gcp_lock(&core.mutex)
    restore_permit(acquire)
    room = make_room(&core.pool, &acquire.ep.e)     # it has succeeded before, but not in a forked child
    known = table_find(&core.pool.members, <PyObject*>conn) != NULL
    if room and not known:
        Py_INCREF(slot)                         # the endpoint's
        book_connection(&core.pool, &acquire.w, &slot.s, now, counted(acquire.call, now - acquire.create_began))
        receive(acquire)
    gcp_unlock(&core.mutex)
    if known:
        return NEW
    if not room:
        return_permit(acquire, None)
        raise MemoryError
    acquire.fresh = None
    acquire.made = True
    forget_error(core, acquire.ep, True)
    core.after()
    note_creation(core, slot)       # now that it is booked: a signal handler may raise in there
    return state_of(acquire)


cdef bint keep_newborn(Acquire acquire) except -1:
    """Book what an asynchronous `create` returned although something went wrong since: the acquire discards it when it
    is abandoned. Returns whether there is such a connection."""
    conn, acquire.newborn = acquire.newborn, None
    if conn is None or not makes_sense(HOOK_CREATE, conn) or book(acquire, conn) == NEW:
        return False
    acquire.a.hook = HOOK_CREATE
    return True


cdef int return_permit(Acquire acquire, error) except -1:
    """Give back the permit of a creation that failed; the next waiter may try."""
    cdef Core core = acquire.core
    cdef Endpoint ep = acquire.ep
    cdef int outcome = CALL_ERROR if error is None else outcome_of(error)
    cdef double now
    core.before('failed')
    now = core.now()
    gcp_lock(&core.mutex)
    core.pool.now = now
    restore_permit(acquire)
    withdraw(&core.pool, &acquire.w)
    count_hook_call(&core.pool.metrics, HOOK_CREATE, outcome, counted(acquire.call, now - acquire.create_began))
    gcp_unlock(&core.mutex)
    if not forget_error(core, ep, False):
        note_error_of(core, ep, kept_error(error))
    core.after()
    return 0


cdef void restore_permit(Acquire acquire) noexcept:
    """A creation that was in progress at a fork goes on in the child, whose counts start at zero."""
    cdef pool_t* pool = &acquire.core.pool
    if acquire.epoch != pool.epoch:
        arrive(acquire)
        acquire.w.state = CREATE
        acquire.w.ep = &acquire.ep.e
        acquire.w.expiries = acquire.ep.e.expiries
        count_permit(&acquire.w, 1)
        acquire.ep.e.creating += 1
        pool.creating += 1
        pool.size += 1


cdef bint step_back(Acquire acquire) except -1:
    """Return the permit of a connect that has not begun, if its endpoint was suspended meanwhile. Returns whether the
    acquire has to ask again."""
    cdef Core core = acquire.core
    cdef bint back = False
    cdef double now
    if acquire.epoch != core.pool.epoch or not is_suspended_now(core, acquire.ep):
        return False
    core.before('step_back')
    now = core.now()
    gcp_lock(&core.mutex)
    core.pool.now = now
    if acquire.epoch == core.pool.epoch and suspension(&core.pool, &acquire.ep.e) != OPEN:
        back = withdraw(&core.pool, &acquire.w) == CREATE
    gcp_unlock(&core.mutex)
    core.after()
    return back


# --- the end ---

cdef int finish(Acquire acquire) except -1:
    """End an acquire well: count it. The connection is the caller's from here on."""
    cdef Core core = acquire.core
    cdef bint ours
    cdef double now
    core.before('finish')
    now = core.now()
    gcp_lock(&core.mutex)
    ours = acquire.current() and not core.pool.closed
    if ours:
        acquire.slot.s.acquired = True
        count_acquire(acquire, WAITED if acquire.waited else CREATED if acquire.made else HIT, now)
    gcp_unlock(&core.mutex)
    if not ours:
        raise ConnectionPoolClosedError('the pool was closed while the connection was being acquired')
    try:
        trace_wait(acquire, None)
        core.after()
    except BaseException:       # a signal handler's: the caller will never see the connection
        gcp_lock(&core.mutex)
        if acquire.current():
            core.pool.now = now
            end_release(&core.pool, &acquire.slot.s, now)
        gcp_unlock(&core.mutex)
        raise
    return 0


cdef int result_of(error):
    """Return how an acquire that has raised an error is counted."""
    if isinstance(error, AcquireTimeoutError):
        return TIMED_OUT
    refusals = (TooManyWaitersError, EndpointUnavailableError, PoolSuspendedError)
    return REJECTED if isinstance(error, refusals) else ERROR


cdef bint withdraw_acquire(Acquire acquire, error) except -1:
    """End an acquire badly: leave the wait queue, return the permit or the connection, count the result. A connection
    that a hook had is discarded. Returns whether it had not ended before."""
    cdef Core core = acquire.core
    cdef int found = DONE
    cdef int result = CANCELLED
    cdef double now
    if acquire.ended:
        return False
    if isinstance(error, Exception):
        result = result_of(error)
    stop_timer(acquire)
    core.before('abandon')
    now = core.now()
    gcp_lock(&core.mutex)
    core.pool.now = now
    if acquire.epoch == core.pool.epoch:
        found = withdraw(&core.pool, &acquire.w)
        if found == USE:
            receive(acquire)
            if acquire.current():
                if acquire.a.hook != N_HOOKS:
                    discard_slot(&core.pool, &acquire.slot.s, DEAD if acquire.a.todo == DO_ASK_AGAIN else HOOK_FAILED)
                else:
                    end_release(&core.pool, &acquire.slot.s, now)
        if acquire.ep is not None:
            note_if_empty(&core.pool, &acquire.ep.e)
    acquire.w.state = DONE
    count_acquire(acquire, result, now)
    gcp_unlock(&core.mutex)
    acquire.slot = None
    if found == WAIT:
        Py_DECREF(acquire)
    core.after()
    return True


cdef inline void count_acquire(Acquire acquire, int result, double now) noexcept:
    """Count an acquire that has ended, and how long it took. A hit is not timed."""
    cdef bint known = acquire.ep is not None and acquire.ep.e.listed
    cdef counters_t* counters = &acquire.ep.e.counters if known else &acquire.core.pool.retired
    cdef pool_t* pool = &acquire.core.pool
    acquire.result = result
    acquire.took = now - acquire.w.began
    counters.acquires[result] += 1
    if result != HIT:
        observe(&acquire.core.pool.metrics.wait, gcp_seconds, N_WAIT_BOUNDS, acquire.took)
    acquire.ended = True
    if pool.note != NULL and result == TIMED_OUT:
        pool.note(pool, ACQUIRE_TIMED_OUT, <PyObject*>acquire.key, 0)
    elif pool.note != NULL and (result == HIT or result == CREATED or result == WAITED):
        pool.note(pool, CONNECTION_ACQUIRED, acquire.ep.e.key, 0)


cdef int stop_timer(Acquire acquire) except -1:
    timer = acquire.timer
    if timer is not None:
        acquire.timer = None
        timer.cancel()
    return 0


cdef inline int trace_wait(Acquire acquire, error) except -1:
    """Make the span of an acquire that was no idle hit."""
    tracer = tracer_of(acquire.core)
    if tracer is not None and acquire.result != HIT:
        tracer.waited(acquire, RESULTS[acquire.result], acquire.took, error)
    return 0
