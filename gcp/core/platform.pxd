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
    PyAPI_FUNC(int) _PyDict_DelItemIf(PyObject *, PyObject *, int (*)(PyObject *));
    static int gcp_delete_if(PyObject *dict, PyObject *key, gcp_condition_t holds) {
        return _PyDict_DelItemIf(dict, key, holds);
    }
    #else
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

    /* A number for the event loop that runs in this thread: it changes whenever one begins or ends to run, for asyncio
       notes that in the dict of the thread's state, and no version of a dict is used twice. 0: not known (asyncio keeps
       it elsewhere from Python 3.14 on, and 3.13 does not count versions). */
    static inline uint64_t gcp_running_mark(void) {
    #if PY_VERSION_HEX < 0x030D0000 && !defined(Py_GIL_DISABLED) && !defined(PYPY_VERSION)
    #if defined(__GNUC__)
    #pragma GCC diagnostic push
    #pragma GCC diagnostic ignored "-Wdeprecated-declarations"
    #endif
        PyObject *dict = PyThreadState_Get()->dict;
        return dict == NULL ? 0 : ((PyDictObject *)dict)->ma_version_tag;
    #if defined(__GNUC__)
    #pragma GCC diagnostic pop
    #endif
    #else
        return 0;
    #endif
    }
    """
    ctypedef int (*gcp_condition_t)(PyObject*) noexcept
    int gcp_delete_if(object, object, gcp_condition_t) except -1
    ctypedef struct gcp_mutex:
        pass
    void gcp_mutex_init(gcp_mutex*) noexcept nogil
    void gcp_lock(gcp_mutex*) noexcept nogil
    void gcp_unlock(gcp_mutex*) noexcept nogil
    void gcp_prefetch(void*) noexcept nogil
    uint64_t gcp_running_mark() noexcept
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
