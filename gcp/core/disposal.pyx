# Victims: connections on their way out, gathered into batches. From one `dispose` to the next all is compiled: that
# costs less, and no signal handler can run in between. A victim that is dropped goes back to the core.

from gcp.core.platform cimport (
    gcp_lock, gcp_lock_outer, gcp_read, gcp_swap, gcp_unlock, gcp_unlock_outer, gcp_write,
)
from gcp.core.ring cimport ring_empty, ring_insert, ring_t
from gcp.core.state cimport (
    CALL_TIMEOUT, DISPOSING, HOOK_DISPOSE, endpoint_object, slot_in_pool, slot_object, slot_t,
)
from gcp.core.transitions cimport end_disposal, mark_overdue, take_victim


@cython.final
@cython.freelist(32)
@cython.no_gc_clear
cdef class Victim:
    """A connection on its way out. It is disposed of once."""
    cdef readonly Core core
    cdef Slot slot
    cdef uint64_t epoch
    cdef bint done
    cdef Batch batch                 # from which a worker took it
    cdef bint counted                # its caller does not wait for it any more
    cdef readonly bint overdue       # its disposal takes long: no waiter counts on its place any more
    cdef readonly bint given_up      # ... so long that it counts as gone
    cdef readonly bint started       # its dispose was called, and must not be called again
    cdef double began
    cdef HookCall call               # where spans are recorded

    @property
    def endpoint(self):
        """The endpoint."""
        return self.slot.endpoint

    @property
    def conn(self):
        """The connection."""
        return conn_in(self.core, self.slot)

    @property
    def reason(self):
        """Why it is disposed of."""
        return REASONS[self.slot.s.reason]

    cdef bint belongs_to(self, endpoint) except -1:
        """Whether it is of an endpoint, and its place is not reserved for another one's waiter."""
        cdef bint reserved
        gcp_lock_outer(&self.core.mutex)
        reserved = self.slot.s.reserved_for != NULL
        gcp_unlock_outer(&self.core.mutex)
        return not reserved and (self.slot.endpoint is endpoint or self.slot.endpoint == endpoint)

    cdef int begin(self, origin) except -1:
        """Its dispose is about to be called."""
        cdef Core core = self.core
        if tracer_of(core) is not None:
            self.call = new_hook_call(core, HOOK_DISPOSE, self.slot.endpoint, origin, False)
            self.call.begin()
        self.began = core.now()
        gcp_write(&self.started, True)
        return 0

    cdef int report_gone(self, int outcome, error) except -1:
        """Its disposal has ended, in whatever way: count it, and free its place. A second report changes nothing."""
        cdef Core core = self.core
        cdef double now = core.now()
        cdef bint first = not gcp_swap(&self.done, True)
        core.before('disposed')
        try:
            if self.call is not None:
                self.call.end(outcome, error)
            elif first:
                core.count_hook(HOOK_DISPOSE, outcome, now - self.began)
            gcp_lock_outer(&core.mutex)
            core.dispose_time += (now - self.began - core.dispose_time) * (0.2 if core.dispose_time > 0 else 1.0)
            gcp_unlock_outer(&core.mutex)
        finally:
            if self.epoch == core.pool.epoch:
                free_place(core, self.slot, now)
            core.after()
        return 0

    cpdef int end(self, error, report=None) except -1:
        """Its `dispose` has returned, or raised `error`.

        :param report: called with it and the error, while the span of the call is the current one
        """
        try:
            self.report_gone(outcome_of(error), error)
            if error is not None and report is not None:
                report(self, error)
        finally:
            if self.call is not None:
                self.call.detach()
        return 0

    def give_up(self):
        """Count it as gone although its `dispose` has not returned. Returns whether it had not been counted before. Not
        one whose `dispose` was not called yet: its worker waits for the processor, and needs the connection."""
        cdef bint last = False
        if not gcp_read(&self.started):
            return False
        gcp_write(&self.given_up, True)
        if not self.count(&last):
            return False
        try:
            self.report_gone(CALL_TIMEOUT, None)
        finally:
            if last:
                set_event(self.batch.event)
        return True

    cdef bint count(self, bint* last) noexcept:
        """Let its caller count it as gone, once. Returns whether it was now.

        :param last: set if it was the last one that the caller waited for
        """
        cdef bint first
        gcp_lock_outer(&self.core.mutex)
        first = not self.counted
        self.counted = True
        if first:
            self.batch.left -= 1
            last[0] = self.batch.left == 0
        gcp_unlock_outer(&self.core.mutex)
        return first

    def take_back(self):
        """Return it to the core: its disposal was not begun, because a signal came first."""
        cdef Core core = self.core
        cdef slot_t* s = &self.slot.s
        core.before('spare')
        gcp_lock(&core.mutex)
        if (
            self.epoch == core.pool.epoch and s.state == DISPOSING and not self.started
            and not gcp_swap(&self.done, True)
        ):
            ring_insert(&core.pool.victims, &s.in_pool)
            core.pool.wake_collector = True
        wake = waker(core, whom_it_serves(s))
        gcp_unlock(&core.mutex)
        call_quietly(wake)
        core.after()

    def mark_overdue(self):
        """Say that its disposal takes long: the waiter for whom its place is reserved may be served otherwise."""
        cdef Core core = self.core
        cdef double now
        gcp_write(&self.overdue, True)
        core.before('overdue')
        now = core.now()
        gcp_lock(&core.mutex)
        core.pool.now = now
        if self.epoch == core.pool.epoch:
            mark_overdue(&core.pool, &self.slot.s)
        gcp_unlock(&core.mutex)
        core.after()

    def __dealloc__(self):
        if self.slot is not None and not gcp_read(&self.done):
            abandon_victim(self.core, self)


cdef Victim next_victim(Core core):
    """Take the first victim away for disposal. Returns None if there is none."""
    cdef slot_t* s
    cdef Victim victim
    core.before('victim')
    if not has_victims(core):
        return None
    victim = Victim.__new__(Victim)
    victim.core = core
    victim.epoch = core.pool.epoch
    gcp_lock(&core.mutex)
    s = take_victim(&core.pool)
    if s != NULL:
        victim.slot = <Slot>slot_object(s)
    gcp_unlock(&core.mutex)
    return None if s == NULL else victim


cdef int free_place(Core core, Slot slot, double now) except -1:
    """A victim is gone: its place serves a waiter."""
    cdef bint gone = False
    gcp_lock(&core.mutex)
    core.pool.now = now
    if slot.s.state == DISPOSING:
        end_disposal(&core.pool, &slot.s)
        slot.s.ep = NULL
        slot.s.conn = NULL
        conn, slot.conn = slot.conn, None
        gone = True
    gcp_unlock(&core.mutex)
    if gone:
        conn = None         # its finalizer runs here, before any waiter is told that it is gone
        Py_DECREF(slot)     # the endpoint's
    return 0


cpdef dispose_of(Victim victim, hook, timeout=None, origin=None):
    """Dispose of a victim: call the manager's blocking `dispose`, count, time and trace it, report the victim gone.

    :param hook: the manager's `dispose`
    :param timeout: seconds, passed on to the hook; ``None``: no limit
    :param origin: as for `new_hook_call`
    :return: the error that it raised, or None
    """
    error = None
    conn = victim.conn      # before it begins: from then on it may be given up, and its record refers to nothing
    victim.begin(origin)
    try:
        result = hook(victim.slot.endpoint, conn, timeout=timeout)
        if result is not None:
            check_result(getattr(hook, '__self__', None), HOOK_DISPOSE, result, True)
    except BaseException as e:
        error = e
    conn = None             # its finalizer runs before any waiter is told that it is gone
    victim.end(error)
    return error


# --- batches ---

cdef object NO_ORIGIN = object()    # of a disposal in the background on behalf of no span that records


cpdef origin_of(Core core):
    """Return the span on whose behalf a disposal in the background is made; None: no spans are recorded."""
    tracer = tracer_of(core)
    return None if tracer is None else tracer.current() or NO_ORIGIN


@cython.final
cdef class Batch:
    """Victims that were gathered together. Each worker that is free takes the next one."""
    cdef Core core
    cdef list victims        # the next one is the last
    cdef Py_ssize_t left     # neither gone nor given up; changes within the core's lock
    cdef object origin       # of their spans
    cdef readonly double patience   # how much longer the caller waits once the workers have had their time, seconds
    cdef public object event  # set when all are gone, where a caller waits for that

    cpdef Victim take(self):
        """Take the next victim, or None. A forked child leaves its parent's alone."""
        cdef list gone = []
        gcp_lock_outer(&self.core.mutex)
        victim = self.take_within_lock(gone)
        gcp_unlock_outer(&self.core.mutex)
        return victim

    cdef Victim take_within_lock(self, list gone):
        """As `take`.

        :param gone: gets what a forked child leaves alone: it may die, but not within the lock
        """
        cdef Victim victim
        while self.victims:
            victim = <Victim>self.victims.pop()
            if victim.epoch == self.core.pool.epoch:
                return victim
            gone.append(victim)
        return None

    @property
    def is_gone(self):
        """Whether all are gone, or were given up."""
        cdef Py_ssize_t left
        gcp_lock_outer(&self.core.mutex)
        left = self.left
        gcp_unlock_outer(&self.core.mutex)
        return left == 0

    cpdef bint belongs_to(self, endpoint) except -1:
        """Return whether all are of one endpoint, and no place is reserved for another one's waiter: then they are the
        business of the caller that uses this endpoint."""
        cdef Victim victim
        if endpoint is NO_ENDPOINT:
            return False
        for victim in self.victims:
            if not victim.belongs_to(endpoint):
                return False
        return True

    def wait(self, double seconds):
        """Wait until all are gone. Returns whether they are.

        :param seconds: how long to wait at most; ``inf``: without a limit
        """
        return wait_for_event(self.event, seconds)


cpdef Batch gather(Core core, event=None, origin=None):
    """Take all victims away for disposal. Returns None if there are none.

    :param event: set when all are gone
    :param origin: as for `new_hook_call`
    """
    cdef Victim victim = next_victim(core)
    cdef Batch batch
    if victim is None:
        return None
    batch = Batch.__new__(Batch)
    batch.core = core
    batch.event = event
    batch.origin = origin
    batch.victims = []
    while victim is not None:
        batch.victims.append(victim)
        victim = next_victim(core)
    batch.left = len(batch.victims)
    batch.victims.reverse()
    return batch


cpdef int dispose_here(Batch batch, hook, report) except -1:
    """Dispose of victims in the caller's thread, however long it takes.

    :param hook: the manager's blocking `dispose`
    :param report: called with a victim and the error that its `dispose` raised
    """
    cdef Victim victim = batch.take()
    try:
        while victim is not None:
            error = dispose_of(victim, hook)
            if error is not None:
                report(victim, error)
            victim = batch.take()
    finally:
        batch.victims.clear()       # an error's traceback may keep the batch: its victims go back to the core now
    return 0


cdef Endpoint endpoint_of_first_victim(Core core):
    """Return the record of the endpoint of the first victim, or None."""
    cdef Endpoint ep = None
    gcp_lock(&core.mutex)
    if not ring_empty(&core.pool.victims):
        ep = <Endpoint>endpoint_object(slot_in_pool(core.pool.victims.next).ep)
    gcp_unlock(&core.mutex)
    return ep


cdef bint victims_belong_to(Core core, endpoint) except -1:
    """Whether all victims are of one endpoint, and no place is reserved for another one's waiter."""
    cdef Endpoint ep = endpoint_of_first_victim(core)
    cdef ring_t* node
    cdef bint all_are = True
    if ep is None or (ep.key is not endpoint and find_endpoint(core, endpoint) is not ep):
        return False
    gcp_lock(&core.mutex)
    node = core.pool.victims.next
    while all_are and node != &core.pool.victims:
        all_are = slot_in_pool(node).ep == &ep.e and slot_in_pool(node).reserved_for == NULL
        node = node.next
    gcp_unlock(&core.mutex)
    return all_are
