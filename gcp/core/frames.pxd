# Where a connection was acquired: the code object of the innermost Python frame and the offset of its instruction, the
# thread, the task. Noted at each acquire, so no frame object is made: that would cost as much as the acquire itself.
# Line numbers are looked up when they are asked for.

from cpython.object cimport PyObject
from libc.stdint cimport uint64_t

cdef extern from *:
    """
    #if PY_VERSION_HEX < 0x030B0000
    #include "frameobject.h"
    #endif

    typedef struct {
        PyObject *code;         /* owned; NULL: not known */
        PyObject *task;         /* owned: a weak reference to the task; NULL: there was none */
        PyObject *tag;          /* owned: what the caller said; NULL: nothing */
        uint64_t thread;        /* the id of the thread's state: no two threads of a process have the same */
        unsigned long ident;    /* as of threading.get_ident(): may be used again when the thread has ended */
        int at;                 /* offset of the instruction, bytes */
    } gcp_site;

    /* Return the code object that a thread executes, or NULL where it executes none: a borrowed reference, or from 3.12
       on, where there are functions for it, a new one. The layout of 3.11's frames does not change any more. */
    #define GCP_CODE_IS_NEW (PY_VERSION_HEX >= 0x030C0000)
    #if PY_VERSION_HEX < 0x030B0000
    static inline PyObject *gcp_code_of(PyThreadState *thread, int *at) {
        PyFrameObject *frame = thread->frame;
        if (frame == NULL)
            return NULL;
        *at = frame->f_lasti * (int)sizeof(_Py_CODEUNIT);
        return (PyObject *)frame->f_code;
    }
    #elif PY_VERSION_HEX < 0x030C0000
    typedef struct {
        PyObject *function, *globals, *builtins, *locals;
        PyCodeObject *code;
        PyObject *object;
        void *previous;
        _Py_CODEUNIT *instruction;
    } gcp_frame;
    static inline PyObject *gcp_code_of(PyThreadState *thread, int *at) {
        gcp_frame *frame = (gcp_frame *)thread->cframe->current_frame;
        if (frame == NULL)
            return NULL;
        *at = (int)((char *)frame->instruction - (char *)_PyCode_CODE(frame->code));
        return (PyObject *)frame->code;
    }
    #else
    static inline PyObject *gcp_code_of(PyThreadState *thread, int *at) {
    #if PY_VERSION_HEX < 0x030D0000
        struct _PyInterpreterFrame *frame = thread->cframe->current_frame;
    #else
        struct _PyInterpreterFrame *frame = thread->current_frame;
    #endif
        PyObject *code;
        if (frame == NULL)
            return NULL;
        code = PyUnstable_InterpreterFrame_GetCode(frame);
        if (!PyCode_Check(code)) {      /* of a frame of the interpreter's own */
            Py_DECREF(code);
            return NULL;
        }
        *at = PyUnstable_InterpreterFrame_GetLasti(frame);
        return code;
    }
    #endif

    static void gcp_set_code(gcp_site *site, PyObject *code) {
        PyObject *old = site->code;
        if (!GCP_CODE_IS_NEW)
            Py_XINCREF(code);
        site->code = code;
        Py_XDECREF(old);
    }

    static void gcp_set_task(gcp_site *site, PyObject *task) {
        PyObject *old = site->task;
        site->task = task == NULL ? NULL : PyWeakref_NewRef(task, NULL);
        if (task != NULL && site->task == NULL)
            PyErr_Clear();
        Py_XDECREF(old);
    }

    /* Whether a site was noted in this task. */
    static inline int gcp_is_of_task(const gcp_site *site, PyObject *task) {
        return site->task == NULL ? task == NULL : ((PyWeakReference *)site->task)->wr_object == task;
    }

    /* Note where the caller is.

       task   the running task, or NULL */
    static inline void gcp_note_site(gcp_site *site, PyObject *task) {
        PyThreadState *thread = PyThreadState_Get();
        PyObject *code = gcp_code_of(thread, &site->at);
        site->thread = thread->id;
        site->ident = thread->thread_id;
        if (code != site->code)
            gcp_set_code(site, code);
        else if (GCP_CODE_IS_NEW)
            Py_XDECREF(code);
        if (!gcp_is_of_task(site, task))
            gcp_set_task(site, task);
        if (site->tag != NULL)
            Py_CLEAR(site->tag);
    }

    static inline void gcp_forget_site(gcp_site *site) {
        Py_CLEAR(site->code);
        Py_CLEAR(site->task);
        Py_CLEAR(site->tag);
    }

    /* Hand what was noted on to another site. */
    static inline void gcp_move_site(gcp_site *to, gcp_site *from) {
        gcp_site old = *to;
        *to = *from;
        memset(from, 0, sizeof(gcp_site));
        gcp_forget_site(&old);
    }

    /* The state of a thread by its id, or NULL when the thread has ended. A thread's state is removed with the GIL
       held, so with the GIL held the list does not change. Not to be asked in a free-threaded build. */
    static inline PyThreadState *gcp_thread_of(uint64_t id) {
        PyThreadState *thread = PyInterpreterState_ThreadHead(PyInterpreterState_Get());
        while (thread != NULL && thread->id != id)
            thread = PyThreadState_Next(thread);
        return thread;
    }
    #ifdef Py_GIL_DISABLED
    #define gcp_sees_threads 0
    #else
    #define gcp_sees_threads 1
    #endif

    static inline PyObject *gcp_context_of(PyThreadState *thread) {
        return Py_NewRef(thread->context == NULL ? Py_None : thread->context);
    }

    static inline int gcp_line_of(PyObject *code, int at) { return PyCode_Addr2Line((PyCodeObject *)code, at); }
    """
    ctypedef struct gcp_site:
        PyObject* code
        PyObject* task
        PyObject* tag
        uint64_t thread
        unsigned long ident
        int at
    ctypedef struct gcp_thread "PyThreadState":
        pass
    void gcp_note_site(gcp_site*, PyObject* task) noexcept
    void gcp_move_site(gcp_site* to, gcp_site* source) noexcept
    void gcp_forget_site(gcp_site*) noexcept
    gcp_thread* gcp_thread_of(uint64_t) noexcept
    object gcp_context_of(gcp_thread*)
    bint gcp_sees_threads
    int gcp_line_of(object code, int at) noexcept
