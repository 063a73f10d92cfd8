# Heaps: binary heaps of the places that lie inside the structs they order. An item's place holds its index in the
# array, so that an item in the middle is found at once, and its removal takes O(log n).
#
# The order is passed to each call as a function. It is known where the call is compiled, so that the compiler makes a
# copy of the loop for each order and calls nothing through a pointer.

from cpython.mem cimport PyMem_RawRealloc

ctypedef Py_ssize_t place_t     # an item's index in the array of its heap; -1: the item is in no heap

ctypedef bint (*before_t)(place_t* a, place_t* b) noexcept nogil     # whether a comes before b

cdef struct heap_t:
    place_t** items             # the first one comes before all others
    Py_ssize_t n
    Py_ssize_t capacity


cdef inline bint heap_has_room(heap_t* heap, Py_ssize_t wanted) noexcept nogil:
    """Make room for `wanted` items in all, at least doubling the capacity; return False if there is no memory."""
    cdef Py_ssize_t capacity = max(wanted, 2 * heap.capacity, 16)
    cdef void* items
    if wanted <= heap.capacity:
        return True
    items = PyMem_RawRealloc(heap.items, <size_t>capacity * sizeof(place_t*))
    if items == NULL:
        return False
    heap.items = <place_t**>items
    heap.capacity = capacity
    return True


cdef inline void heap_put(heap_t* heap, Py_ssize_t i, place_t* item) noexcept nogil:
    heap.items[i] = item
    item[0] = i


cdef inline void heap_sift(heap_t* heap, Py_ssize_t i, before_t before) noexcept nogil:
    """Restore the order after the item at index i has changed: move it up, or else down."""
    cdef place_t* item = heap.items[i]
    cdef Py_ssize_t other
    while i > 0:
        other = (i - 1) >> 1
        if not before(item, heap.items[other]):
            break
        heap_put(heap, i, heap.items[other])
        i = other
    while True:
        other = 2 * i + 1
        if other >= heap.n:
            break
        if other + 1 < heap.n and before(heap.items[other + 1], heap.items[other]):
            other += 1
        if not before(heap.items[other], item):
            break
        heap_put(heap, i, heap.items[other])
        i = other
    heap_put(heap, i, item)


cdef inline void heap_push(heap_t* heap, place_t* item, before_t before) noexcept nogil:
    """Add an item. There must be room: see `heap_has_room`."""
    heap.items[heap.n] = item
    heap.n += 1
    heap_sift(heap, heap.n - 1, before)


cdef inline void heap_remove(heap_t* heap, place_t* item, before_t before) noexcept nogil:
    """Remove an item. Does nothing to an item that is in no heap."""
    cdef Py_ssize_t i = item[0]
    if i < 0:
        return
    item[0] = -1
    heap.n -= 1
    if i < heap.n:
        heap.items[i] = heap.items[heap.n]
        heap_sift(heap, i, before)
