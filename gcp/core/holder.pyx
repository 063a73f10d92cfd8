# What holds a connection: an acquire that has one already, a lease, a release in progress. One that is dropped in the
# middle leaves the connection to the next call (see finalizers).

from gcp.core.platform cimport gcp_lock, gcp_unlock
from gcp.core.state cimport RETURNING, USED, pool_t, slot_t


cdef inline bint is_held(slot_t* s) noexcept nogil:
    return s.state == USED or s.state == RETURNING


cdef inline bint is_in_use(pool_t* pool, slot_t* s, uint64_t lease, uint64_t epoch, int state) noexcept nogil:
    """Whether the use of a slot with this lease number lasts, and has this state: USED, or RETURNING."""
    return s.lease == lease and s.state == state and epoch == pool.epoch


@cython.no_gc_clear
cdef class Holder:
    """Holds a slot, as the use that has this lease number."""
    cdef readonly Core core
    cdef Slot slot
    cdef uint64_t lease
    cdef uint64_t epoch

    cdef inline void hold(self, Core core, Slot slot, uint64_t lease):
        self.core = core
        self.slot = slot
        self.lease = lease
        self.epoch = core.pool.epoch

    cdef inline bint current(self) noexcept:
        """Whether the connection is still held by this. It is, too, after its release has begun."""
        return (
            self.slot is not None and self.epoch == self.core.pool.epoch and self.slot.s.lease == self.lease
            and is_held(&self.slot.s)
        )

    cdef inline bint holds(self) noexcept nogil:
        """Whether the connection is held by this, and its release has not begun."""
        return self.slot is not None and is_in_use(&self.core.pool, &self.slot.s, self.lease, self.epoch, USED)

    cdef int leave_stale(self, key, error) except -1:
        """Leave a connection that is not held any more: that is misuse, except in a forked child, after a close, and
        where a retirement took the connection."""
        cdef bint allowed = error is not None or self.inherited or was_closed(self.core)
        cdef Slot slot = self.slot
        if slot is not None and was_forced(self.core, slot):
            allowed = True
            forget_forced(self.core, conn_in(self.core, slot))
        self.slot = None
        if not allowed:
            raise ConnectionNotAcquiredError(f'this connection of endpoint {describe(key)} was released already')
        return 0

    @property
    def endpoint(self):
        """The endpoint."""
        return None if self.slot is None else self.slot.endpoint

    @property
    def conn(self):
        """The connection, or None."""
        cdef Slot slot = self.slot
        return None if slot is None else conn_in(self.core, slot)

    @property
    def is_current(self):
        """Whether the connection is still held by this. It is, too, after its release has begun."""
        cdef bint current
        if self.slot is None:
            return False
        gcp_lock(&self.core.mutex)
        current = self.current()
        gcp_unlock(&self.core.mutex)
        return current

    @property
    def inherited(self):
        """Whether this was made by the parent of this forked process."""
        return self.epoch != self.core.pool.epoch

    def __dealloc__(self):
        if self.slot is not None:
            abandon_holder(self.core, self)
