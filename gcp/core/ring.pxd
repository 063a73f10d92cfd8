# Rings: circular doubly linked lists through nodes that lie inside the structs they link. Insertion and removal take
# constant time and no memory. The head of a ring is a node too; a node that is in no ring is linked to itself.

cdef struct ring_t:
    ring_t* prev
    ring_t* next


cdef inline void ring_init(ring_t* head) noexcept nogil:
    head.prev = head
    head.next = head


cdef inline bint ring_empty(ring_t* head) noexcept nogil:
    return head.next == head


cdef inline void ring_insert(ring_t* before, ring_t* node) noexcept nogil:
    """Insert a node just before another one; before the head means last."""
    node.prev = before.prev
    node.next = before
    before.prev.next = node
    before.prev = node


cdef inline void ring_remove(ring_t* node) noexcept nogil:
    """Remove a node from its ring. Does nothing to a node that is in none."""
    node.prev.next = node.next
    node.next.prev = node.prev
    node.prev = node
    node.next = node


cdef inline void ring_move(ring_t* to, ring_t* head) noexcept nogil:
    """Move all nodes of a ring to another, whose head need not be initialised."""
    ring_init(to)
    if not ring_empty(head):
        ring_insert(head, to)
        ring_remove(head)
