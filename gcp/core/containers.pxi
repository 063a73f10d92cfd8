# The three containers of the core: rings (order), heaps (who is next), a table (who holds which connection).
# Plain C over plain pointers: no allocation but growing arrays, no Python object is touched.

cdef struct slot_t           # what they contain: see state
cdef struct endpoint_t


# --- rings: circular lists through nodes that live inside their owners ---

cdef struct ring_t:
    ring_t* prev
    ring_t* next


cdef inline void ring_init(ring_t* head) noexcept nogil:
    head.prev = head
    head.next = head


cdef inline bint ring_empty(ring_t* head) noexcept nogil:
    return head.next == head


cdef inline void ring_insert(ring_t* before, ring_t* node) noexcept nogil:
    """Insert just before a node; before the head means last."""
    node.prev = before.prev
    node.next = before
    before.prev.next = node
    before.prev = node


cdef inline void ring_remove(ring_t* node) noexcept nogil:
    """Take a node out. One that is in no ring stays as it is."""
    node.prev.next = node.next
    node.next.prev = node.prev
    node.prev = node
    node.next = node


# --- heaps: binary, of pointers to structs that remember where they stand, so that removal is O(log n) ---

cdef inline void* grown(void* array, Py_ssize_t* capacity, Py_ssize_t wanted, size_t item) noexcept nogil:
    """Return the array with room for `wanted` items (its capacity at least doubled), or NULL without memory."""
    cdef Py_ssize_t size = capacity[0]
    if wanted <= size:
        return array
    size = max(wanted, 2 * size, 16)
    array = realloc(array, <size_t>size * item)
    if array != NULL:
        capacity[0] = size
    return array


cdef struct due_heap_t:      # connections by the end of their life
    slot_t** items
    Py_ssize_t n
    Py_ssize_t capacity


cdef inline bint dies_before(slot_t* a, slot_t* b) noexcept nogil:
    return a.expires < b.expires


cdef void due_sift(due_heap_t* heap, Py_ssize_t i) noexcept nogil:
    cdef slot_t* item = heap.items[i]
    cdef Py_ssize_t other
    while i > 0:
        other = (i - 1) >> 1
        if not dies_before(item, heap.items[other]):
            break
        heap.items[i] = heap.items[other]
        heap.items[i].due = i
        i = other
    while True:
        other = 2 * i + 1
        if other >= heap.n:
            break
        if other + 1 < heap.n and dies_before(heap.items[other + 1], heap.items[other]):
            other += 1
        if not dies_before(heap.items[other], item):
            break
        heap.items[i] = heap.items[other]
        heap.items[i].due = i
        i = other
    heap.items[i] = item
    item.due = i


cdef void due_push(due_heap_t* heap, slot_t* slot) noexcept nogil:
    """Add a connection. Its creation has made the room."""
    heap.items[heap.n] = slot
    heap.n += 1
    due_sift(heap, heap.n - 1)


cdef void due_remove(due_heap_t* heap, slot_t* slot) noexcept nogil:
    cdef Py_ssize_t i = slot.due
    if i < 0:
        return
    slot.due = -1
    heap.n -= 1
    if i < heap.n:
        heap.items[i] = heap.items[heap.n]
        due_sift(heap, i)


cdef struct blocked_heap_t:  # endpoints whose waiters only the total cap holds back, the neediest first
    endpoint_t** items
    Py_ssize_t n
    Py_ssize_t capacity


cdef inline bint needier(endpoint_t* a, endpoint_t* b) noexcept nogil:
    """The one that holds less; among equals, the one whose first waiter is older."""
    cdef Py_ssize_t x = held(a) + a.reserved
    cdef Py_ssize_t y = held(b) + b.reserved
    return x < y or (x == y and first_waiter(a).seq < first_waiter(b).seq)


cdef void blocked_sift(blocked_heap_t* heap, Py_ssize_t i) noexcept nogil:
    cdef endpoint_t* item = heap.items[i]
    cdef Py_ssize_t other
    while i > 0:
        other = (i - 1) >> 1
        if not needier(item, heap.items[other]):
            break
        heap.items[i] = heap.items[other]
        heap.items[i].rank = i
        i = other
    while True:
        other = 2 * i + 1
        if other >= heap.n:
            break
        if other + 1 < heap.n and needier(heap.items[other + 1], heap.items[other]):
            other += 1
        if not needier(heap.items[other], item):
            break
        heap.items[i] = heap.items[other]
        heap.items[i].rank = i
        i = other
    heap.items[i] = item
    item.rank = i


cdef void blocked_remove(blocked_heap_t* heap, endpoint_t* ep) noexcept nogil:
    cdef Py_ssize_t i = ep.rank
    if i < 0:
        return
    ep.rank = -1
    heap.n -= 1
    if i < heap.n:
        heap.items[i] = heap.items[heap.n]
        blocked_sift(heap, i)


# --- the table: records by the identity of an object. Open addressing, linear probing, no tombstones. ---
# A record begins with the object that it is known by: a slot with its connection, an endpoint with its key. Two slots
# may hold the same connection (a manager may return one twice).

ctypedef PyObject** record_t

cdef struct table_t:
    record_t* items
    size_t mask              # capacity - 1; the capacity is a power of two, or the table has no array yet
    size_t n


cdef inline size_t home_of(PyObject* known_by, size_t mask) noexcept nogil:
    # Objects are 16-byte aligned: the low bits say nothing. Fibonacci hashing spreads the rest.
    return <size_t>(((<uint64_t><size_t>known_by >> 4) * <uint64_t>11400714819323198485U) >> 20) & mask


cdef bint table_resize(table_t* table, size_t wanted) noexcept nogil:
    """Make room for `wanted` records at a load of at most one half; False without memory."""
    cdef size_t capacity = 16
    cdef size_t i, j
    cdef record_t* items
    while capacity < 2 * wanted:
        capacity *= 2
    items = <record_t*>calloc(capacity, sizeof(record_t))
    if items == NULL:
        return False
    if table.items != NULL:
        for i in range(table.mask + 1):
            if table.items[i] != NULL:
                j = home_of(table.items[i][0], capacity - 1)
                while items[j] != NULL:
                    j = (j + 1) & (capacity - 1)
                items[j] = table.items[i]
        free(table.items)
    table.items = items
    table.mask = capacity - 1
    return True


cdef inline bint table_has_room(table_t* table) noexcept nogil:
    """Make room for one record more."""
    return 2 * (table.n + 1) <= table.mask or table_resize(table, 2 * table.n + 1)


cdef inline void table_shrink(table_t* table) noexcept nogil:
    """Give memory back when most of it is empty."""
    if table.mask >= 256 and 16 * table.n < table.mask:
        table_resize(table, 2 * table.n)


cdef inline void table_add(table_t* table, void* record) noexcept nogil:
    cdef size_t i = home_of((<record_t>record)[0], table.mask)
    while table.items[i] != NULL:
        i = (i + 1) & table.mask
    table.items[i] = <record_t>record
    table.n += 1


cdef inline void* table_find(table_t* table, PyObject* known_by) noexcept nogil:
    """Find the first record that is known by an object, or NULL."""
    cdef size_t i
    cdef record_t record
    if table.items == NULL:
        return NULL
    i = home_of(known_by, table.mask)
    while True:
        record = table.items[i]
        if record == NULL or record[0] == known_by:
            return record
        i = (i + 1) & table.mask


cdef inline void table_remove(table_t* table, void* record) noexcept nogil:
    """Take a record out and close the gap, so that no probe ends too early (Knuth, TAOCP 6.4, algorithm R)."""
    cdef size_t mask = table.mask
    cdef size_t i, j
    if table.n == 0:
        return
    i = home_of((<record_t>record)[0], mask)
    while <void*>table.items[i] != record:
        if table.items[i] == NULL:
            return
        i = (i + 1) & mask
    table.n -= 1
    j = i
    while True:
        j = (j + 1) & mask
        if table.items[j] == NULL:
            break
        if ((j - home_of(table.items[j][0], mask)) & mask) >= ((j - i) & mask):
            table.items[i] = table.items[j]
            i = j
    table.items[i] = NULL


cdef inline slot_t* table_find_of(table_t* table, PyObject* conn, endpoint_t* ep) noexcept nogil:
    """Find who holds a connection to an endpoint: the object may be held for another, too."""
    cdef size_t i
    if table.items == NULL:
        return NULL
    i = home_of(conn, table.mask)
    while table.items[i] != NULL:
        if table.items[i][0] == conn and (<slot_t*>table.items[i]).ep == ep:
            return <slot_t*>table.items[i]
        i = (i + 1) & table.mask
    return NULL
