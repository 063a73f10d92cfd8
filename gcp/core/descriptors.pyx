# What the managers of gcp.contrib do with a descriptor of which they know nothing but the number. Python has functions
# for sockets only, and to make a socket of a descriptor takes a duplicate of it: there is none left when a process has
# reached its limit, just when connections must be aborted.

cdef extern from *:
    """
    #ifdef _WIN32
    #include <errno.h>
    static int gcp_poll(int fd, int events) { errno = ENOSYS; return -1; }
    static int gcp_shut_down(int fd, int receiving_only) { errno = ENOSYS; return -1; }
    static Py_ssize_t gcp_peek(int fd, void *data, size_t size) { errno = ENOSYS; return -1; }
    static int gcp_get_option(int fd, int level, int name, int *value) { errno = ENOSYS; return -1; }
    static int gcp_set_option(int fd, int level, int name, int value) { errno = ENOSYS; return -1; }
    #else
    #include <errno.h>
    #include <poll.h>
    #include <sys/socket.h>

    static int gcp_poll(int fd, int events) {
        struct pollfd looked_at = {fd, (short)events, 0};
        while (poll(&looked_at, 1, 0) < 0)
            if (errno != EINTR)
                return -1;
        return looked_at.revents;
    }

    static int gcp_shut_down(int fd, int receiving_only) {
        return shutdown(fd, receiving_only ? SHUT_RD : SHUT_RDWR);
    }

    static Py_ssize_t gcp_peek(int fd, void *data, size_t size) {
        Py_ssize_t got;
        do {
            got = recv(fd, data, size, MSG_PEEK | MSG_DONTWAIT);
        } while (got < 0 && errno == EINTR);
        return got;
    }

    static int gcp_get_option(int fd, int level, int name, int *value) {
        socklen_t size = sizeof(*value);
        return getsockopt(fd, level, name, value, &size);
    }

    static int gcp_set_option(int fd, int level, int name, int value) {
        return setsockopt(fd, level, name, &value, sizeof(value));
    }
    #endif
    """
    int gcp_poll(int, int) noexcept nogil
    int gcp_shut_down(int, int) noexcept nogil
    Py_ssize_t gcp_peek(int, void*, size_t) noexcept nogil
    int gcp_get_option(int, int, int, int*) noexcept nogil
    int gcp_set_option(int, int, int, int) noexcept nogil


cdef int check_descriptor(int fd) except -1:
    if fd < 0:
        raise ValueError('file descriptor cannot be a negative integer (%d)' % fd)
    return 0


def poll_now(int fd, int events):
    """Return which events a descriptor reports at this moment, an error and a hang-up included. Does not wait.

    :param fd: the descriptor
    :param events: the events to look for, as for poll(2)
    :raises ValueError: when the descriptor is negative, as that of a closed socket
    """
    cdef int found
    check_descriptor(fd)
    found = gcp_poll(fd, events)
    if found < 0:
        PyErr_SetFromErrno(OSError)
    return found


def shut_down(int fd, bint receiving_only=False):
    """Shut a connection down, so that every thread that waits on it returns at once. The descriptor stays open; its
    owner closes it. Returns whether that was possible.

    :param fd: the descriptor; what is not a connected socket (any more) is left alone
    :param receiving_only: whether it may still send
    """
    return gcp_shut_down(fd, receiving_only) == 0


def peek(int fd, Py_ssize_t size=1):
    """Return the next bytes without consuming them; empty at EOF. Does not wait.

    :param fd: the descriptor
    :param size: how many bytes at most
    :raises BlockingIOError: when there is nothing to read
    :raises OSError: when the connection has failed, or it is not a socket
    """
    cdef bytearray data = bytearray(size)
    cdef char* start = data
    cdef Py_ssize_t got = gcp_peek(fd, start, size)
    if got < 0:
        PyErr_SetFromErrno(OSError)
    return bytes(data[:got])


def get_option(int fd, int level, int name):
    """Return an option of a socket that is an integer.

    :param fd: the descriptor
    :param level: as for getsockopt(2)
    :param name: likewise
    :raises OSError: when it has no such option, or is not a socket
    """
    cdef int value = 0
    if gcp_get_option(fd, level, name, &value) < 0:
        PyErr_SetFromErrno(OSError)
    return value


def set_option(int fd, int level, int name, int value):
    """Set an option of a socket that is an integer.

    :param fd: the descriptor
    :param level: as for setsockopt(2)
    :param name: likewise
    :param value: its value
    :raises OSError: when it has no such option, or is not a socket
    """
    if gcp_set_option(fd, level, name, value) < 0:
        PyErr_SetFromErrno(OSError)
