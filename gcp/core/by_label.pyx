# The counts of a pool's endpoints by label, for one exporter. They are added up in C: what a reading costs in Python
# depends on the number of labels only.

from gcp.core.platform cimport gcp_lock, gcp_lock_outer, gcp_unlock, gcp_unlock_outer
from gcp.core.ring cimport ring_t
from gcp.core.state cimport (
    N_OUTCOMES, N_REASONS, N_RESULTS, OPEN, cap, counters_t, endpoint_link, endpoint_t, pool_t, suspension,
)


cdef struct sums_t:          # of several endpoints
    Py_ssize_t idle
    Py_ssize_t used
    Py_ssize_t creating
    Py_ssize_t waiting
    counters_t counters
    Py_ssize_t connect_queue
    Py_ssize_t broken        # how many fail at once
    Py_ssize_t missing
    Py_ssize_t suspended
    Py_ssize_t stale
    Py_ssize_t max_size
    double retry_at          # the latest; 0: none is delayed


cdef struct member_t:        # an endpoint with a label
    uint64_t listing
    Py_ssize_t label
    counters_t counters      # as last read


cdef struct arrival_t:       # an endpoint that was listed since the last reading
    uint64_t listing
    sums_t sums


cdef struct walk_t:          # what one walk finds
    member_t* present        # the members that are still there, with their present counters
    Py_ssize_t n_present
    arrival_t* arrivals
    PyObject** keys          # of the arrivals
    Py_ssize_t n_arrivals
    uint64_t listings


cdef inline Py_ssize_t capped_sum(Py_ssize_t one, Py_ssize_t other) noexcept nogil:
    """Add limits up; a limit may be the greatest number that there is."""
    return one + other if one <= PY_SSIZE_T_MAX - other else PY_SSIZE_T_MAX


cdef inline void add_endpoint(pool_t* pool, endpoint_t* e, sums_t* to) noexcept nogil:
    to.idle += e.n_base + e.n_extra + e.checking
    to.used += e.n_used - e.checking
    to.creating += e.creating
    to.waiting += e.waiting
    add_counters(&to.counters, &e.counters)
    to.connect_queue += connect_queue(pool, e)
    to.broken += e.broken
    to.missing += missing(pool, e)
    to.suspended += suspension(pool, e) != OPEN
    to.stale += e.stale
    to.max_size = capped_sum(to.max_size, cap(e))
    if e.delayed:
        to.retry_at = max(to.retry_at, e.retry_at)


cdef void add_sums(sums_t* to, sums_t* more) noexcept nogil:
    to.idle += more.idle
    to.used += more.used
    to.creating += more.creating
    to.waiting += more.waiting
    add_counters(&to.counters, &more.counters)
    to.connect_queue += more.connect_queue
    to.broken += more.broken
    to.missing += more.missing
    to.suspended += more.suspended
    to.stale += more.stale
    to.max_size = capped_sum(to.max_size, more.max_size)
    to.retry_at = max(to.retry_at, more.retry_at)


cdef list counters_as_row(counters_t* counters):
    """Return counters in the order of a row: acquires, releases, closed connections, leaks, failed connects."""
    cdef int i
    cdef list row = [counters.acquires[i] for i in range(<int>N_RESULTS)]
    row += [counters.releases[i] for i in range(<int>N_OUTCOMES)]
    row += [counters.closed[i] for i in range(<int>N_REASONS)]
    row += [counters.leaks, counters.connect_failures[0], counters.connect_failures[1]]
    return row


@cython.final
cdef class LabelReader:
    """The endpoints of one core as one exporter sees them: which of them have a label, a number chosen by the exporter,
    and what was last read of those. Not for several threads at a time.

    A reading consists of `read`, `departed`, `settle`, and any number of calls of `sums`. One that is not carried on
    after `read` has no consequence.

    :ivar endpoints: how many endpoints the last reading has found
    """
    cdef readonly Py_ssize_t endpoints
    cdef member_t* members   # in the order of the pool's ring
    cdef Py_ssize_t n_members
    cdef uint64_t seen       # endpoints listed later have not been read
    cdef walk_t walk
    cdef sums_t other        # of the endpoints without a label
    cdef sums_t* by_label
    cdef Py_ssize_t n_labels
    cdef double now

    def __dealloc__(self):
        free(self.members)
        free(self.by_label)
        drop_walk(&self.walk)

    def read(self, Core core, bint labelled):
        """Read a core: all at one moment.

        :param labelled: whether endpoints may have labels
        :return: ``(total, endpoints listed since the last reading, sum of the max_size of all endpoints)``
        """
        cdef reading_t reading
        cdef sums_t total
        cdef list arrived
        prepare_walk(self, core, labelled, &reading)
        read_pool(&core.pool, &reading)
        walk_endpoints(self, &core.pool, labelled, &reading.oldest)
        gcp_unlock(&core.mutex)
        arrived = list_of_keys(self.walk.keys, self.walk.n_arrivals)
        self.now = reading.now
        if self.walk.n_arrivals > MANY:
            with nogil:
                add_up(self, &total)
        else:
            add_up(self, &total)
        add_counters(&reading.total.counters, &total.counters)
        return end_reading(&reading), arrived, total.max_size

    def departed(self):
        """Return the endpoints with a label that are gone since the last reading, by label: ``{label: (how many, their
        counters as last read)}``. They are returned once."""
        cdef member_t* members = self.members
        cdef Py_ssize_t n = self.n_members
        self.members, self.n_members = self.walk.present, self.walk.n_present
        self.walk.present = NULL
        self.walk.n_present = 0
        try:
            return rows_of_departed(members, n, self.members, self.n_members, self.n_labels)
        finally:
            free(members)

    def settle(self, list labels):
        """Give the endpoints that `read` has returned their labels.

        :param labels: the number of each one's label, from 0; negative: it has none
        """
        cdef arrival_t* arrival
        cdef Py_ssize_t i, label
        grow(self, len(labels), max(labels, default=-1) + 1)
        for i in range(len(labels)):
            label = labels[i]
            arrival = &self.walk.arrivals[i]
            if label < 0:
                add_sums(&self.other, &arrival.sums)
                continue
            self.members[self.n_members].listing = arrival.listing
            self.members[self.n_members].label = label
            self.members[self.n_members].counters = arrival.sums.counters
            self.n_members += 1
            add_sums(&self.by_label[label], &arrival.sums)
        self.seen = self.walk.listings
        drop_walk(&self.walk)

    def sums(self, Py_ssize_t label):
        """Return what was read of the endpoints with a label, added up: ``(row, states)``.

        :param label: its number; negative: of the endpoints without a label
        """
        cdef sums_t none
        if label < 0:
            return sums_as_values(&self.other, self.now)
        if label < self.n_labels:
            return sums_as_values(&self.by_label[label], self.now)
        memset(&none, 0, sizeof(sums_t))
        return sums_as_values(&none, self.now)

    def drop(self):
        """Return all endpoints with a label as departed."""
        drop_walk(&self.walk)
        return self.departed()


cdef tuple sums_as_values(sums_t* sums, double now):
    return (
        [sums.idle, sums.used, sums.creating, sums.waiting, *counters_as_row(&sums.counters)],
        (
            sums.connect_queue, sums.broken, max(0.0, sums.retry_at - now), sums.missing, sums.suspended, sums.stale,
            sums.max_size,
        ),
    )


cdef void drop_walk(walk_t* walk) noexcept:
    free(walk.present)
    free(walk.arrivals)
    free(walk.keys)
    memset(walk, 0, sizeof(walk_t))


cdef inline Py_ssize_t most_arrivals(LabelReader reader, pool_t* pool, bint labelled) noexcept nogil:
    """Return how many endpoints may have been listed since the last reading and still be there."""
    if not labelled:
        return 0
    return min(pool.n_endpoints, <Py_ssize_t>min(pool.listings - reader.seen, <uint64_t>PY_SSIZE_T_MAX))


cdef int prepare_walk(LabelReader reader, Core core, bint labelled, reading_t* reading) except -1:
    """Allocate what a walk fills, and take the lock."""
    cdef walk_t* walk = &reader.walk
    cdef Py_ssize_t room
    while True:
        drop_walk(walk)
        gcp_lock_outer(&core.mutex)
        room = most_arrivals(reader, &core.pool, labelled) + 8
        gcp_unlock_outer(&core.mutex)
        walk.arrivals = <arrival_t*>allocate(room, sizeof(arrival_t))
        walk.keys = <PyObject**>allocate(room, sizeof(PyObject*))
        walk.present = <member_t*>allocate(reader.n_members, sizeof(member_t))
        begin_reading(core, reading)
        memset(&reader.other, 0, sizeof(sums_t))
        if reader.n_labels:
            memset(reader.by_label, 0, <size_t>reader.n_labels * sizeof(sums_t))
        gcp_lock(&core.mutex)
        if most_arrivals(reader, &core.pool, labelled) <= room:
            return 0
        gcp_unlock(&core.mutex)


cdef void walk_endpoints(LabelReader reader, pool_t* pool, bint labelled, oldest_t* oldest) noexcept:
    """Add the counts of all endpoints up. The members and the pool's ring are in the same order."""
    cdef walk_t* walk = &reader.walk
    cdef member_t* member = reader.members
    cdef member_t* end = member + reader.n_members
    cdef ring_t* node = pool.endpoints.next
    cdef endpoint_t* e
    while node != &pool.endpoints:
        e = endpoint_link(node)
        node = node.next
        prefetch_endpoint(node)
        find_oldest(e, oldest)
        while member != end and member.listing < e.listing:
            member += 1
        if member != end and member.listing == e.listing:
            walk.present[walk.n_present].listing = e.listing
            walk.present[walk.n_present].label = member.label
            walk.present[walk.n_present].counters = e.counters
            walk.n_present += 1
            add_endpoint(pool, e, &reader.by_label[member.label])
        elif labelled and e.listing > reader.seen:
            walk.arrivals[walk.n_arrivals].listing = e.listing
            add_endpoint(pool, e, &walk.arrivals[walk.n_arrivals].sums)
            walk.keys[walk.n_arrivals] = e.key
            Py_INCREF(<object>e.key)
            walk.n_arrivals += 1
        else:
            add_endpoint(pool, e, &reader.other)
    reader.endpoints = pool.n_endpoints
    walk.listings = pool.listings


cdef void add_up(LabelReader reader, sums_t* total) noexcept nogil:
    """Add up what was read of all endpoints."""
    cdef Py_ssize_t i
    total[0] = reader.other
    for i in range(reader.n_labels):
        add_sums(total, &reader.by_label[i])
    for i in range(reader.walk.n_arrivals):
        add_sums(total, &reader.walk.arrivals[i].sums)


cdef dict rows_of_departed(
    member_t* members, Py_ssize_t n, member_t* present, Py_ssize_t n_present, Py_ssize_t n_labels,
):
    """Return ``{label: (how many, counters)}`` of the members that are not present."""
    cdef sums_t* gone
    cdef Py_ssize_t i, at = 0
    if n == n_present:
        return {}
    gone = <sums_t*>allocate(n_labels, sizeof(sums_t))
    for i in range(n):
        if at < n_present and present[at].listing == members[i].listing:
            at += 1
            continue
        gone[members[i].label].used += 1
        add_counters(&gone[members[i].label].counters, &members[i].counters)
    try:
        return {i: (gone[i].used, counters_as_row(&gone[i].counters)) for i in range(n_labels) if gone[i].used}
    finally:
        free(gone)


cdef int grow(LabelReader reader, Py_ssize_t arrivals, Py_ssize_t n_labels) except -1:
    """Make room for more members, and for labels up to a number."""
    cdef void* larger
    larger = realloc(reader.members, <size_t>max(1, reader.n_members + arrivals) * sizeof(member_t))
    if larger == NULL:
        raise MemoryError
    reader.members = <member_t*>larger
    if n_labels <= reader.n_labels:
        return 0
    larger = realloc(reader.by_label, <size_t>n_labels * sizeof(sums_t))
    if larger == NULL:
        raise MemoryError
    reader.by_label = <sums_t*>larger
    memset(&reader.by_label[reader.n_labels], 0, <size_t>(n_labels - reader.n_labels) * sizeof(sums_t))
    reader.n_labels = n_labels
    return 0
