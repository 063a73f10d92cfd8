# What callers pass in: checked, and shown in messages.

def describe(endpoint):
    """Show an endpoint in a message: what can be recognised, but nothing that may carry credentials (a URL, a DSN)."""
    if isinstance(endpoint, (int, float)) or endpoint is None:
        return repr(endpoint)
    if isinstance(endpoint, str):
        return repr(endpoint) if len(endpoint) <= 80 and not set('@=?') & set(endpoint) else '<a string>'
    if isinstance(endpoint, (tuple, list)) and len(endpoint) <= 4:
        inner = ', '.join([describe(part) for part in endpoint])
        return f'({inner})' if isinstance(endpoint, tuple) else f'[{inner}]'
    if type(endpoint).__module__ in ('ipaddress', 'pathlib', 'pathlib._local'):
        return repr(str(endpoint))
    return f'<{type(endpoint).__name__}>'


def check_timeout(timeout, str name='timeout'):
    """Check a time-out given by a caller: seconds as a float, or None."""
    cdef double seconds
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        try:
            if isinstance(timeout, (bool, str, bytes)):
                raise TypeError
            seconds = timeout
        except TypeError:
            raise TypeError(
                f'{name} must be a number of seconds or None, not {type(timeout).__name__}: {timeout!r}') from None
    else:
        seconds = timeout
    if seconds != seconds:
        raise ValueError(f'{name} must be a number of seconds or None, not NaN')
    return seconds


cdef int check_priority(priority) except? -1:
    """Check the priority of an acquire."""
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise TypeError(f'priority must be a whole number, not {type(priority).__name__}: {priority!r}')
    if not -1000000 <= priority <= 1000000:
        raise ValueError(f'priority must be from -1000000 to 1000000, not {priority}')
    return priority


cdef int check_hashable(endpoint) except -1:
    try:
        hash(endpoint)
    except TypeError as error:
        raise TypeError(f'endpoint must be hashable, not {type(endpoint).__name__}: {describe(endpoint)}') from error
    return 0


def chain(body, error):
    """Append an error to the context of the one that is raised, so that neither hides the other."""
    link = error
    while link.__context__ is not None and link.__context__ is not body:
        link = link.__context__
    link.__context__ = None     # the interpreter has set it to the body's error: left so, the chain would be a ring
    link = body
    while link.__context__ is not None:
        if link.__context__ is error:
            return
        link = link.__context__
    link.__context__ = error
