# Histograms: counts of values in buckets with fixed upper bounds, and their sum. They are plain C fields, so that an
# observation costs an increment and no call; they are read when a snapshot is taken.

from libc.stdint cimport uint64_t

cdef extern from *:
    """
    /* GCP_METRICS=0 compiles the observations out, to measure what they cost. */
    #ifndef GCP_METRICS
    #define GCP_METRICS 1
    #endif

    /* Upper bounds of the buckets, seconds. Waits and hook calls use the first 16, uses all 19. */
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

cdef struct histogram_t:
    double sum
    uint64_t counts[<int>MOST_BUCKETS]     # not cumulative; the last one in use counts what exceeds all bounds


cdef inline void observe(histogram_t* histogram, const double* bounds, int n, double value) noexcept nogil:
    """Count a value in its bucket. The search begins at the lowest: most values are small."""
    cdef int i = 0
    if not GCP_METRICS:
        return
    if value < 0:
        value = 0       # the clock was set back
    while i < n and value > bounds[i]:
        i += 1
    histogram.counts[i] += 1
    histogram.sum += value


cdef inline void add_histogram(histogram_t* to, histogram_t* more) noexcept nogil:
    """Add the counts and the sum of a histogram to those of another one."""
    cdef int i
    for i in range(MOST_BUCKETS):
        to.counts[i] += more.counts[i]
    to.sum += more.sum
