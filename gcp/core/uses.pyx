# Who holds a connection: where it was acquired, by which thread and task, with which tag. Noted in the record of the
# connection at each acquire; described when it is asked for.

from gcp.core.frames cimport (
    gcp_dropped, gcp_forget_dropped, gcp_init_dropped, gcp_know_frames, gcp_know_thread, gcp_line_of, gcp_move_site,
    gcp_note_site, gcp_set_tag, gcp_site, gcp_thread_runs,
)
from gcp.core.platform cimport (
    GCP_STRIPES, gcp_lock, gcp_lock_outer, gcp_read, gcp_unlock, gcp_unlock_outer, gcp_write,
)
from gcp.core.ring cimport ring_t
from gcp.core.state cimport (
    endpoint_link, endpoint_t, pool_t, slot_in_endpoint, slot_object, slot_t, waiter_node, waiter_t,
)

cdef int LONGEST_TAG = 64      # characters
cdef int SURPLUS = 64          # how many more holders than wanted are collected, before the others are dropped

HOLDERS_SHOWN = 3       # in the error of an acquire that ran out of time, and in warnings


cdef inline void note_use(slot_t* s, PyObject* task, gcp_dropped* dropped) noexcept:
    """Note that the caller uses a connection from now on. Within the lock."""
    gcp_note_site(&(<Slot>slot_object(s)).site, task, dropped)
    (<Slot>slot_object(s)).noted = s.lease


cdef inline void move_site(Acquire acquire, gcp_dropped* dropped) noexcept:
    """Note that the caller of an acquire uses its connection from now on. Within the lock."""
    gcp_move_site(&acquire.slot.site, &acquire.site, dropped)
    acquire.slot.noted = acquire.slot.s.lease


cdef int note_tagged(BaseConnectionPool pool, slot_t* s, delivery_t* to, tag) except -1:
    """Note what a connection is used for. Where a pool does not track its holders, it does track those with a tag."""
    cdef Slot slot = <Slot>record_delivered(s, to)
    cdef uint64_t lease = s.lease if GCP_STRIPES == 1 else to.lease
    cdef PyObject* task = NULL if pool.tracks else pool.running_task()
    gcp_know_thread()
    cdef gcp_dropped dropped
    gcp_init_dropped(&dropped)
    gcp_lock(&pool._core.mutex)
    if slot.s.lease == lease:       # otherwise it was taken from its holder already
        if not pool.tracks:
            note_use(&slot.s, task, &to.dropped)
        gcp_set_tag(&slot.site, <PyObject*>tag, &dropped)
    gcp_unlock(&pool._core.mutex)
    gcp_forget_dropped(&dropped)
    return 0


cdef object check_tag(tag):
    """Return a tag, or raise what is wrong with it."""
    if tag is not None and (not isinstance(tag, str) or len(tag) > LONGEST_TAG):
        shown = f'one of {len(tag)}: {tag[:16]!r}...' if isinstance(tag, str) else f'{type(tag).__name__}: {tag!r:.80}'
        raise TypeError(f'tag must be a str of at most {LONGEST_TAG} characters, not {shown}')
    return tag


def line_of(code, int at):
    """Return ``(file, line, function)`` of a place in code.

    :param at: the offset of its instruction, bytes
    """
    return code.co_filename, gcp_line_of(code, at), getattr(code, 'co_qualname', code.co_name)


cdef inline void add_uses(list found, endpoint_t* e, Py_ssize_t most, double before):
    """Collect the connections that have been held since before a time, the longest held first. Within the lock."""
    cdef ring_t* node = e.used.next
    while node != &e.used and most > 0 and slot_in_endpoint(node).since < before:
        if slot_in_endpoint(node).acquired:
            found.append(<Slot>slot_object(slot_in_endpoint(node)))
            most -= 1
        node = node.next


cdef object since_when(Slot slot):
    """The order of `keep_longest`. Within the lock."""
    return slot.s.since


cdef list slots_in_use(Core core, Endpoint ep, Py_ssize_t most):
    """Return the records of the connections that are held, the longest held first.

    :param ep: of which endpoint; None: of all
    :param most: how many at most
    """
    cdef list found = []
    cdef ring_t* node
    cdef double before = INFINITY
    gcp_lock(&core.mutex)
    if ep is not None:
        add_uses(found, &ep.e, most, before)
    else:
        node = core.pool.endpoints.next
        while node != &core.pool.endpoints:
            add_uses(found, endpoint_link(node), most, before)
            if len(found) - SURPLUS > most:
                before = keep_longest(found, most)
            node = node.next
        keep_longest(found, most)
    gcp_unlock(&core.mutex)
    return found


cdef double keep_longest(list found, Py_ssize_t most):
    """Keep those that have been held longest, in order. Returns since when the last of them is held."""
    found.sort(key=since_when)
    del found[most:]
    return (<Slot>found[len(found) - 1]).s.since if found else INFINITY


cdef tuple use_of(Slot slot, double now):
    """Return what is known of a connection's holder, for `gcp.holders`. Within the lock."""
    return facts_of_site(slot.endpoint, now - slot.s.since, &slot.site if slot.noted == slot.s.lease else NULL)


cdef tuple facts_of_site(endpoint, double seconds, gcp_site* site):
    """Return what is known of who holds a connection, or waits for one, and for how long. Within the lock.

    :param site: NULL: it was not noted
    """
    if site == NULL or site.code == NULL:
        return endpoint, max(0.0, seconds), None, None, 0, None, None
    return (
        endpoint,
        max(0.0, seconds),
        (<object>site.code, site.at),
        site.ident,
        site.thread,
        <object>site.task if site.task != NULL else None,
        <object>site.tag if site.tag != NULL else None,
    )


cdef list find_uses(Core core, endpoint, Py_ssize_t most=PY_SSIZE_T_MAX):
    """Return what is known of the holders of connections, the longest held first.

    :param endpoint: of which endpoint; None: of all
    """
    cdef Endpoint ep = None
    cdef Slot slot
    cdef double now
    core.before('holders')
    if endpoint is not None:
        ep = known_endpoint(core, endpoint)
        if ep is None:
            return []
    now = core.now()
    return [use_in(core, slot, now) for slot in slots_in_use(core, ep, most)]


cdef tuple use_in(Core core, Slot slot, double now):
    """As `use_of`, outside the lock."""
    gcp_lock(&core.mutex)
    use = use_of(slot, now)
    gcp_unlock(&core.mutex)
    return use


cdef object find_holders_in_the_way(Acquire acquire):
    """Return a function that describes who holds the connections that an acquire has waited for; None: none does."""
    cdef object endpoint = None if acquire.ep is None or acquire.blocked_by.startswith('total ') else acquire.ep.key
    cdef list uses
    if acquire.core.describe_holders is None:
        return None
    uses = find_uses(acquire.core, endpoint, HOLDERS_SHOWN)
    return partial(acquire.core.describe_holders, uses) if uses else None


def thread_context(uint64_t thread):
    """Return the context variables of a thread as they are now, and whether it runs: ``(context, running)``.

    :param thread: the id of its state
    :return: the context is None where the thread has none, and without the GIL
    """
    cdef PyObject* found = NULL
    cdef bint runs = gcp_thread_runs(thread, &found)
    cdef object context = None
    if found != NULL:
        context = <object>found
        Py_DECREF(context)
    return context if isinstance(context, Context) else None, runs


def know_frames(bint wanted):
    """Say how it is found out where an acquire was called: by a look into the interpreter's frames, if they are as they
    are known to be, or by its functions.

    :param wanted: whether to look; False is for tests
    :return: whether it looks from now on
    """
    return gcp_know_frames(wanted)


know_frames(True)
gcp_know_thread()       # the thread that imports this


# --- what `gcp.holders.monitor` looks for ---

cdef int MOST_COMPARED = 256    # connections of an endpoint


cdef bint is_same_holder(Acquire acquire, slot_t* s) noexcept:
    """Whether a connection is held by the thread, or the task, that waits."""
    cdef Slot slot = <Slot>slot_object(s)
    if not s.acquired or slot.noted != s.lease or slot.site.task != acquire.site.task:
        return False
    return slot.site.task != NULL or slot.site.thread == acquire.site.thread


cdef bint holds_one(Acquire acquire) noexcept:
    """Whether an acquire waits for a connection of its endpoint although its caller holds one: if all others do that,
    none will ever be released."""
    cdef endpoint_t* e = &acquire.ep.e
    cdef ring_t* node
    cdef int left = MOST_COMPARED
    cdef bint found = False
    gcp_lock(&acquire.core.mutex)
    node = e.used.next
    while acquire.site.code != NULL and node != &e.used and left and not found:
        found = is_same_holder(acquire, slot_in_endpoint(node))
        node = node.next
        left -= 1
    gcp_unlock(&acquire.core.mutex)
    return found


cdef int begin_wait(Acquire acquire) except -1:
    """An acquire begins to wait for others: have the pool monitored if that may take long, and say at once if its
    caller holds what it waits for. An error in here, of a logging handler say, must not end the acquire."""
    cdef BaseConnectionPool pool = acquire.pool
    if acquire.nowait or pool._monitored is None:
        return 0
    try:
        if not gcp_read(&pool.monitored) and (pool.reclaims or (pool.warns and acquire.a.deadline == INFINITY)):
            gcp_write(&pool.monitored, True)
            try:
                pool._monitored.begin()
            except BaseException:       # a signal came: the next wait begins it
                gcp_write(&pool.monitored, False)
                raise
        if has_taken_all(acquire) and holds_one(acquire):
            pool._monitored.tell_nested(acquire.key)
    except Exception:
        pass
    return 0


cdef Acquire longest_unlimited(BaseConnectionPool monitored, bint* any_waits):
    """Return the acquire that has waited longest without a time limit, or None.

    :param any_waits: set to whether any acquire waits. It is noted at the same time, so that a wait which begins
        meanwhile either is seen here, or sees that
    """
    cdef Core core = monitored._core
    cdef pool_t* pool = &core.pool
    cdef ring_t* node
    cdef ring_t* waiting
    cdef endpoint_t* e
    cdef waiter_t* w
    cdef waiter_t* longest = NULL
    gcp_lock(&core.mutex)
    node = pool.endpoints.next
    any_waits[0] = pool.waiting > 0
    gcp_write(&monitored.monitored, any_waits[0])
    while node != &pool.endpoints and pool.waiting:
        e = endpoint_link(node)
        node = node.next
        waiting = e.queue.next
        while waiting != &e.queue:
            w = waiter_node(waiting)
            if w.deadline == INFINITY and (longest == NULL or w.began < longest.began):
                longest = w
            waiting = waiting.next
    found = None if longest == NULL else <Acquire>longest.self
    gcp_unlock(&core.mutex)
    return found


def look_at_waits(BaseConnectionPool pool not None):
    """Look for acquires that wait without a time limit, and note whether any acquire waits, as `set_monitored` does.

    :return: ``(whether any acquire waits, the caller that has waited longest, what blocks it, whether it holds a
             connection of the same endpoint)``; the second is None where all have time limits
    """
    cdef bint any_waits = False
    cdef Core core = pool._core
    cdef Acquire acquire = longest_unlimited(pool, &any_waits)
    cdef double now
    if acquire is None or acquire.ep is None:
        return any_waits, None, '', False
    now = core.now()
    gcp_lock(&core.mutex)
    blocked_by = what_blocks(&core.pool, &acquire.ep.e, &acquire.w)
    limit = limit_of(&core.pool, &acquire.ep.e, blocked_by)
    waiter = facts_of_site(acquire.key, now - acquire.w.began, &acquire.site)
    gcp_unlock(&core.mutex)
    block = describe_block(acquire, blocked_by, limit)
    return any_waits, core.describe_holders([waiter])[0], block, holds_one(acquire)


def look_for_leaks(BaseConnectionPool pool not None, told):
    """Look for connections that are held for longer than ``leak_threshold``.

    :param told: the numbers of the uses that were found before
    :return: ``(the new ones: (number, holder), those of `told` that still last, seconds until the next may be found)``
    """
    cdef Core core = pool._core
    cdef double now, again
    cdef Slot slot
    cdef list held = []
    cdef list found = []
    cdef set lasting = set()
    core.before('leaks')
    find_leaks(core, held)
    now = core.now()
    for _since, lease, slot in sorted([since_of(core, slot) for slot in held], key=itemgetter(0)):
        if lease in told:
            lasting.add(lease)
            continue
        use = leaked_use(core, slot, lease, now)
        if use is not None:
            found.append((lease, core.describe_holders([use])[0]))
    gcp_lock(&core.mutex)
    again = core.pool.leaks_at - now if core.pool.leaks_at > now else core.pool.leak_after
    gcp_unlock(&core.mutex)
    return found, lasting, again


cdef tuple since_of(Core core, Slot slot):
    """Return since when a connection is used, the number of the use, and its record."""
    gcp_lock(&core.mutex)
    found = slot.s.since, slot.s.lease, slot
    gcp_unlock(&core.mutex)
    return found


cdef tuple leaked_use(Core core, Slot slot, uint64_t lease, double now):
    """Return what is known of a use that takes longer than the threshold; None: it has ended, or does not."""
    cdef tuple use = None
    gcp_lock(&core.mutex)
    if slot.s.lease == lease and slot.s.acquired and now - slot.s.since > core.pool.leak_after:
        use = use_of(slot, now)
    gcp_unlock(&core.mutex)
    return use


def set_monitored(BaseConnectionPool pool not None, bint monitored):
    """Note whether a pool is monitored, so that its next wait does not ask for it."""
    gcp_write(&pool.monitored, monitored)


def count_reclaim_run(BaseConnectionPool pool not None):
    """Count that the garbage collector was run for holders that are gone."""
    gcp_lock_outer(&pool._core.mutex)
    pool._core.pool.metrics.reclaim_runs += 1
    gcp_unlock_outer(&pool._core.mutex)


def find_holders(BaseConnectionPool pool not None, endpoint, Py_ssize_t most):
    """Describe the holders of connections, the longest held first.

    :param endpoint: of which endpoint; None: of all
    :param most: how many at most
    """
    return pool._core.describe_holders(find_uses(pool._core, endpoint, most))


cdef int tell_lost(Core core, tuple use) except -1:
    """Tell that a lease was garbage-collected. An error of that is not the caller's."""
    if core.on_lost is not None and use is not None:
        try:
            core.on_lost(core.describe_holders([use])[0])
        except Exception:
            pass
    return 0
