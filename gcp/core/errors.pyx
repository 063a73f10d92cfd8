# The errors of an endpoint's connects, and those that an acquire keeps as its cause. Several threads set and read them,
# within the lock; what is replaced dies outside it. Without the GIL, what is kept of an error is a copy that nobody
# raises: see `gcp.error_copies`.

from gcp.core.platform cimport gcp_lock, gcp_lock_outer, gcp_unlock, gcp_unlock_outer
from gcp.core.ring cimport ring_empty

cdef extern from *:
    """
    #ifdef Py_GIL_DISABLED
    #define GCP_COPIES_ERRORS 1
    #else
    #define GCP_COPIES_ERRORS 0
    #endif
    """
    const bint GCP_COPIES_ERRORS

cdef object copy_error = None
if GCP_COPIES_ERRORS:
    from gcp.error_copies import copy_error


cdef object kept_error(error):
    """Return what the pool keeps of an error that a hook has raised, for other threads than that of the hook."""
    return copy_error(error) if GCP_COPIES_ERRORS and error is not None else error


cdef object own_error(error, traceback):
    """Return an error to raise, of one that the pool keeps.

    :param error: None: there is none
    :param traceback: as the error left the hook: each caller sees the one from the hook to itself, not through others
    """
    if GCP_COPIES_ERRORS:
        return None if error is None else copy_error(error)
    return error if traceback is None else error.with_traceback(traceback)


cdef inline bint keeps_error(Endpoint ep) noexcept:
    """Whether the last error of an endpoint's connects may still be the reason why an acquire fails. Within the lock.
    """
    return ep.e.waiting > 0 or ep.e.creating > 0 or not ring_empty(&ep.e.in_failing)


cdef object error_of(Core core, Endpoint ep):
    """Return the last error of an endpoint's connects, for a caller, or None."""
    gcp_lock_outer(&core.mutex)
    error = ep.last_error
    gcp_unlock_outer(&core.mutex)
    return own_error(error, None)


cdef int set_error_of(Core core, Endpoint ep, error) except -1:
    """Set the last error of an endpoint's connects, with its traceback as it left the hook."""
    traceback = error.__traceback__
    gcp_lock_outer(&core.mutex)
    _error, _traceback = ep.last_error, ep.last_traceback
    ep.last_error, ep.last_traceback = error, traceback
    gcp_unlock_outer(&core.mutex)
    return 0


cdef int note_error_of(Core core, Endpoint ep, error) except -1:
    """Note the last error of an endpoint's connects, unless that tells when to connect again."""
    cdef object _error = None
    gcp_lock(&core.mutex)
    if ring_empty(&ep.e.in_failing):
        _error, ep.last_error = ep.last_error, error
    gcp_unlock(&core.mutex)
    return 0


cdef bint forget_error(Core core, Endpoint ep, bint always) except -1:
    """Forget the last error of an endpoint's connects, if it cannot be the reason any more why an acquire fails.
    Returns whether it was forgotten."""
    cdef object _error = None       # they may die, but not within the lock
    cdef object _traceback = None
    cdef bint forgotten
    gcp_lock(&core.mutex)
    forgotten = always or not keeps_error(ep)
    if forgotten:
        _error, _traceback = ep.last_error, ep.last_traceback
        ep.last_error = ep.last_traceback = None
    gcp_unlock(&core.mutex)
    return forgotten


cdef int set_trouble(Core core, Endpoint ep, error) except -1:
    """Note how the last connect of an endpoint in the background has ended."""
    gcp_lock_outer(&core.mutex)
    _last, ep.trouble = ep.trouble, error
    gcp_unlock_outer(&core.mutex)
    return 0


cdef object cause_of(Acquire acquire):
    """Return the cause of the error with which an acquire fails, or None."""
    return own_error(acquire.last_error, None)


cdef int keep_cause(Acquire acquire) except -1:
    """Keep the last error of an acquire's endpoint: it may be the reason why the acquire will fail."""
    gcp_lock_outer(&acquire.core.mutex)
    _last, acquire.cause = acquire.cause, acquire.ep.last_error
    gcp_unlock_outer(&acquire.core.mutex)
    return 0


cdef int set_cause(Acquire acquire, error) except -1:
    """Set the error of a connect that is the reason why an acquire fails. `tell_woken` does so, too."""
    gcp_lock_outer(&acquire.core.mutex)
    _last, acquire.cause = acquire.cause, error
    gcp_unlock_outer(&acquire.core.mutex)
    return 0
