# The memory of leases, of which each use of a connection takes one: the last 16 of each kind are kept, and used again.
# One that holds no connection is freed at once: Cython's way to free an object saves the error that may be set, and
# gives it back, for the sake of a finalizer that would find nothing to do.

from gcp.core.platform cimport PyObject_GC_UnTrack


cdef extern from *:
    """
    /* tp_alloc, tp_free and tp_dealloc of a type: with memory of its own. `free_one` frees what needs no finalizer, and
       leaves the rest to `name_dealloc`, which is Cython's. */
    #define GCP_SPARES 16
    typedef void (*gcp_free_t)(PyObject *);
    #if defined(Py_GIL_DISABLED) || defined(Py_TRACE_REFS)
    #define GCP_SPARE(name) \\
        static void name##_free(void *self) { PyObject_GC_Del(self); }
    #define gcp_keep_memory(name, type) ((void)0)
    #else
    #define GCP_SPARE(name) \\
        static PyObject *name##_spares[GCP_SPARES]; \\
        static int name##_n; \\
        static PyObject *name##_alloc(PyTypeObject *type, Py_ssize_t n) { \\
            PyObject *self; \\
            if (name##_n == 0) \\
                return PyType_GenericAlloc(type, n); \\
            self = name##_spares[--name##_n]; \\
            memset((char *)self + sizeof(PyObject), 0, (size_t)type->tp_basicsize - sizeof(PyObject)); \\
            PyObject_Init(self, type); \\
            PyObject_GC_Track(self); \\
            return self; \\
        } \\
        static void name##_free(void *self) { \\
            if (name##_n < GCP_SPARES) \\
                name##_spares[name##_n++] = (PyObject *)self; \\
            else \\
                PyObject_GC_Del(self); \\
        }
    #define gcp_keep_memory(name, type) (type->tp_alloc = name##_alloc, type->tp_free = name##_free)
    #endif
    #define GCP_KEEP(name) \\
        GCP_SPARE(name) \\
        static destructor name##_dealloc; \\
        static void name##_keep(PyObject *kept, gcp_free_t free_one) { \\
            PyTypeObject *type = (PyTypeObject *)kept; \\
            gcp_keep_memory(name, type); \\
            name##_dealloc = type->tp_dealloc; \\
            type->tp_dealloc = free_one; \\
        }
    GCP_KEEP(gcp_lease)
    GCP_KEEP(gcp_async_lease)
    """
    ctypedef void (*gcp_free_t)(PyObject*) noexcept
    void gcp_lease_keep(object, gcp_free_t) noexcept
    void gcp_lease_dealloc(PyObject*) noexcept
    void gcp_lease_free(PyObject*) noexcept
    void gcp_async_lease_keep(object, gcp_free_t) noexcept
    void gcp_async_lease_dealloc(PyObject*) noexcept
    void gcp_async_lease_free(PyObject*) noexcept


# A reference to what is being freed must not be counted here: it would be freed again when that is given up.

cdef void free_lease(PyObject* self) noexcept:
    """Free a lease. One that holds no connection has nothing to leave behind."""
    if (<Lease>self).slot is not None:
        gcp_lease_dealloc(self)
        return
    PyObject_GC_UnTrack(self)
    Py_XDECREF(<PyObject*>(<Lease>self).core)
    Py_XDECREF(<PyObject*>(<Lease>self).slot)
    Py_XDECREF(<PyObject*>(<Lease>self).pool)
    Py_XDECREF(<PyObject*>(<Lease>self).key)
    Py_XDECREF(<PyObject*>(<Lease>self).timeout)
    Py_XDECREF(<PyObject*>(<Lease>self).tag)
    gcp_lease_free(self)


cdef void free_async_lease(PyObject* self) noexcept:
    """Free a lease. One that holds nothing, and was awaited or entered, has nothing to leave behind."""
    if (<AsyncLease>self).slot is not None or (<AsyncLease>self).acquire is not None or (<AsyncLease>self).by_name:
        gcp_async_lease_dealloc(self)
        return
    PyObject_GC_UnTrack(self)
    Py_XDECREF(<PyObject*>(<AsyncLease>self).core)
    Py_XDECREF(<PyObject*>(<AsyncLease>self).slot)
    Py_XDECREF(<PyObject*>(<AsyncLease>self).pool)
    Py_XDECREF(<PyObject*>(<AsyncLease>self).key)
    Py_XDECREF(<PyObject*>(<AsyncLease>self).timeout)
    Py_XDECREF(<PyObject*>(<AsyncLease>self).tag)
    Py_XDECREF(<PyObject*>(<AsyncLease>self).acquire)
    Py_XDECREF(<PyObject*>(<AsyncLease>self).coro)
    Py_XDECREF(<PyObject*>(<AsyncLease>self).body)
    gcp_async_lease_free(self)


gcp_lease_keep(Lease, free_lease)
gcp_async_lease_keep(AsyncLease, free_async_lease)
