# What is counted and timed: plain C fields of the pool, always on. They are read when somebody asks; nothing is pushed
# anywhere, so that the fast path costs an increment and no call.

cdef extern from *:
    """
    /* GCP_METRICS=0 leaves out what is timed, to measure what that costs. */
    #ifndef GCP_METRICS
    #define GCP_METRICS 1
    #endif

    /* Upper bounds of buckets, seconds. Waits and steps use the first 16, uses all 19. */
    static const double gcp_seconds[] = {
        .0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300};
    static const double gcp_ages[] = {1, 5, 10, 30, 60, 300, 600, 1800, 3600, 7200, 21600, 86400};
    """
    enum:
        GCP_METRICS
    const double* gcp_seconds
    const double* gcp_ages

cdef enum:
    N_WAIT_BOUNDS = 16
    N_USE_BOUNDS = 19
    N_AGE_BOUNDS = 12
    MOST_BUCKETS = 20

# The steps of a connection's life that its manager takes, and how each can end.
cdef enum hook_kind:
    HOOK_CREATE, HOOK_DISPOSE, HOOK_CHECK, HOOK_ON_ACQUIRE, HOOK_ON_RELEASE, HOOK_ON_DEAD, N_HOOKS

cdef enum hook_outcome:
    CALL_OK, CALL_ERROR, CALL_TIMEOUT, CALL_CANCELLED, CALL_DEAD, N_HOOK_OUTCOMES


cdef struct histogram_t:
    double sum
    uint64_t counts[<int>MOST_BUCKETS]     # not cumulative; the last in use is of what exceeds all bounds


cdef struct metrics_t:
    histogram_t use
    histogram_t wait        # without the hits: those waited for nothing
    histogram_t age
    histogram_t hook_time[<int>N_HOOKS]
    uint64_t hook_calls[<int>N_HOOKS][<int>N_HOOK_OUTCOMES]


cdef inline void observe(histogram_t* histogram, const double* bounds, int n, double value) noexcept nogil:
    """Count a value in its bucket. From below: most are small."""
    cdef int i = 0
    if not GCP_METRICS:
        return
    if value < 0:
        value = 0       # a clock that was set back
    while i < n and value > bounds[i]:
        i += 1
    histogram.counts[i] += 1
    histogram.sum += value


cdef inline void count_hook_call(metrics_t* metrics, int step, int outcome, double seconds) noexcept nogil:
    metrics.hook_calls[step][outcome] += 1
    observe(&metrics.hook_time[step], gcp_seconds, N_WAIT_BOUNDS, seconds)


cdef tuple bounds_of(const double* bounds, int n):
    cdef int i
    return tuple([bounds[i] for i in range(n)])


WAIT_BOUNDS = bounds_of(gcp_seconds, N_WAIT_BOUNDS)
USE_BOUNDS = bounds_of(gcp_seconds, N_USE_BOUNDS)
AGE_BOUNDS = bounds_of(gcp_ages, N_AGE_BOUNDS)
HOOKS = ('create', 'dispose', 'check_aliveness', 'on_acquire', 'on_release', 'on_connection_dead')
HOOK_OUTCOMES = ('ok', 'error', 'timeout', 'cancelled', 'dead')
