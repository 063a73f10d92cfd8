# Changing limits while a pool is in use.

from gcp.core.platform cimport (
    gcp_count, gcp_lock, gcp_lock_outer, gcp_swap, gcp_unlock, gcp_unlock_outer, gcp_write,
)
from gcp.core.resizing cimport all_asked, put_in_force
from gcp.core.ring cimport ring_t
from gcp.core.state cimport endpoint_link, limits_t, pool_t, waiter_node

#: options that the limits of single endpoints are compared with, or take the place of
cdef frozenset OF_ENDPOINTS = frozenset([
    'limits', 'max_size', 'total_max_size', 'min_idle', 'idle_timeout', 'max_lifetime', 'max_waiting',
    'reserve',
])


cdef int reconfigure(BaseConnectionPool pool, dict changes) except -1:
    """Check changes as a whole, and put them in force in one transition."""
    before = options_of(pool)
    while not replace_options(pool, before, before.changed(changes), changes):
        before = options_of(pool)       # another thread was faster: check them against what holds now


cdef bint replace_options(BaseConnectionPool pool, before, options, dict changes) except -1:
    """Put options in force, unless others are in force by now. Returns whether that was done."""
    cdef Core core = pool._core
    cdef pool_t new
    cdef bint asks = not OF_ENDPOINTS.isdisjoint(changes) and (
        before.limits_of is not None or options.limits_of is not None)
    cdef uint64_t asked = 0
    cdef bint done = False
    cdef bint current = True
    cdef double now
    limits_of, _last = options.limits_of, before.limits_of
    set_pool_limits(&new, limits_among(options))
    core.before('reconfigure')
    while current and not done:
        if asks:
            asked = ask_all(core, options.limits_of)
        now = core.now()
        gcp_lock(&core.mutex)
        current = pool.options is before
        done = current and all_asked(&core.pool, asked)
        if done:
            put_in_force(&core.pool, &new, asked, now)
            core.limits_version += 1
            core._limits_of, pool.options = limits_of, options      # `before` keeps what they were
        gcp_unlock(&core.mutex)
    if done:
        options = options_of(pool)
        use_options(pool, options)
        pool._disposer.set_timeout(options.dispose_timeout)
        if options.background_collector and pool._make_collector is not None:
            start_collector(pool)
        if isinstance(pool, AsyncPool) and not is_in_its_loop(<AsyncPool>pool):
            follow_up_later(<AsyncPool>pool)
        else:
            follow_up(pool)
    return done


cdef uint64_t ask_all(Core core, limits_of) except 0:
    """Ask for the limits of all endpoints that there are. Returns the number under which they are noted."""
    cdef Endpoint ep
    cdef limits_t own
    cdef uint64_t number
    number = gcp_count(&core.limits_asked)
    for ep in list(core.endpoints.values()):
        own = own_limits(core, ep.key, limits_of)
        gcp_lock(&core.mutex)
        ep.e.next_own = own
        ep.e.asked = number
        gcp_unlock(&core.mutex)
    return number


cdef int start_collector(BaseConnectionPool pool) except -1:
    """Start a collector, unless there is one: a pool that had none needs it from now on."""
    cdef bint is_first
    gcp_lock(&pool._core.mutex)
    is_first = gcp_swap(&pool.collects, False)
    gcp_unlock(&pool._core.mutex)
    if not is_first:
        return 0
    try:
        collector = pool._make_collector(pool, pool._disposer)
    except BaseException:
        gcp_lock(&pool._core.mutex)
        gcp_write(&pool.collects, True)     # releases go on collecting
        gcp_unlock(&pool._core.mutex)
        raise
    pool._collector = collector
    if isinstance(pool, AsyncPool) and (<AsyncPool>pool).loop is not None:
        pool._core.wake_collector = collector.look
    return 0


def follow_up(BaseConnectionPool pool):
    """Wake those that are served by the new limits, and have what these leave no room for disposed of."""
    cdef Core core = pool._core
    cdef bint reserves
    core.after()
    gcp_lock_outer(&core.mutex)
    reserves = core.pool.reserves
    gcp_unlock_outer(&core.mutex)
    if reserves:
        wake_to_look(core)
    dispose_soon(pool, GRACE)


cdef int wake_to_look(Core core) except -1:
    """Wake all waiters: each looks anew when it may borrow a place of the reserve."""
    cdef list found = []
    cdef ring_t* each
    cdef ring_t* node
    gcp_lock(&core.mutex)
    each = core.pool.endpoints.next
    while each != &core.pool.endpoints:
        node = endpoint_link(each).queue.next
        while node != &endpoint_link(each).queue:
            found.append((<Acquire>waiter_node(node).self).event)
            node = node.next
        each = each.next
    gcp_unlock(&core.mutex)
    for event in found:
        try:
            set_event(event)
        except Exception:
            pass                # its event loop is closed
    return 0


cdef bint is_in_its_loop(AsyncPool pool) except -1:
    """Whether a pool's event loop runs here. A pool that was not used yet has none, and nothing to do in it."""
    try:
        return pool.loop is None or pool.running_loop() is pool.loop
    except RuntimeError:
        return False


cdef int follow_up_later(AsyncPool pool) except -1:
    """Have the event loop do it: limits may change outside it. One that is closed runs nothing any more."""
    try:
        pool.loop.call_soon_threadsafe(follow_up, pool, context=Context())
    except RuntimeError:
        if not pool.loop.is_closed():
            raise
    return 0
