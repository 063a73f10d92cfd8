# Delivery: what the caller of an acquire needs of the slot that it has got. With the GIL it is read from the slot:
# no other thread runs in between. Without it, another thread may take the connection away at once (a close by force,
# say), and dispose of it. So the caller gets references then, within the lock under which it got the slot.

from gcp.core.frames cimport gcp_dropped, gcp_forget_dropped, gcp_init_dropped
from gcp.core.platform cimport GCP_STRIPES
from gcp.core.state cimport slot_object, slot_t


cdef struct delivery_t:
    bint wants_record        # whether the caller needs the record, too
    PyObject* slot           # owned; NULL: not wanted
    PyObject* conn           # owned
    uint64_t lease
    gcp_dropped dropped      # what was noted of the last holder: it dies outside the lock


cdef inline void begin_delivery(delivery_t* to, bint wants_record=True) noexcept:
    """Prepare a delivery.

    :param wants_record: False: the caller needs the connection only. A reference that is not counted keeps no other
                         thread waiting
    """
    gcp_init_dropped(&to.dropped)
    if GCP_STRIPES > 1:
        to.wants_record = wants_record
        to.slot = NULL
        to.conn = NULL


cdef inline void deliver(slot_t* s, bint tracks, PyObject* task, delivery_t* to) noexcept:
    """Note who uses a slot from now on, and take references for it. Within the lock.

    :param tracks: whether it is noted
    :param task: the running task, or NULL
    """
    if tracks:
        note_use(s, task, &to.dropped)
    if GCP_STRIPES > 1:
        to.conn = s.conn
        to.lease = s.lease
        Py_INCREF(<object>to.conn)
        if to.wants_record:
            to.slot = slot_object(s)
            Py_INCREF(<object>to.slot)


cdef inline object conn_of(slot_t* s, delivery_t* to):
    """End a delivery to a caller that gets the connection."""
    gcp_forget_dropped(&to.dropped)
    if GCP_STRIPES == 1:
        return <object>s.conn
    conn = <object>to.conn
    drop_delivery(to)
    return conn


cdef inline object conn_held(slot_t* s, delivery_t* to, Core core, Holder holder):
    """End a delivery to a caller that gets the connection, and is represented by a holder."""
    holder.hold(core, <Slot>record_delivered(s, to), s.lease if GCP_STRIPES == 1 else to.lease)
    return conn_of(s, to)


cdef void drop_delivery(delivery_t* to) noexcept:
    """End a delivery whose slot the caller does not get, or drop what it owns."""
    if GCP_STRIPES > 1:
        if to.conn != NULL:
            Py_DECREF(<object>to.conn)
            to.conn = NULL
        if to.slot != NULL:
            Py_DECREF(<object>to.slot)
            to.slot = NULL
    gcp_forget_dropped(&to.dropped)


cdef inline PyObject* record_delivered(slot_t* s, delivery_t* to) noexcept:
    """Return the record of the slot, borrowed."""
    return slot_object(s) if GCP_STRIPES == 1 else to.slot


cdef inline PyObject* conn_delivered(slot_t* s, delivery_t* to) noexcept:
    """Return the connection, borrowed."""
    return s.conn if GCP_STRIPES == 1 else to.conn
