# What a pool shows of itself: its limits, its size, who holds its connections.

from gcp.core.platform cimport gcp_lock_outer, gcp_unlock_outer


cdef class PoolView:
    """The part of a pool that only looks."""
    cdef readonly Core _core
    cdef object options             # changes within the lock
    cdef readonly str name

    @property
    def _options(self):
        """The resolved options that are in force."""
        return options_of(self)

    def get_size(self):
        """Return the number of places taken: connections idle, used, being created and being disposed of."""
        return self._core.size

    @property
    def idle_timeout(self):
        """Seconds after which an idle extra is disposed of; ``inf``: never."""
        return options_of(self).idle_timeout

    @property
    def max_lifetime(self):
        """Seconds after which any connection is disposed of; ``inf``: never."""
        return options_of(self).max_lifetime

    @property
    def min_idle(self):
        """Idle connections of each endpoint that are kept."""
        return options_of(self).min_idle

    @property
    def max_size(self):
        """Connections of one endpoint, at most."""
        return options_of(self).max_size

    @property
    def total_max_size(self):
        """Connections of all endpoints together, at most."""
        return options_of(self).total_max_size

    @property
    def is_full(self):
        """Whether all places are taken."""
        cdef bint full
        gcp_lock_outer(&self._core.mutex)
        full = self._core.pool.size >= self._core.pool.total_max_size
        gcp_unlock_outer(&self._core.mutex)
        return full

    @property
    def closed(self):
        """Whether the pool was closed."""
        return bool(was_closed(self._core))

    def __repr__(self):
        idle, used, creating, _, waiting = self._core.counts()
        return (
            f'<{type(self).__name__} {self.name}: {idle} idle, {used} used, {creating} creating, {waiting} waiting'
            f'{describe_blocks(self._core)}; closed={self.closed}>'
        )


cdef inline object options_of(PoolView pool):
    gcp_lock_outer(&pool._core.mutex)
    found = pool.options
    gcp_unlock_outer(&pool._core.mutex)
    return found
