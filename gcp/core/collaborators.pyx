# What a front and the telemetry set on a core: what it calls. Some of it is replaced while other threads use the pool,
# so it is read and replaced under the lock; what was replaced dies outside it.

from gcp.core.platform cimport gcp_lock_outer, gcp_mutex, gcp_mutex_init, gcp_read, gcp_unlock_outer, gcp_write


@cython.internal
cdef class Collaborators:
    """The part of a core that holds what it calls, and its locks."""
    cdef gcp_mutex mutex
    cdef object _tracer
    cdef bint _traces_hits
    cdef object _wake_collector
    cdef object _on_abandoned
    cdef object _limits_of
    cdef bint is_garbage                # together with what it calls, which may be cleared already
    # set once, before the pool is used
    cdef public object wake_background  # called when there may be something to do in the background
    cdef public bint workers_rest       # whether workers in the background say when they rest: see `rest`
    cdef public object on_drained       # called when a closed pool has become empty
    cdef public object on_fork          # called in a forked child
    cdef public object describe_holders     # makes what is shown of holders from what `use_of` returns: (list)
    cdef public object on_lost          # called when a lease was garbage-collected: (its holder)
    cdef public object report           # logs an error that is not raised: (message, endpoint, error)

    def __cinit__(self, *args, **limits):
        gcp_mutex_init(&self.mutex)

    def __del__(self):
        # the garbage collector calls this before it clears anything
        gcp_lock_outer(&self.mutex)
        self.is_garbage = True
        gcp_unlock_outer(&self.mutex)

    @property
    def tracer(self):
        """Records spans; None: nothing does."""
        return tracer_of(self)

    @tracer.setter
    def tracer(self, tracer):
        gcp_lock_outer(&self.mutex)
        _last, self._tracer = self._tracer, tracer
        gcp_unlock_outer(&self.mutex)

    @property
    def traces_hits(self):
        """Whether the hooks at an idle hit and at a release have spans, too."""
        return bool(gcp_read(&self._traces_hits))

    @traces_hits.setter
    def traces_hits(self, bint traces_hits):
        gcp_write(&self._traces_hits, traces_hits)

    @property
    def wake_collector(self):
        """Called when something expires before the collector's next look; None: there is no collector."""
        return collector_waker(self)

    @wake_collector.setter
    def wake_collector(self, wake_collector):
        gcp_lock_outer(&self.mutex)
        _last, self._wake_collector = self._wake_collector, wake_collector
        gcp_unlock_outer(&self.mutex)

    @property
    def on_abandoned(self):
        """Called by finalizers, in any thread: there is something to reclaim."""
        gcp_lock_outer(&self.mutex)
        found = self._on_abandoned
        gcp_unlock_outer(&self.mutex)
        return found

    @on_abandoned.setter
    def on_abandoned(self, on_abandoned):
        gcp_lock_outer(&self.mutex)
        _last, self._on_abandoned = self._on_abandoned, on_abandoned
        gcp_unlock_outer(&self.mutex)

    @property
    def limits_of(self):
        """Returns the limits that an endpoint is given; None: no endpoint has its own."""
        gcp_lock_outer(&self.mutex)
        found = self._limits_of
        gcp_unlock_outer(&self.mutex)
        return found

    @limits_of.setter
    def limits_of(self, limits_of):
        gcp_lock_outer(&self.mutex)
        _last, self._limits_of = self._limits_of, limits_of
        gcp_unlock_outer(&self.mutex)


cdef inline object tracer_of(Collaborators core):
    gcp_lock_outer(&core.mutex)
    found = core._tracer
    gcp_unlock_outer(&core.mutex)
    return found


cdef inline bint traces_hits(Collaborators core) noexcept:
    return gcp_read(&core._traces_hits)


cdef inline object collector_waker(Collaborators core):
    gcp_lock_outer(&core.mutex)
    found = core._wake_collector
    gcp_unlock_outer(&core.mutex)
    return found
