# Faster ways through the interpreter, for what is called at each idle hit.
#
# arguments  `acquire(endpoint)`, `connection(endpoint)` and `release(conn, endpoint)` parse no arguments. Calls with
#            more than these, or by keyword, do
# entering   up to Python 3.13, `with` binds `__enter__` and `__exit__`: two objects for one call each. A lease is its
#            own bound method there: called without arguments it enters, with three it leaves. From 3.14 on, `with`
#            binds no method that says that it need not be. Those of a lease are a builtin type's: it calls them at once
# awaiting   ends without a StopIteration where the interpreter allows it, without a traceback of one elsewhere

from gcp.core.platform cimport GCP_STRIPES, PySendResult, PyTypeObject


cdef extern from *:
    """
    /* A method that is nearly always called with the same few positional arguments: those calls do not parse arguments.
       The function object stays what it is, with its signature and its docstring.

       Where there is no GIL, each call of its bound method would change the count of references to the pool, and
       threads that use one pool would wait for each other. A method of a builtin type, bound, calls C without that. So
       the type gets such a method in front of the function. With the GIL the interpreter calls a function faster: it
       calls a builtin type's method quickly for instances of that very type only, and pools are of subclasses.

       Neither dies, so they are immortal: as for the pool, nothing is counted.

       What takes the few arguments, `..._of_few`, is called by its name: by a pointer, the processor would have to
       guess one more target. Where it guessed wrong, a hit took 26 ns longer. Inlined, it would save registers for all
       calls.

       What is called then is a method of the pool: Cython counts a reference to an object that it passes on as an
       argument, if a cast has made it of a pointer, but not to the one whose method it calls. */
    typedef PyObject *(*gcp_take_few_t)(PyTypeObject *, PyObject *, const char *, const char *);
    #ifdef Py_GIL_DISABLED
    static void gcp_make_immortal(PyObject *o) {
        o->ob_tid = 0;
        o->ob_ref_shared = 0;
        o->ob_ref_local = UINT32_MAX;
    }
    #else
    #define gcp_make_immortal(o) ((void)0)
    #endif
    /* Make a method of a builtin type. */
    static PyObject *gcp_new_method(PyObject *type, PyMethodDef *definition) {
        PyObject *method = PyDescr_NewMethod((PyTypeObject *)type, definition);
        if (method != NULL)
            gcp_make_immortal(method);
        return method;
    }
    #ifdef Py_GIL_DISABLED
    #define GCP_MANY 8
    /* Call a function as the method of a pool. */
    static PyObject *gcp_call_method(
            PyObject *f, PyObject *pool, PyObject *const *args, Py_ssize_t n, PyObject *names) {
        size_t given = (size_t)(n + (names == NULL ? 0 : PyTuple_GET_SIZE(names)));
        PyObject *few[GCP_MANY], **all = given < GCP_MANY ? few : PyMem_New(PyObject *, given + 1), *result;
        if (all == NULL)
            return PyErr_NoMemory();
        all[0] = pool;
        memcpy(all + 1, args, given * sizeof(PyObject *));
        result = PyObject_Vectorcall(f, all, (size_t)n + 1, names);
        if (all != few)
            PyMem_Free(all);
        return result;
    }
    #define GCP_CALL_FEW(method, few) \\
        static PyObject *method##_function; \\
        static __attribute__((noinline)) PyObject *method##_of_few(PyObject **); \\
        static PyObject *method##_call(PyObject *pool, PyObject *const *args, Py_ssize_t n, PyObject *names) { \\
            if (n == few && names == NULL) { \\
                PyObject *all[1 + few] = {pool}; \\
                memcpy(all + 1, args, few * sizeof(PyObject *)); \\
                return method##_of_few(all); \\
            } \\
            return gcp_call_method(method##_function, pool, args, n, names); \\
        } \\
        static PyMethodDef method##_definition = { \\
            NULL, (PyCFunction)(void (*)(void))method##_call, METH_FASTCALL | METH_KEYWORDS, NULL}; \\
        static PyObject *method##_take_few( \\
                PyTypeObject *type, PyObject *f, const char *name, const char *doc) { \\
            method##_definition.ml_name = name; \\
            method##_definition.ml_doc = doc; \\
            method##_function = Py_NewRef(f); \\
            gcp_make_immortal(f); \\
            return gcp_new_method((PyObject *)type, &method##_definition); \\
        }
    #else
    #define GCP_CALL_FEW(method, few) \\
        static PyTypeObject *method##_type; \\
        static __attribute__((noinline)) PyObject *method##_of_few(PyObject **); \\
        static vectorcallfunc method##_general; \\
        static PyObject *method##_call(PyObject *f, PyObject *const *args, size_t n, PyObject *names) { \\
            if (PyVectorcall_NARGS(n) == 1 + few && names == NULL && ( \\
                    Py_TYPE(args[0])->tp_base == method##_type || PyObject_TypeCheck(args[0], method##_type))) \\
                return method##_of_few((PyObject **)args); \\
            return method##_general(f, args, n, names); \\
        } \\
        static PyObject *method##_take_few( \\
                PyTypeObject *type, PyObject *f, const char *name, const char *doc) { \\
            vectorcallfunc *entry = (vectorcallfunc *)((char *)f + Py_TYPE(f)->tp_vectorcall_offset); \\
            (void)name, (void)doc; \\
            method##_type = type; \\
            method##_general = *entry; \\
            *entry = method##_call; \\
            return Py_NewRef(f); \\
        }
    #endif
    GCP_CALL_FEW(gcp_acquire, 1)
    GCP_CALL_FEW(gcp_connection, 1)
    GCP_CALL_FEW(gcp_release, 2)
    GCP_CALL_FEW(gcp_async_acquire, 1)
    GCP_CALL_FEW(gcp_async_connection, 1)
    GCP_CALL_FEW(gcp_async_release, 2)

    /* How `with` enters and leaves a lease: as a call of the lease, or by these methods. */
    #define GCP_BINDS_METHODS (PY_VERSION_HEX < 0x030E0000)
    #define GCP_LEAVE_ARGUMENTS 3
    typedef PyObject *(*gcp_enter_t)(PyObject *lease);
    typedef PyObject *(*gcp_leave_t)(PyObject *lease, PyObject *error);
    typedef PyObject *(*gcp_called_t)(PyObject *, PyObject **, size_t, PyObject *);     /* a vectorcallfunc */
    typedef PyObject *(*gcp_method_t)(PyObject *type, int leave);
    static PyObject *gcp_refuse_call(void) {
        PyErr_SetString(PyExc_TypeError, "a lease is not a function: use it in a with statement");
        return NULL;
    }
    #define GCP_ENTER(kind, enter_name, leave_name) \\
        static gcp_enter_t kind##_enter; \\
        static gcp_leave_t kind##_leave; \\
        static PyObject *kind##_call(PyObject *lease, PyObject **args, size_t n, PyObject *names) { \\
            if (names == NULL && PyVectorcall_NARGS(n) == 0) \\
                return kind##_enter(lease); \\
            if (names == NULL && PyVectorcall_NARGS(n) == GCP_LEAVE_ARGUMENTS) \\
                return kind##_leave(lease, args[1]); \\
            return gcp_refuse_call(); \\
        } \\
        static PyObject *kind##_enter_method(PyObject *lease, PyObject *Py_UNUSED(none)) { \\
            return kind##_enter(lease); \\
        } \\
        static PyObject *kind##_leave_method(PyObject *lease, PyObject *const *args, Py_ssize_t n) { \\
            return n == GCP_LEAVE_ARGUMENTS ? kind##_leave(lease, args[1]) : gcp_refuse_call(); \\
        } \\
        static PyMethodDef kind##_methods[] = { \\
            {enter_name, kind##_enter_method, METH_NOARGS, enter_name "($self)\\n--\\n\\n"}, \\
            {leave_name, (PyCFunction)(void (*)(void))kind##_leave_method, METH_FASTCALL, \\
                leave_name "($self, kind, error, traceback, /)\\n--\\n\\n"}}; \\
        static PyObject *kind##_method(PyObject *type, int leave) { \\
            return gcp_new_method(type, &kind##_methods[leave]); \\
        }
    GCP_ENTER(gcp_lease, "__enter__", "__exit__")
    GCP_ENTER(gcp_async_lease, "__aenter__", "__aexit__")

    #if GCP_BINDS_METHODS
    static void gcp_make_callable(PyObject *type, Py_ssize_t offset) {
        PyTypeObject *t = (PyTypeObject *)type;
        t->tp_vectorcall_offset = offset;
        t->tp_call = PyVectorcall_Call;
        t->tp_flags |= Py_TPFLAGS_HAVE_VECTORCALL;
    }
    #else
    static PyObject *gcp_refuse_any_call(
            PyObject *Py_UNUSED(lease), PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(names)) {
        return gcp_refuse_call();
    }
    static void gcp_make_callable(PyObject *type, Py_ssize_t Py_UNUSED(offset)) {
        ((PyTypeObject *)type)->tp_call = gcp_refuse_any_call;      /* for the sake of its message */
    }
    #endif

    /* Raise StopIteration(value). From 3.12 to 3.14 the interpreter asks tp_iternext of all but coroutines, so every
       awaited connection comes this way. A call of the type takes 1,500 to 2,200 instructions there; this skips it, its
       __new__ and __init__, the tuple of its `args`, which stay empty, and the look for a __context__. The error is of
       a type of its own, a StopIteration but for its memory: the last one is kept, and used again. On 3.10, 3.11 and
       3.15 the interpreter asks am_send. */
    #if PY_VERSION_HEX >= 0x030C0000 && !defined(Py_GIL_DISABLED) && !defined(Py_TRACE_REFS)
    static PyObject *gcp_spare_stop;
    static void gcp_free_stop(PyObject *self) {
        PyStopIterationObject *stop = (PyStopIterationObject *)self;
        PyObject_GC_UnTrack(self);
        Py_CLEAR(stop->value);
        if (gcp_spare_stop != NULL || stop->args == NULL || PyTuple_GET_SIZE(stop->args) != 0 || stop->dict != NULL
                || stop->notes != NULL || stop->traceback != NULL || stop->context != NULL || stop->cause != NULL)
            ((PyTypeObject *)PyExc_StopIteration)->tp_dealloc(self);
        else
            gcp_spare_stop = self;
    }
    static PyTypeObject gcp_stop_type = {
        PyVarObject_HEAD_INIT(NULL, 0)
        .tp_name = "StopIteration",
        .tp_basicsize = sizeof(PyStopIterationObject),
        .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
        .tp_dealloc = gcp_free_stop,
    };
    static PyObject *gcp_new_stop(void) {
        PyObject *stop = gcp_spare_stop;
        if (stop == NULL)
            return gcp_stop_type.tp_alloc(&gcp_stop_type, 0);   /* all zero */
        gcp_spare_stop = NULL;
        ((PyStopIterationObject *)stop)->suppress_context = 0;
        PyObject_Init(stop, &gcp_stop_type);
        PyObject_GC_Track(stop);
        return stop;
    }
    static int gcp_init_stop(void) {
        PyTypeObject *base = (PyTypeObject *)PyExc_StopIteration;
        gcp_stop_type.tp_base = base;
        gcp_stop_type.tp_traverse = base->tp_traverse;
        gcp_stop_type.tp_clear = base->tp_clear;
        return PyType_Ready(&gcp_stop_type);
    }
    #else
    #define gcp_new_stop() (((PyTypeObject *)PyExc_StopIteration)->tp_alloc((PyTypeObject *)PyExc_StopIteration, 0))
    #define gcp_init_stop() 0
    #endif
    static void gcp_stop_with(PyObject *value) {
    #if PY_VERSION_HEX >= 0x030C0000
        PyStopIterationObject *stop = (PyStopIterationObject *)gcp_new_stop();
        if (stop == NULL)
            return;
        if (stop->args == NULL)
            stop->args = PyTuple_New(0);    /* there is but one empty tuple, which cannot fail to be made */
        stop->value = Py_NewRef(value);
        PyErr_SetRaisedException((PyObject *)stop);
    #else
        PyObject *stop = PyObject_CallFunctionObjArgs(PyExc_StopIteration, value, NULL);
        if (stop == NULL)
            return;
        PyErr_SetObject(PyExc_StopIteration, stop);
        Py_DECREF(stop);
    #endif
    }

    /* am_send, and tp_iternext for the interpreters that do not ask for it. Cython would build a traceback for the
       StopIteration that ends each one. */
    typedef int (*gcp_advance_t)(PyObject *, PyObject *, PyObject **);
    static gcp_advance_t gcp_advance;

    /* An error StopIteration (of a key's __hash__, say) must not be taken for the end: PEP 479. */
    static void gcp_no_stop(void) {
        PyObject *type, *stop, *error, *traceback;
        if (!PyErr_ExceptionMatches(PyExc_StopIteration))
            return;
        PyErr_Fetch(&type, &stop, &traceback);
        PyErr_NormalizeException(&type, &stop, &traceback);
        if (traceback != NULL)
            PyException_SetTraceback(stop, traceback);
        Py_XDECREF(type);
        Py_XDECREF(traceback);
        PyErr_SetString(PyExc_RuntimeError, "an awaited acquire or release raised StopIteration");
        PyErr_Fetch(&type, &error, &traceback);
        PyErr_NormalizeException(&type, &error, &traceback);
        PyException_SetContext(error, Py_NewRef(stop));
        PyException_SetCause(error, stop);
        PyErr_Restore(type, error, traceback);
    }
    static int gcp_advance_lease(PyObject *self, PyObject *value, PyObject **result) {
        int status;
        *result = NULL;
        status = gcp_advance(self, value, result);
        if (status == PYGEN_ERROR)
            gcp_no_stop();
        return status;
    }
    static PySendResult gcp_lease_send(PyObject *self, PyObject *value, PyObject **result) {
        return (PySendResult)gcp_advance_lease(self, value, result);
    }
    static PyObject *gcp_lease_next(PyObject *self) {
        PyObject *result;
        int status = gcp_advance_lease(self, Py_None, &result);
        if (status == PYGEN_NEXT)
            return result;
        if (status == PYGEN_RETURN) {
            if (result != Py_None)
                gcp_stop_with(result);
            Py_DECREF(result);
        }
        return NULL;
    }
    static PySendResult gcp_finished_send(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(value), PyObject **result) {
        *result = Py_NewRef(Py_None);
        return PYGEN_RETURN;
    }
    static PyObject *gcp_finished_next(PyObject *Py_UNUSED(self)) { return NULL; }

    static void gcp_make_awaitable(PyObject *type, sendfunc send, iternextfunc next) {
        ((PyTypeObject *)type)->tp_iternext = next;
        ((PyTypeObject *)type)->tp_as_async->am_send = send;
        PyType_Modified((PyTypeObject *)type);
    }
    """
    ctypedef object (*gcp_take_few_t)(PyTypeObject*, object, const char*, const char*)
    object gcp_acquire_take_few(PyTypeObject*, object, const char*, const char*)
    object gcp_connection_take_few(PyTypeObject*, object, const char*, const char*)
    object gcp_release_take_few(PyTypeObject*, object, const char*, const char*)
    object gcp_async_acquire_take_few(PyTypeObject*, object, const char*, const char*)
    object gcp_async_connection_take_few(PyTypeObject*, object, const char*, const char*)
    object gcp_async_release_take_few(PyTypeObject*, object, const char*, const char*)
    ctypedef int (*gcp_advance_t)(PyObject*, PyObject*, PyObject**) except -1
    ctypedef PySendResult (*sendfunc)(PyObject*, PyObject*, PyObject**) noexcept
    ctypedef PyObject* (*iternextfunc)(PyObject*) noexcept
    Py_ssize_t PyVectorcall_NARGS(size_t) noexcept
    gcp_advance_t gcp_advance
    PySendResult gcp_lease_send(PyObject*, PyObject*, PyObject**) noexcept
    PyObject* gcp_lease_next(PyObject*) noexcept
    PySendResult gcp_finished_send(PyObject*, PyObject*, PyObject**) noexcept
    PyObject* gcp_finished_next(PyObject*) noexcept
    bint GCP_BINDS_METHODS
    ctypedef PyObject* (*gcp_enter_t)(PyObject* lease) except NULL
    ctypedef PyObject* (*gcp_leave_t)(PyObject* lease, PyObject* error) except NULL
    ctypedef PyObject* (*gcp_called_t)(PyObject*, PyObject**, size_t, PyObject*) except NULL
    ctypedef object (*gcp_method_t)(object lease_type, bint leave)
    gcp_enter_t gcp_lease_enter, gcp_async_lease_enter
    gcp_leave_t gcp_lease_leave, gcp_async_lease_leave
    PyObject* gcp_lease_call(PyObject*, PyObject**, size_t, PyObject*) except NULL
    PyObject* gcp_async_lease_call(PyObject*, PyObject**, size_t, PyObject*) except NULL
    object gcp_lease_method(object lease_type, bint leave)
    object gcp_async_lease_method(object lease_type, bint leave)
    void gcp_make_callable(object, Py_ssize_t)
    void gcp_make_awaitable(object, sendfunc, iternextfunc)
    int gcp_init_stop() except -1
    void PyType_Modified(PyTypeObject*)


@cython.final
@cython.internal
cdef class BoundLease:
    """Stands in the place of a lease's methods for a `with` that binds them: a lease is its own bound method. So a
    lease can be called, and its `__enter__` and `__exit__` are the same object; the number of arguments says which is
    meant. On the type both are ordinary methods."""
    cdef object method

    def __get__(self, lease, kind):
        return self.method if lease is None else lease


cdef int call_directly(lease_type, Py_ssize_t called_at, gcp_method_t method, tuple names) except -1:
    """Have a type's leases entered and left without an object for each bound method.

    :param called_at: the offset in a lease of the function that is called where `with` binds methods
    :param method: makes a builtin type's method to enter or to leave
    """
    cdef BoundLease entry
    attributes = <object>(<PyTypeObject*>lease_type).tp_dict
    gcp_make_callable(lease_type, called_at)
    for leave, name in enumerate(names):
        if GCP_BINDS_METHODS:
            entry = BoundLease.__new__(BoundLease)
            entry.method = attributes[name]
            attributes[name] = entry
        else:
            attributes[name] = method(lease_type, leave)
    PyType_Modified(<PyTypeObject*>lease_type)
    return 0


cdef list method_texts = []     # that the definitions of methods refer to


cdef int call_few(type pool_type, str name, gcp_take_few_t take_few) except -1:
    """Have a method called without parsing arguments when it has few: see `GCP_CALL_FEW`."""
    cdef PyTypeObject* of_type = <PyTypeObject*>pool_type
    cdef tuple texts
    function = getattr(pool_type, name)
    texts = builtin_texts(name, function.__doc__) if GCP_STRIPES > 1 else (b'', b'')
    method_texts.append(texts)
    (<object>of_type.tp_dict)[name] = take_few(of_type, function, texts[0], texts[1])
    PyType_Modified(of_type)
    return 0


cdef tuple builtin_texts(str name, str doc):
    """Return the name and the docstring of a method as a builtin type's are: `inspect` reads the signature from the
    latter."""
    signature, text = doc.split('\n\n', 1)
    signature = signature.replace('(self', '($self', 1)
    return name.encode(), f'{signature}\n--\n\n{text}'.encode()
