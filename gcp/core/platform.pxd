# What the core takes from the platform: locks, prefetching, random numbers, a few C-API calls.

from cpython.object cimport PyObject
from libc.stdint cimport uint64_t

cdef extern from *:
    """
    #include <stdint.h>

    /* With the GIL a transition is atomic without a lock: it runs no Python code (Cython checks `noexcept nogil`) and
       does not release the GIL. So the locks cost nothing there.

       A free-threaded build has an outer lock, and one for each stripe: a part of the endpoints, chosen by the address
       of the key. An idle hit, and the release that ends it, change nothing but their endpoint, their slot and their
       stripe, so they hold the lock of the stripe alone. Every other transition holds all locks, and may change
       anything. What idle hits neither read nor change is protected by the outer lock alone. No lock is taken twice:
       inside there is no Python code, and nothing is released that may die.

       gcp_lock          all locks
       gcp_lock_outer    the outer lock
       gcp_lock_stripe   the lock of a stripe

       gcp_read, gcp_write   a flag that is looked at without a lock: who finds it set sees all that came before
       gcp_swap              replace a flag by 0 or 1, and return what it was: all that came before the replacement
                             is seen by who finds it replaced
       gcp_count             advance a counter, and return it */
    #ifdef Py_GIL_DISABLED
    #include <string.h>
    #define GCP_STRIPES 16
    #define GCP_APART 128       /* bytes between what different threads change: two cache lines, loaded as a pair */
    typedef struct {
        PyMutex outer;
        struct { char apart[GCP_APART]; PyMutex mutex; } stripes[GCP_STRIPES];
        char apart[GCP_APART];
    } gcp_mutex;
    static void gcp_mutex_init(gcp_mutex *m) { memset(m, 0, sizeof(gcp_mutex)); }
    #if defined(__x86_64__) || defined(__i386__)
    #define gcp_relax() __builtin_ia32_pause()
    #elif defined(__aarch64__)
    #define gcp_relax() __asm__ __volatile__("isb")
    #else
    #define gcp_relax() __asm__ __volatile__("")
    #endif
    /* The lock of a stripe, by one who holds others. It is free again in less than a microsecond, so look a few times
       first: PyMutex_Lock gives the processor away before it looks again, and on a busy machine all who wait for one
       of the others would wait until it comes back. */
    #define GCP_LOOKS 256
    static void gcp_lock_inner(PyMutex *m) {
        int left;
        for (left = GCP_LOOKS; left > 0 && __atomic_load_n(&m->_bits, __ATOMIC_RELAXED) != 0; left--)
            gcp_relax();
        PyMutex_Lock(m);
    }
    static void gcp_lock(gcp_mutex *m) {
        int i;
        PyMutex_Lock(&m->outer);
        for (i = 0; i < GCP_STRIPES; i++)
            gcp_lock_inner(&m->stripes[i].mutex);
    }
    static void gcp_unlock(gcp_mutex *m) {
        int i;
        for (i = 0; i < GCP_STRIPES; i++)
            PyMutex_Unlock(&m->stripes[i].mutex);
        PyMutex_Unlock(&m->outer);
    }
    #define gcp_lock_outer(m) PyMutex_Lock(&(m)->outer)
    #define gcp_unlock_outer(m) PyMutex_Unlock(&(m)->outer)
    #define gcp_lock_stripe(m, i) PyMutex_Lock(&(m)->stripes[i].mutex)
    #define gcp_unlock_stripe(m, i) PyMutex_Unlock(&(m)->stripes[i].mutex)
    #define gcp_stripe(key) ((int)(((uint64_t)((uintptr_t)(key) >> 4) * UINT64_C(11400714819323198485)) >> 60))
    #define gcp_read(flag) __atomic_load_n((flag), __ATOMIC_ACQUIRE)
    #define gcp_write(flag, value) __atomic_store_n((flag), (value), __ATOMIC_RELEASE)
    #define gcp_swap(flag, value) __atomic_exchange_n((flag), (value), __ATOMIC_SEQ_CST)
    #define gcp_count(counter) __atomic_add_fetch((counter), 1, __ATOMIC_RELAXED)
    #else
    #define GCP_STRIPES 1
    #define GCP_APART 1
    typedef char gcp_mutex;
    #define gcp_mutex_init(m) ((void)(m))
    #define gcp_lock(m) ((void)(m))
    #define gcp_unlock(m) ((void)(m))
    #define gcp_lock_outer(m) ((void)(m))
    #define gcp_unlock_outer(m) ((void)(m))
    #define gcp_lock_stripe(m, i) ((void)(m), (void)(i))
    #define gcp_unlock_stripe(m, i) ((void)(m), (void)(i))
    #define gcp_stripe(key) 0
    #define gcp_read(flag) (*(flag))
    #define gcp_write(flag, value) ((void)(*(flag) = (value)))
    static inline int gcp_swap(int *flag, int value) { int old = *flag; *flag = value; return old; }
    #define gcp_count(counter) (++*(counter))
    #endif

    /* Delete a dict's entry if a condition on its value holds. No user code runs between the look-up and the deletion.
       weakref.WeakValueDictionary uses the same function; its signature changed in 3.13. */
    typedef int (*gcp_condition_t)(PyObject *);
    #if PY_VERSION_HEX < 0x030D0000
    #define gcp_is_finalizing _Py_IsFinalizing
    PyAPI_FUNC(int) _PyDict_DelItemIf(PyObject *, PyObject *, int (*)(PyObject *));
    static int gcp_delete_if(PyObject *dict, PyObject *key, gcp_condition_t holds) {
        return _PyDict_DelItemIf(dict, key, holds);
    }
    #else
    #define gcp_is_finalizing Py_IsFinalizing
    PyAPI_FUNC(int) _PyDict_DelItemIf(PyObject *, PyObject *, int (*)(PyObject *, void *), void *);
    static int gcp_call_condition(PyObject *value, void *holds) { return ((gcp_condition_t)holds)(value); }
    static int gcp_delete_if(PyObject *dict, PyObject *key, gcp_condition_t holds) {
        return _PyDict_DelItemIf(dict, key, gcp_call_condition, (void *)holds);
    }
    #endif

    /* Look a key up in a dict that other threads may change. What is found is borrowed with the GIL, a new reference
       without it; gcp_drop_found says that it is not needed any more. NULL: there is none, or an error is set. */
    #ifdef Py_GIL_DISABLED
    static inline PyObject *gcp_look_up(PyObject *dict, PyObject *key) {
        PyObject *found = NULL;
        (void)PyDict_GetItemRef(dict, key, &found);
        return found;
    }
    #define gcp_drop_found(found) Py_XDECREF(found)
    #else
    #define gcp_look_up PyDict_GetItemWithError
    #define gcp_drop_found(found) ((void)(found))
    #endif

    /* Load a cache line that will be needed soon. The empty asm keeps GCC from removing calls of functions that only
       prefetch: it takes them for functions without effect. */
    #if defined(__GNUC__) || defined(__clang__)
    #define gcp_prefetch(p) do { __builtin_prefetch((const void *)(p), 1); __asm__ __volatile__(""); } while (0)
    #else
    #define gcp_prefetch(p) ((void)0)
    #endif

    /* What a hook returned, told apart by the slots of its type, so that nothing is allocated. Coroutines of any
       compiler, futures and tasks have am_send (3.10); a class of Python code has only am_await. */
    #define gcp_async(o) (Py_TYPE(o)->tp_as_async)
    static inline int gcp_is_awaitable(PyObject *o) { return gcp_async(o) != NULL && gcp_async(o)->am_await != NULL; }
    static inline int gcp_is_coroutine(PyObject *o) { return gcp_is_awaitable(o) && gcp_async(o)->am_send != NULL; }

    /* A number for the event loop that runs in this thread, without a call of asyncio. 0: not known.

       3.10 to 3.12   the version of the dict of the thread's state, in which asyncio notes the loop. It changes when
                      a loop begins or ends to run, and no version of a dict is used twice.
       3.13           versions of dicts are no longer counted: the address of the loop, looked up in that dict.
       3.14, 3.15     asyncio keeps the loop in a field of the thread's state. The address of the loop, read from there.
                      The field is declared in a header that is not public, and may move in a patch release: the number
                      is used only after it was equal to the loop that asyncio named.
       elsewhere      not known. */
    #if PY_VERSION_HEX >= 0x030E0000 && PY_VERSION_HEX < 0x03100000 && !defined(PYPY_VERSION) && defined(__has_include)
    #if __has_include("internal/pycore_tstate.h")
    #ifndef Py_BUILD_CORE
    #define Py_BUILD_CORE 1
    #include "internal/pycore_tstate.h"
    #undef Py_BUILD_CORE
    #else
    #include "internal/pycore_tstate.h"
    #endif
    #define GCP_LOOP_IN_THREAD_STATE 1
    #endif
    #endif

    #define GCP_NO_MARK UINT64_MAX      /* of no event loop */

    #if PY_VERSION_HEX < 0x030D0000 && !defined(Py_GIL_DISABLED) && !defined(PYPY_VERSION)
    #define GCP_MARK_IS_ADDRESS 0
    #if defined(__GNUC__)
    #pragma GCC diagnostic push
    #pragma GCC diagnostic ignored "-Wdeprecated-declarations"
    #endif
    static inline uint64_t gcp_running_mark(void) {
        PyObject *dict = PyThreadState_Get()->dict;
        return dict == NULL ? 0 : ((PyDictObject *)dict)->ma_version_tag;
    }
    #if defined(__GNUC__)
    #pragma GCC diagnostic pop
    #endif
    #elif PY_VERSION_HEX < 0x030E0000 && !defined(PYPY_VERSION)
    #define GCP_MARK_IS_ADDRESS 1
    static PyObject *gcp_loop_name;
    static inline uint64_t gcp_running_mark(void) {
        PyObject *dict = PyThreadState_Get()->dict;
        if (dict == NULL || gcp_loop_name == NULL)
            return 0;
        return (uint64_t)(uintptr_t)PyDict_GetItemWithError(dict, gcp_loop_name);
    }
    #define gcp_mark_init() (gcp_loop_name = PyUnicode_InternFromString("__asyncio_running_event_loop__"))
    #elif defined(GCP_LOOP_IN_THREAD_STATE)
    #define GCP_MARK_IS_ADDRESS 1
    static inline uint64_t gcp_running_mark(void) {
        return (uint64_t)(uintptr_t)((_PyThreadStateImpl *)PyThreadState_Get())->asyncio_running_loop;
    }
    #else
    #define GCP_MARK_IS_ADDRESS 0
    #define gcp_running_mark() ((uint64_t)0)
    #endif
    #ifndef gcp_mark_init
    #define gcp_mark_init() ((void)0)
    #endif

    /* The mark of the loop that asyncio has just said to run here. */
    static inline uint64_t gcp_mark_of(PyObject *loop) {
        uint64_t mark = gcp_running_mark();
        if (mark == 0 || (GCP_MARK_IS_ADDRESS && mark != (uint64_t)(uintptr_t)loop))
            return GCP_NO_MARK;
        return mark;
    }

    /* The task that runs in this thread, borrowed, from where asyncio of 3.14 and newer keeps it. It stands behind the
       definition of the macro: of the texts of several files, any may come first in what Cython writes. */
    #ifdef GCP_LOOP_IN_THREAD_STATE
    #define gcp_task_in_thread() (((_PyThreadStateImpl *)PyThreadState_Get())->asyncio_running_task)
    #define GCP_TASK_IN_THREAD 1
    #else
    #define gcp_task_in_thread() ((PyObject *)NULL)
    #define GCP_TASK_IN_THREAD 0
    #endif
    """
    ctypedef int (*gcp_condition_t)(PyObject*) noexcept
    int gcp_delete_if(object, object, gcp_condition_t) except -1
    bint gcp_is_finalizing() noexcept       # sys.is_finalizing, which is gone late in the interpreter's exit
    ctypedef struct gcp_mutex:
        pass
    void gcp_mutex_init(gcp_mutex*) noexcept nogil
    void gcp_lock(gcp_mutex*) noexcept nogil
    void gcp_unlock(gcp_mutex*) noexcept nogil
    void gcp_lock_outer(gcp_mutex*) noexcept nogil
    void gcp_unlock_outer(gcp_mutex*) noexcept nogil
    void gcp_lock_stripe(gcp_mutex*, int) noexcept nogil
    void gcp_unlock_stripe(gcp_mutex*, int) noexcept nogil
    enum:
        GCP_STRIPES
        GCP_APART
    int gcp_stripe(PyObject*) noexcept nogil
    bint gcp_read(bint*) noexcept nogil
    void gcp_write(bint*, bint) noexcept nogil
    unsigned char gcp_read_byte "gcp_read" (unsigned char*) noexcept nogil
    void gcp_write_byte "gcp_write" (unsigned char*, bint) noexcept nogil
    bint gcp_swap(bint*, bint) noexcept nogil
    uint64_t gcp_count(uint64_t*) noexcept nogil
    void gcp_prefetch(void*) noexcept nogil
    uint64_t GCP_NO_MARK
    uint64_t gcp_running_mark() noexcept
    uint64_t gcp_mark_of(object) noexcept
    void gcp_mark_init() noexcept
    PyObject* gcp_task_in_thread() noexcept
    bint GCP_TASK_IN_THREAD
    bint gcp_is_awaitable(object) noexcept
    bint gcp_is_coroutine(object) noexcept


cdef extern from 'Python.h':
    ctypedef int (*visitproc)(PyObject*, void*) noexcept
    ctypedef int (*traverseproc)(PyObject*, visitproc, void*) noexcept
    ctypedef int (*inquiry)(PyObject*) noexcept
    ctypedef void (*destructor)(PyObject*) noexcept
    void PyObject_ClearWeakRefs(PyObject*) noexcept
    void PyObject_GC_UnTrack(PyObject*) noexcept
    ctypedef struct PyTypeObject:
        traverseproc tp_traverse
        inquiry tp_clear
        destructor tp_dealloc
        PyObject* tp_dict
    ctypedef enum PySendResult:
        PYGEN_RETURN
        PYGEN_ERROR
        PYGEN_NEXT
    PySendResult PyIter_Send(PyObject*, PyObject*, PyObject**) except? PYGEN_ERROR
    PyObject* gcp_look_up(object, object) except? NULL
    PyObject* look_up_quietly "gcp_look_up" (object, object) noexcept
    void gcp_drop_found(PyObject*) noexcept
    PyObject* PyObject_CallNoArgs(object) except NULL
    ctypedef struct PyThreadState:
        pass
    PyThreadState* PyThreadState_Get() noexcept
    uint64_t PyThreadState_GetID(PyThreadState*) noexcept


cdef inline uint64_t next_random(uint64_t* state) noexcept nogil:
    """Advance a xorshift64 generator (Marsaglia 2003). It spreads lifetimes; it is not fit for secrets."""
    cdef uint64_t x = state[0]
    x ^= x << 13
    x ^= x >> 7
    x ^= x << 17
    state[0] = x
    return x


cdef inline double random_fraction(uint64_t* state) noexcept nogil:
    """Return a random number in [0, 1)."""
    return <double>(next_random(state) >> 11) / 9007199254740992.0
