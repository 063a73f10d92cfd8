# What a pool shows of itself: its limits, its size, who holds its connections.

from gcp.core.state cimport pool_t


cdef class PoolView:
    """The part of a pool that only looks."""
    cdef readonly Core _core
    cdef readonly object _options
    cdef readonly str name

    def get_size(self):
        """Return the number of places taken: connections idle, used, being created and being disposed of."""
        return self._core.pool.size

    @property
    def idle_timeout(self):
        """Seconds after which an idle extra is disposed of; ``inf``: never."""
        return self._options.idle_timeout

    @property
    def max_lifetime(self):
        """Seconds after which any connection is disposed of; ``inf``: never."""
        return self._options.max_lifetime

    @property
    def min_idle(self):
        """Idle connections of each endpoint that are kept."""
        return self._options.min_idle

    @property
    def max_size(self):
        """Connections of one endpoint, at most."""
        return self._options.max_size

    @property
    def total_max_size(self):
        """Connections of all endpoints together, at most."""
        return self._options.total_max_size

    @property
    def is_full(self):
        """Whether all places are taken."""
        return self._core.pool.size >= self._core.pool.total_max_size

    @property
    def closed(self):
        """Whether the pool was closed."""
        return bool(self._core.pool.closed)

    def __repr__(self):
        cdef pool_t* pool = &self._core.pool
        return (
            f'<{type(self).__name__} {self.name}: {pool.idle + pool.checking} idle, {pool.used - pool.checking} used, '
            f'{pool.creating} creating, {pool.waiting} waiting{describe_blocks(self._core)}; '
            f'closed={bool(pool.closed)}>'
        )
