# What follows from a connect that failed: what its manager says about the error, what becomes of its acquire and of
# those that wait for the same endpoint, and what they are told.

from gcp.core.connects cimport end_failed_connect, expire_endpoint
from gcp.core.platform cimport gcp_is_coroutine, gcp_lock, gcp_lock_outer, gcp_unlock, gcp_unlock_outer
from gcp.core.ring cimport ring_t
from gcp.core.state cimport (
    CROWDED_OUT, DONE, FAILED, HOOK_CREATE, HOPELESS, REFUSED, SUSPENDED, UNAVAILABLE, cap, count_hook_call,
    endpoint_link, endpoint_object, endpoint_t, first_waiter, pool_t, taken, waiter_node, waiter_t,
)


cdef object classify(BaseConnectionPool pool, endpoint, error):
    """Ask the manager what an error means. Without an answer it counts as transient."""
    if pool._classify is None:
        return ErrorClass.TRANSIENT
    try:
        kind = pool._classify(endpoint, error)
        if isinstance(kind, ErrorClass):
            return kind
        if gcp_is_coroutine(kind):
            dismiss(kind)
        raise TypeError(
            f'{type(pool._manager).__name__}.classify must return an ErrorClass, not {type(kind).__name__}: {kind!r}')
    except Exception as trouble:
        pool._report('classify failed for', endpoint, trouble)
    return ErrorClass.TRANSIENT


cdef int note_creation(Core core, Slot slot) except -1:
    """Note the span in which a connection was created, where spans are recorded."""
    tracer = tracer_of(core)
    if tracer is not None:
        span = tracer.current()
        gcp_lock_outer(&core.mutex)
        slot.created_by = span
        gcp_unlock_outer(&core.mutex)
    return 0


cdef int end_connect(Acquire acquire, error) except -1:
    """End the connect of an acquire that has failed. Returns DONE if the error is that of the acquire, else a verdict:
    it tries again, or its endpoint is unavailable."""
    cdef Core core = acquire.core
    cdef bint again = retries(core) and not acquire.nowait
    cdef bint last_says_more
    if acquire.misused or not isinstance(error, Exception):
        return_permit(acquire, error)
        return DONE
    limit_passed(core, error, acquire.a.deadline)
    kind = classify(acquire.pool, acquire.key, error)
    core.before('failed')
    if acquire.epoch != core.pool.epoch:    # a forked child starts without its parent's failures
        return_permit(acquire, error)
        return ask(acquire, False) if again and kind is not ErrorClass.PERMANENT else DONE
    last = acquire.last_error
    last_says_more = last is not None and isinstance(error, HookTimeoutError)
    told = last if last_says_more else kept_error(error)
    set_cause(acquire, None)
    set_error_of(core, acquire.ep, told)
    report_failed(acquire, error, told, kind is ErrorClass.PERMANENT, kind is ErrorClass.STALE, again)
    forget_error(core, acquire.ep, False)
    if last_says_more and state_of(acquire) == DONE:
        set_cause(acquire, last)
    acquire.waited = True
    acquire.tried = True
    core.after()
    return look(acquire)


cdef int limit_passed(Core core, error, double deadline) except -1:
    """Let the error of a connect that was ended by `connect_timeout` say so."""
    cdef double limit = connect_limit(core)
    if type(error) is HookTimeoutError and limit < INFINITY and core.now() < deadline:
        error.args = (f'create took longer than connect_timeout={limit:g} s',)
    return 0


cdef int report_failed(Acquire acquire, error, told, bint permanent, bint stale, bint again) except -1:
    """Report a failed connect to the core, with what its manager says about it."""
    cdef Core core = acquire.core
    cdef pool_t* pool = &core.pool
    cdef int outcome = outcome_of(error)
    cdef bint queued
    cdef double now = core.now()
    gcp_lock(&core.mutex)
    own_for_queue(acquire)
    pool.now = now
    count_hook_call(&pool.metrics, HOOK_CREATE, outcome, counted(acquire.call, now - acquire.create_began))
    acquire.w.queued = False
    acquire.create_began = NEVER
    if stale:
        expire_endpoint(pool, acquire.w.ep)
    end_failed_connect(pool, &acquire.w, permanent, again and now < acquire.a.deadline)
    tell_woken(pool, told)
    queued = acquire.w.queued
    if queued and core._tracer is not None:
        acquire.blocked_by = what_blocks(pool, acquire.w.ep, &acquire.w)       # for its span
    gcp_unlock(&core.mutex)
    if not queued:
        Py_DECREF(acquire)
    return 0


cdef void tell_woken(pool_t* pool, error):
    """Give its error to acquires that a connect that failed has ended, before they or others run."""
    cdef ring_t* node = pool.woken.next
    cdef waiter_t* w
    while node != &pool.woken:
        w = waiter_node(node)
        if (w.state == FAILED or w.state == UNAVAILABLE) and (<Acquire>w.self).cause is None:
            (<Acquire>w.self).cause = error
        node = node.next


# --- what an acquire is told ---

cdef str describe_failures(Core core, Endpoint ep, error):
    """Say how many connects have failed, with what, and when the next one is due."""
    cdef double wait, retry_at
    cdef int failures
    cdef bint creating
    cdef str reason = '' if error is None else f' ({describe_error(error)})'
    gcp_lock_outer(&core.mutex)
    retry_at, creating, failures = ep.e.retry_at, ep.e.creating > 0, ep.e.failures
    gcp_unlock_outer(&core.mutex)
    wait = retry_at - core.now()
    when = 'the next one is in progress' if creating else (
        f'the next one is due in {wait:.3g} s' if wait > 0 else 'the next one is due now')
    if failures <= 1:
        return f'the last connect has failed{reason}, {when}'
    return f'the last {failures} connects have failed{reason}, {when}'


cdef object unavailable(Acquire acquire, error):
    """Make the error of an acquire whose endpoint is unavailable."""
    cdef Core core = acquire.core
    cdef endpoint_t* e = &acquire.ep.e
    cdef double now = core.now()
    gcp_lock_outer(&core.mutex)
    retry_at = e.retry_at if e.broken else now
    gcp_unlock_outer(&core.mutex)
    return EndpointUnavailableError(
        f'{acquire.pool.name}: endpoint {describe(acquire.key)} is unavailable: '
        f'{describe_failures(core, acquire.ep, error)}',
        endpoint=acquire.key, retry_at=retry_at,
        phase='waiting' if acquire.tried or acquire.w.queued else 'admission',
    )


cdef int raise_refusal(Acquire acquire, int verdict) except -1:
    """Raise why an acquire gets no connection."""
    if verdict == UNAVAILABLE:
        error = cause_of(acquire)
        raise unavailable(acquire, error) from error
    if verdict == FAILED:
        raise error_of_another(acquire)
    if verdict == CROWDED_OUT:
        raise too_many_waiters(acquire)
    if verdict == HOPELESS:
        raise acquire.timed_out('admission') from cause_of(acquire)
    if verdict == REFUSED:
        raise refused(acquire)
    if verdict == SUSPENDED:
        raise suspended(acquire)
    raise ConnectionPoolClosedError(f'{acquire.pool.name} is closed')


cdef object error_of_another(Acquire acquire):
    """Return the error of another acquire's connect that ends this one, too."""
    gcp_lock_outer(&acquire.core.mutex)
    error, last, traceback = acquire.cause, acquire.ep.last_error, acquire.ep.last_traceback
    gcp_unlock_outer(&acquire.core.mutex)
    return own_error(error, traceback if error is last else None)


cdef object limit_of(pool_t* pool, endpoint_t* e, str block):
    """Return the limit that blocks. Within the lock."""
    if block == 'reserve':
        return e.reserve
    if block == 'connect limit':
        return pool.max_connecting
    if block == 'connect workers':
        return pool.connect_workers
    if block == 'total connect limit':
        return pool.max_connecting_total
    return cap(e) if taken(e) - e.reserved >= cap(e) or block == 'retry delay' else pool.total_max_size


cdef str describe_block(Acquire acquire, str block, limit):
    """Say what an acquire that ran out of time has waited for."""
    if block == 'creation':
        return block
    if block == 'suspended':
        return f'suspend(): {what_is_suspended(acquire.core, acquire.key, acquire.ep)}'
    if block == 'retry delay':
        failures = describe_failures(acquire.core, acquire.ep, acquire.last_error)
        return f'the retry delay of endpoint {describe(acquire.key)}: {failures}'
    owner = f' of endpoint {describe(acquire.key)}' if block in ('connect limit', 'endpoint cap', 'reserve') else ''
    return f'{CAPS[block]}={limit}{owner} ({block})'


# --- what a pool shows of that ---

cdef int SHOWN = 3      # endpoints


cdef str describe_blocks(Core core):
    """Say of the first endpoints that have waiters, or are unavailable, what holds their acquires up."""
    cdef pool_t* pool = &core.pool
    cdef ring_t* node
    cdef Endpoint ep
    cdef list found = []
    gcp_lock(&core.mutex)
    node = pool.endpoints.next
    while node != &pool.endpoints and len(found) < SHOWN:
        if endpoint_link(node).waiting or endpoint_link(node).broken or endpoint_link(node).suspended:
            found.append(<Endpoint>endpoint_object(endpoint_link(node)))
        node = node.next
    whole = '; suspended' if pool.suspended else ''
    gcp_unlock(&core.mutex)
    return whole + ''.join([f'; {describe(ep.key)}: {describe_endpoint(core, ep)}' for ep in found])


cdef str describe_endpoint(Core core, Endpoint ep):
    cdef endpoint_t* e = &ep.e
    cdef str block
    cdef int waiting
    cdef bint broken, creating
    gcp_lock(&core.mutex)
    waiting, broken, creating = e.waiting, e.broken, e.creating > 0
    block = what_blocks(&core.pool, e, first_waiter(e) if e.waiting else NULL)
    limit = limit_of(&core.pool, e, block)
    error = ep.last_error
    gcp_unlock(&core.mutex)
    if broken:
        return f"breaker {'half open' if creating else 'open'}: {describe_failures(core, ep, error)}"
    if block == 'suspended':
        return f'{waiting} waiting, suspended'
    if block == 'retry delay':
        return f'{waiting} waiting, retry delay: {describe_failures(core, ep, error)}'
    if block == 'creation':
        return f'{waiting} waiting, creation'
    return f'{waiting} waiting, {CAPS[block]}={limit}'
