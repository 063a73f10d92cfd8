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

    /* Return the code object that a thread executes, and where it is in it: a borrowed reference, or NULL where it
       executes none.

       From 3.12 on there are functions for it. But they cost a twentieth of a hit, and where there is no GIL, threads
       that execute the same code would slow each other down by counting references to it. What they read is in the same
       words of a frame up to 3.15. Whether it is there is found out when the module is imported, by comparison: if not,
       the functions are called. The two low bits are the interpreter's. */
    #if PY_VERSION_HEX < 0x030B0000
    #define gcp_know_frames(wanted) 1      /* there are no functions */
    static inline PyObject *gcp_code_of(PyThreadState *thread, int *at) {
        PyFrameObject *frame = thread->frame;
        if (frame == NULL)
            return NULL;
        *at = frame->f_lasti * (int)sizeof(_Py_CODEUNIT);
        return (PyObject *)frame->f_code;
    }
    #elif PY_VERSION_HEX < 0x030C0000
    #define gcp_know_frames(wanted) 1      /* there are no functions */
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
    typedef struct {
        uintptr_t code;
        void *previous, *function, *globals, *builtins, *locals, *object;
        char *instruction;
    } gcp_frame;
    static int gcp_knows_frames;

    #if PY_VERSION_HEX < 0x030D0000
    #define gcp_frame_of(thread) ((thread)->cframe->current_frame)
    #else
    #define gcp_frame_of(thread) ((thread)->current_frame)
    #endif
    static inline PyObject *gcp_code_in(const gcp_frame *frame) { return (PyObject *)(frame->code & ~(uintptr_t)3); }
    #ifdef Py_GIL_DISABLED      /* a thread may execute a copy of the instructions */
    #define gcp_place_in(frame, code) PyUnstable_InterpreterFrame_GetLasti((struct _PyInterpreterFrame *)(frame))
    #else
    static inline int gcp_place_in(const gcp_frame *frame, PyObject *code) {
        return (int)(frame->instruction - ((PyCodeObject *)code)->co_code_adaptive);
    }
    #endif
    static PyObject *gcp_ask_for_code(struct _PyInterpreterFrame *frame, int *at) {
        PyObject *code = PyUnstable_InterpreterFrame_GetCode(frame);
        *at = PyUnstable_InterpreterFrame_GetLasti(frame);
        Py_DECREF(code);        /* the frame has one */
        return PyCode_Check(code) ? code : NULL;    /* or it is a frame of the interpreter's own */
    }
    static int gcp_know_frames(int wanted) {
        struct _PyInterpreterFrame *frame = gcp_frame_of(PyThreadState_Get());
        int at = -1;
        PyObject *code = frame == NULL ? NULL : gcp_ask_for_code(frame, &at);
        gcp_knows_frames = wanted && code != NULL && code == gcp_code_in((gcp_frame *)frame)
            && at == gcp_place_in((gcp_frame *)frame, code);
        return gcp_knows_frames;
    }
    static inline PyObject *gcp_code_of(PyThreadState *thread, int *at) {
        struct _PyInterpreterFrame *frame = gcp_frame_of(thread);
        PyObject *code;
        if (frame == NULL)
            return NULL;
        if (!gcp_knows_frames)
            return gcp_ask_for_code(frame, at);
        code = gcp_code_in((gcp_frame *)frame);
        if (!PyCode_Check(code))
            return NULL;
        *at = gcp_place_in((gcp_frame *)frame, code);
        return code;
    }
    #endif

    /* What was noted before. A site is changed within the lock; what it does not refer to any more may die when that is
       free again. With the GIL there is no lock: it may die at once. */
    #ifdef Py_GIL_DISABLED
    typedef struct { PyObject *code, *task, *tag; } gcp_dropped;
    #define gcp_init_dropped(dropped) memset((dropped), 0, sizeof(gcp_dropped))
    #define gcp_drop(dropped, which, object) ((dropped)->which = (object))
    static void gcp_forget_dropped(gcp_dropped *dropped) {
        Py_CLEAR(dropped->code);
        Py_CLEAR(dropped->task);
        Py_CLEAR(dropped->tag);
    }
    #define gcp_task_of(reference) __atomic_load_n(&((PyWeakReference *)(reference))->wr_object, __ATOMIC_RELAXED)
    #else
    typedef char gcp_dropped;
    #define gcp_init_dropped(dropped) ((void)(dropped))
    #define gcp_drop(dropped, which, object) Py_XDECREF(object)
    #define gcp_forget_dropped(dropped) ((void)(dropped))
    #define gcp_task_of(reference) (((PyWeakReference *)(reference))->wr_object)
    #endif

    static void gcp_set_code(gcp_site *site, PyObject *code, gcp_dropped *dropped) {
        PyObject *old = site->code;
        site->code = Py_XNewRef(code);
        gcp_drop(dropped, code, old);
    }

    static void gcp_set_task(gcp_site *site, PyObject *task, gcp_dropped *dropped) {
        PyObject *old = site->task;
        site->task = task == NULL ? NULL : PyWeakref_NewRef(task, NULL);
        if (task != NULL && site->task == NULL)
            PyErr_Clear();
        gcp_drop(dropped, task, old);
    }

    static void gcp_set_tag(gcp_site *site, PyObject *tag, gcp_dropped *dropped) {
        PyObject *old = site->tag;
        site->tag = Py_XNewRef(tag);
        gcp_drop(dropped, tag, old);
    }

    /* Whether a site was noted in this task. */
    static inline int gcp_is_of_task(const gcp_site *site, PyObject *task) {
        return site->task == NULL ? task == NULL : gcp_task_of(site->task) == task;
    }

    /* Note where the caller is. Within the lock.

       task   the running task, or NULL */
    static inline void gcp_note_site(gcp_site *site, PyObject *task, gcp_dropped *dropped) {
        PyThreadState *thread = PyThreadState_Get();
        PyObject *code = gcp_code_of(thread, &site->at);
        site->thread = thread->id;
        site->ident = thread->thread_id;
        if (code != site->code)
            gcp_set_code(site, code, dropped);
        if (!gcp_is_of_task(site, task))
            gcp_set_task(site, task, dropped);
        if (site->tag != NULL)
            gcp_set_tag(site, NULL, dropped);
    }

    static inline void gcp_forget_site(gcp_site *site) {
        Py_CLEAR(site->code);
        Py_CLEAR(site->task);
        Py_CLEAR(site->tag);
    }

    /* Hand what was noted on to another site. Within the lock. */
    static inline void gcp_move_site(gcp_site *to, gcp_site *from, gcp_dropped *dropped) {
        gcp_site old = *to;
        *to = *from;
        memset(from, 0, sizeof(gcp_site));
        gcp_drop(dropped, code, old.code);
        gcp_drop(dropped, task, old.task);
        gcp_drop(dropped, tag, old.tag);
    }

    /* Whether a thread runs, by the id of its state, and its context variables: a new reference, or NULL. With the GIL
       held, the list of the threads' states does not change. Without it, each thread that holds a connection puts an
       object into the dict of its state, which dies with that; only its own context variables can be looked at. */
    #ifdef Py_GIL_DISABLED
    #define GCP_THREAD "gcp: a thread that holds connections"
    static PyObject *gcp_threads;           /* the ids of those that run: a set */
    static _Thread_local uint64_t gcp_thread_known;
    static void gcp_forget_thread(PyObject *capsule) {
        PyObject *id = PyCapsule_GetContext(capsule);
        if (PySet_Discard(gcp_threads, id) < 0)
            PyErr_Clear();
        Py_DECREF(id);
    }
    static void gcp_meet_thread(uint64_t number) {
        PyObject *dict = PyThreadState_GetDict();
        PyObject *id = PyLong_FromUnsignedLongLong(number);
        PyObject *capsule = id == NULL ? NULL : PyCapsule_New(&gcp_threads, GCP_THREAD, NULL);
        if (gcp_threads == NULL)
            gcp_threads = PySet_New(NULL);      /* when the module is imported */
        if (capsule != NULL && dict != NULL && PySet_Add(gcp_threads, id) == 0
                && PyCapsule_SetContext(capsule, Py_NewRef(id)) == 0
                && PyCapsule_SetDestructor(capsule, gcp_forget_thread) == 0
                && PyDict_SetItemString(dict, GCP_THREAD, capsule) == 0)
            gcp_thread_known = number;
        PyErr_Clear();
        Py_XDECREF(capsule);
        Py_XDECREF(id);
    }
    static inline void gcp_know_thread(void) {
        uint64_t number = PyThreadState_Get()->id;
        if (gcp_thread_known != number)
            gcp_meet_thread(number);
    }
    static int gcp_thread_runs(uint64_t number, PyObject **context) {
        PyObject *id = PyLong_FromUnsignedLongLong(number);
        int runs = id == NULL ? -1 : PySet_Contains(gcp_threads, id);
        PyThreadState *own = PyThreadState_Get();
        *context = own->id == number ? Py_XNewRef(own->context) : NULL;
        Py_XDECREF(id);
        return runs;
    }
    #else
    #define gcp_know_thread() ((void)0)
    static int gcp_thread_runs(uint64_t number, PyObject **context) {
        PyThreadState *thread = PyInterpreterState_ThreadHead(PyInterpreterState_Get());
        while (thread != NULL && thread->id != number)
            thread = PyThreadState_Next(thread);
        *context = thread == NULL ? NULL : Py_XNewRef(thread->context);
        return thread != NULL;
    }
    #endif

    static inline int gcp_line_of(PyObject *code, int at) { return PyCode_Addr2Line((PyCodeObject *)code, at); }
    """
    ctypedef struct gcp_site:
        PyObject* code
        PyObject* task
        PyObject* tag
        uint64_t thread
        unsigned long ident
        int at
    ctypedef struct gcp_dropped:
        pass
    void gcp_init_dropped(gcp_dropped*) noexcept
    void gcp_forget_dropped(gcp_dropped*) noexcept
    void gcp_note_site(gcp_site*, PyObject* task, gcp_dropped*) noexcept
    void gcp_set_tag(gcp_site*, PyObject* tag, gcp_dropped*) noexcept
    void gcp_move_site(gcp_site* to, gcp_site* source, gcp_dropped*) noexcept
    void gcp_forget_site(gcp_site*) noexcept
    bint gcp_know_frames(bint wanted) noexcept
    void gcp_know_thread() noexcept
    bint gcp_thread_runs(uint64_t, PyObject** context) except -1
    int gcp_line_of(object code, int at) noexcept
