# The monotonic clock, in seconds. It reads as time.monotonic() and asyncio's loop.time() do, and costs less.
#
# The kernel's clock costs about 30 ns. An acquire and a release read it once each, and that was a third of their time.
# The processor's time-stamp counter costs 10 ns. So the kernel's clock is read once a millisecond, and the time that
# has passed since then is taken from the counter. The error of the counter's rate adds up over that millisecond only:
# at 500 ppm, the most by which a clock is slewed, half a microsecond.
#
# The counter is used on Linux when it is the kernel's own clock source (it is constant then, and the same on all
# processors): the time-stamp counter of x86-64, the virtual counter of arm64. It is used only with the GIL, which
# protects the static data below. GCP_CLOCK=kernel in the environment turns it off.
#
# The extension calls gcp_clock_init() when it is imported.

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

    #if (defined(__x86_64__) || defined(__aarch64__)) && defined(__linux__) && defined(__GNUC__) \\
        && !defined(Py_GIL_DISABLED)
    #include <stdio.h>
    #include <stdlib.h>
    #include <string.h>

    #define GCP_WINDOW 1e-3       /* seconds for which the counter is used after a reading of the kernel's clock */
    #define GCP_SHORTEST 1e-2     /* seconds over which the rate must be measured at least */
    #define GCP_LONGEST 10.0      /* seconds after which a new measurement begins, since clocks are slewed */
    #define GCP_SKEW 5e-3         /* a relative change of the rate above this is a deviation: slewing is smaller */
    #define GCP_ERROR 1e-5        /* seconds by which the result may be ahead of the kernel's clock */
    #define GCP_PATIENCE 16       /* deviations after which the counter is not used any more */

    /* GCP_PROMPT: ticks, about 1 us: a reading that took longer was cut short (normal: 30 ns). The counter of arm64 has
       a frequency of its own, 24 MHz to 1 GHz. */
    #if defined(__x86_64__)
    #define GCP_SOURCE "tsc\\n"
    #define GCP_PROMPT 4000
    #define gcp_ticks() ((uint64_t)__builtin_ia32_rdtsc())
    #else
    #define GCP_SOURCE "arch_sys_counter\\n"
    #define GCP_PROMPT (gcp_frequency() / 1000000 + 2)
    static inline uint64_t gcp_frequency(void) {
        uint64_t n;
        __asm__ __volatile__("mrs %0, cntfrq_el0" : "=r"(n));
        return n;
    }
    static inline uint64_t gcp_ticks(void) {
        uint64_t n;
        __asm__ __volatile__("mrs %0, cntvct_el0" : "=r"(n));
        return n;
    }
    #endif

    static struct {
        uint64_t ticks;           /* the counter at the last reading of the kernel's clock */
        uint64_t trusted;         /* for how many ticks from then on the counter is used; 0: it is not */
        double seconds;           /* the kernel's clock at that reading */
        double rate;              /* seconds per tick */
        double floor;             /* the latest result before that reading: time does not go back */
        uint64_t base_ticks;      /* where the measurement of the rate began */
        double base_seconds;
        int known;                /* whether two measurements of the rate agree */
        int deviations;
    } gcp_anchor;

    static int gcp_counter_is_usable(void) {
        const char *choice = getenv("GCP_CLOCK");
        char source[32] = "";
        FILE *file;
        if (choice != NULL && strcmp(choice, "kernel") == 0)
            return 0;
        file = fopen("/sys/devices/system/clocksource/clocksource0/current_clocksource", "re");
        if (file == NULL)
            return 0;
        if (fgets(source, sizeof(source), file) == NULL)
            source[0] = 0;
        fclose(file);
        return strcmp(source, GCP_SOURCE) == 0;
    }

    static void gcp_start_measuring(uint64_t ticks, double seconds) {
        gcp_anchor.base_ticks = ticks;
        gcp_anchor.base_seconds = seconds;
    }

    /* Measure the rate from a reading of both clocks. Return whether the counter may be used: if two measurements
       agree. */
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
            gcp_anchor.deviations += 1;         /* the machine was suspended, or migrated to another host */
            measured = 0;
        }
        gcp_anchor.rate = measured > 0 ? measured : 0;
        if (gcp_anchor.known && age > GCP_LONGEST)
            gcp_anchor.deviations = 0;          /* a laptop may be suspended every day */
        if (!gcp_anchor.known || age > GCP_LONGEST)
            gcp_start_measuring(ticks, seconds);
        return gcp_anchor.known;
    }

    /* Read the kernel's clock between two readings of the counter. If they are far apart, the thread was interrupted
       in between, and the reading says nothing about the rate. */
    static __attribute__((noinline)) double gcp_ask_kernel(void) {
        uint64_t before, after;
        double seconds;
        if (gcp_anchor.deviations >= GCP_PATIENCE)
            return gcp_kernel_clock();
        before = gcp_ticks();
        seconds = gcp_kernel_clock();
        after = gcp_ticks();
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
            passed = gcp_ticks() - gcp_anchor.ticks;
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
