# Tables: hash tables of records, found by the identity of an object. Open addressing, linear probing, no tombstones.
#
# A record is a struct whose first member points at the object that identifies it: a slot begins with its connection, an
# endpoint with its key. Objects are compared by address alone, so that a look-up runs no Python code. Two records may
# have the same object: a manager may return one connection twice.

from cpython.object cimport PyObject
from libc.stdint cimport uint64_t
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree

from gcp.core.platform cimport GCP_APART

ctypedef PyObject** record_t

cdef struct table_t:
    record_t* items
    size_t mask              # capacity - 1; the capacity is a power of two, or the table has no array yet
    size_t n


cdef inline size_t home_of(PyObject* known_by, size_t mask) noexcept nogil:
    """Return the index at which the search for an object begins."""
    # Objects are 16-byte aligned, so the low four bits are always 0. Fibonacci hashing spreads the others.
    return <size_t>(((<uint64_t><size_t>known_by >> 4) * <uint64_t>11400714819323198485U) >> 20) & mask


cdef inline bint table_resize(table_t* table, size_t wanted) noexcept nogil:
    """Make room for `wanted` records, at most half of the array in use; return False if there is no memory."""
    cdef size_t capacity = 16
    cdef size_t i, j
    cdef record_t* items
    while capacity < 2 * wanted:
        capacity *= 2
    # room behind it, so that another table's array, which other threads change, begins in another cache line
    items = <record_t*>PyMem_RawCalloc(capacity + GCP_APART // sizeof(record_t), sizeof(record_t))
    if items == NULL:
        return False
    if table.items != NULL:
        for i in range(table.mask + 1):
            if table.items[i] != NULL:
                j = home_of(table.items[i][0], capacity - 1)
                while items[j] != NULL:
                    j = (j + 1) & (capacity - 1)
                items[j] = table.items[i]
        PyMem_RawFree(table.items)
    table.items = items
    table.mask = capacity - 1
    return True


cdef inline bint table_has_room(table_t* table) noexcept nogil:
    """Make room for one more record; return False if there is no memory."""
    return 2 * (table.n + 1) <= table.mask or table_resize(table, 2 * table.n + 1)


cdef inline bint table_reserve(table_t* table, size_t wanted) noexcept nogil:
    """Make room for `wanted` records in all; return False if there is no memory."""
    return (table.items != NULL and 2 * wanted <= table.mask) or table_resize(table, 2 * wanted)


cdef inline void table_shrink(table_t* table) noexcept nogil:
    """Free memory when less than a sixteenth of the array is in use."""
    if table.mask >= 256 and 16 * table.n < table.mask:
        table_resize(table, 2 * table.n)


cdef inline void table_add(table_t* table, void* record) noexcept nogil:
    """Add a record. There must be room: see `table_has_room`."""
    cdef size_t i = home_of((<record_t>record)[0], table.mask)
    while table.items[i] != NULL:
        i = (i + 1) & table.mask
    table.items[i] = <record_t>record
    table.n += 1


cdef inline void* table_find(table_t* table, PyObject* known_by) noexcept nogil:
    """Return the first record of an object, or NULL."""
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
    """Remove a record, and close the gap so that no search ends too early (Knuth, TAOCP 6.4, algorithm R)."""
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
