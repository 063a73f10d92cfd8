# What the core takes from the platform: a mutex, lock-free stacks, prefetching, random numbers, a few C-API calls.

from cpython.object cimport PyObject
from libc.stdint cimport uint64_t

cdef extern from *:
    """
    #include <stdint.h>

    /* With the GIL a transition is atomic without a lock: it runs no Python code (Cython checks `noexcept nogil`) and
       does not release the GIL. In a free-threaded build it holds a mutex. PyMutex is not reentrant; a transition
       that runs no Python code never takes it twice.

       gcp_push and gcp_take: a stack that finalizers push to, in any thread, without the mutex. It is taken whole. */
    #ifdef Py_GIL_DISABLED
    #include <string.h>
    typedef PyMutex gcp_mutex;
    #define gcp_mutex_init(m) memset((m), 0, sizeof(PyMutex))
    #define gcp_lock(m) PyMutex_Lock(m)
    #define gcp_unlock(m) PyMutex_Unlock(m)
    #define gcp_push(head, node, next) do { \\
        void *gcp_seen = __atomic_load_n((void **)(head), __ATOMIC_RELAXED); \\
        do { *(void **)(next) = gcp_seen; } while (!__atomic_compare_exchange_n( \\
            (void **)(head), &gcp_seen, (void *)(node), 1, __ATOMIC_RELEASE, __ATOMIC_RELAXED)); } while (0)
    #define gcp_take(head) __atomic_exchange_n((void **)(head), NULL, __ATOMIC_ACQUIRE)
    #else
    typedef char gcp_mutex;
    #define gcp_mutex_init(m) ((void)(m))
    #define gcp_lock(m) ((void)(m))
    #define gcp_unlock(m) ((void)(m))
    #define gcp_push(head, node, next) do { \\
        *(void **)(next) = *(void **)(head); *(void **)(head) = (void *)(node); } while (0)
    static inline void *gcp_take_plain(void **head) { void *all = *head; *head = NULL; return all; }
    #define gcp_take(head) gcp_take_plain((void **)(head))
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
    void gcp_prefetch(void*) noexcept nogil
    uint64_t GCP_NO_MARK
    uint64_t gcp_running_mark() noexcept
    uint64_t gcp_mark_of(object) noexcept
    void gcp_mark_init() noexcept
    PyObject* gcp_task_in_thread() noexcept
    bint GCP_TASK_IN_THREAD
    bint gcp_is_awaitable(object) noexcept
    bint gcp_is_coroutine(object) noexcept
    void gcp_push(void* head, void* node, void* next) noexcept nogil
    void* gcp_take(void* head) noexcept nogil


cdef extern from 'Python.h':
    ctypedef int (*visitproc)(PyObject*, void*) noexcept
    ctypedef int (*traverseproc)(PyObject*, visitproc, void*) noexcept
    ctypedef int (*inquiry)(PyObject*) noexcept
    ctypedef struct PyTypeObject:
        traverseproc tp_traverse
        inquiry tp_clear
        PyObject* tp_dict
    ctypedef enum PySendResult:
        PYGEN_RETURN
        PYGEN_ERROR
        PYGEN_NEXT
    PySendResult PyIter_Send(PyObject*, PyObject*, PyObject**) except? PYGEN_ERROR
    PyObject* PyDict_GetItemWithError(object, object) except? NULL
    PyObject* look_up_quietly "PyDict_GetItemWithError" (object, object) noexcept
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
