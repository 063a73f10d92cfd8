# The monotonic clock, in seconds: the one that time.monotonic() and asyncio's loop.time() read, but cheaper.
#
# To ask the kernel's clock costs about 30 ns, twice in an acquire and a release: a third of both. The processor's own
# counter costs 10. So the kernel's clock is asked once a millisecond, and what has passed since is taken from the
# counter. An error of the counter's rate is bounded by that millisecond: at the 500 ppm by which a clock may be slewed,
# half a microsecond.
#
# The counter is used on x86-64 Linux, where the kernel itself takes its time from it (so it is constant, and the same
# on all processors), and under the GIL, which keeps what is remembered here consistent. GCP_CLOCK=kernel in the
# environment does without it.

cdef extern from *:
    """
    #include <stdint.h>

    #ifdef _WIN32
    #include <windows.h>
    static double gcp_kernel_clock(void) {
        static double tick = 0.0;
        LARGE_INTEGER n;
        if (tick == 0.0) { QueryPerformanceFrequency(&n); tick = 1.0 / (double)n.QuadPart; }
        QueryPerformanceCounter(&n);
        return (double)n.QuadPart * tick;
    }
    #else
    #include <time.h>
    static inline double gcp_kernel_clock(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
    }
    #endif

    #if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(Py_GIL_DISABLED)
    #include <stdio.h>
    #include <stdlib.h>
    #include <string.h>

    #define GCP_WINDOW 1e-3       /* seconds for which the counter is trusted */
    #define GCP_PROMPT 4000       /* ticks: about a microsecond, for what takes a thirtieth of one */
    #define GCP_SHORTEST 1e-2     /* seconds after which its rate is known well enough */
    #define GCP_LONGEST 10.0      /* seconds after which it is measured anew: clocks are slewed */
    #define GCP_SKEW 5e-3         /* more deviation from its rate than this is no slewing */
    #define GCP_ERROR 1e-5        /* seconds: what was said is no further ahead of the kernel's clock */
    #define GCP_PATIENCE 16       /* so many deviations, and it is not trusted any more */

    static struct {
        uint64_t ticks;           /* when the kernel's clock was asked last */
        uint64_t trusted;         /* ticks from then on; 0: not at all */
        double seconds;           /* what it said */
        double rate;              /* seconds a tick */
        double floor;             /* what was said before it was asked: time does not go back */
        uint64_t base_ticks;      /* since when the rate is measured */
        double base_seconds;
        int known;                /* whether the rate was measured twice */
        int deviations;
    } gcp_anchor;

    static int gcp_counter_is_usable(void) {
        const char *choice = getenv("GCP_CLOCK");
        char source[8] = "";
        FILE *file;
        if (choice != NULL && strcmp(choice, "kernel") == 0)
            return 0;
        file = fopen("/sys/devices/system/clocksource/clocksource0/current_clocksource", "re");
        if (file == NULL)
            return 0;
        if (fgets(source, sizeof(source), file) == NULL)
            source[0] = 0;
        fclose(file);
        return strcmp(source, "tsc\\n") == 0;
    }

    static void gcp_start_measuring(uint64_t ticks, double seconds) {
        gcp_anchor.base_ticks = ticks;
        gcp_anchor.base_seconds = seconds;
    }

    /* Learn from a reading of both clocks what a tick is; tell whether the counter may be trusted for a while: where
       two measurements agree. */
    static int gcp_learn_rate(uint64_t ticks, double seconds) {
        double age = seconds - gcp_anchor.base_seconds;
        double rate = gcp_anchor.rate;
        double measured;
        if (gcp_anchor.base_ticks == 0) {
            gcp_start_measuring(ticks, seconds);
            return 0;
        }
        if (age >= 0 && age < GCP_SHORTEST)
            return gcp_anchor.known;
        measured = age / (double)(int64_t)(ticks - gcp_anchor.base_ticks);
        gcp_anchor.known = rate > 0 && measured < rate * (1 + GCP_SKEW) && measured > rate * (1 - GCP_SKEW);
        if (rate > 0 && !gcp_anchor.known) {
            gcp_anchor.deviations += 1;         /* the machine was asleep, say, or is another one now */
            measured = 0;
        }
        gcp_anchor.rate = measured > 0 ? measured : 0;
        if (gcp_anchor.known && age > GCP_LONGEST)
            gcp_anchor.deviations = 0;          /* a laptop may sleep every day */
        if (!gcp_anchor.known || age > GCP_LONGEST)
            gcp_start_measuring(ticks, seconds);
        return gcp_anchor.known;
    }

    /* Ask the kernel's clock. Between two looks at the counter: who was interrupted there has learned nothing. */
    static __attribute__((noinline)) double gcp_ask_kernel(void) {
        uint64_t before, after;
        double seconds;
        if (gcp_anchor.deviations >= GCP_PATIENCE)
            return gcp_kernel_clock();
        before = __builtin_ia32_rdtsc();
        seconds = gcp_kernel_clock();
        after = __builtin_ia32_rdtsc();
        if (gcp_anchor.trusted)
            gcp_anchor.floor = gcp_anchor.seconds + gcp_anchor.rate * (double)gcp_anchor.trusted;
        if (gcp_anchor.floor > seconds + GCP_ERROR)
            gcp_anchor.floor = seconds + GCP_ERROR;
        gcp_anchor.trusted = 0;
        if (after - before < GCP_PROMPT && gcp_learn_rate(before, seconds)) {
            gcp_anchor.ticks = before;
            gcp_anchor.seconds = seconds;
            gcp_anchor.trusted = (uint64_t)(GCP_WINDOW / gcp_anchor.rate);
        }
        return seconds > gcp_anchor.floor ? seconds : gcp_anchor.floor;
    }

    static inline double gcp_monotonic(void) {
        uint64_t passed;
        double seconds;
        if (__builtin_expect(gcp_anchor.trusted != 0, 1)) {
            passed = __builtin_ia32_rdtsc() - gcp_anchor.ticks;
            if (__builtin_expect(passed < gcp_anchor.trusted, 1)) {
                seconds = gcp_anchor.seconds + gcp_anchor.rate * (double)(int64_t)passed;
                return seconds > gcp_anchor.floor ? seconds : gcp_anchor.floor;
            }
        }
        return gcp_ask_kernel();
    }

    static void gcp_clock_init(void) {
        if (!gcp_counter_is_usable())
            gcp_anchor.deviations = GCP_PATIENCE;
        gcp_ask_kernel();
    }
    #else
    #define gcp_monotonic gcp_kernel_clock
    #define gcp_clock_init() ((void)0)
    #endif
    """
    double gcp_monotonic() noexcept nogil
    void gcp_clock_init() noexcept nogil


gcp_clock_init()
