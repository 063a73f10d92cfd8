# cython: language_level=3
"""The compiled core of gcp: the state of a pool, its transitions, the machines of acquire and release, and the compiled
halves of the two pools. The contents, in the order in which to read them:

layers                 plain C, a module each, which cimports only those before it: platform, frames, clock, ring, heap,
                       table, histogram, state, stripes, permits, sharing, screening, scheduling, connects,
                       transitions, closing, checks, jobs, steering, resizing
records                the objects that own slots and endpoints
event                  what a thread waits on
arguments              what callers pass in: checked, and shown in messages
hook_call              one call of a manager's hook: timed, counted, traced
snapshot               what a pool has counted, as plain values
fork, finalizers       what a forked child forgets, what finalizers leave behind
limits                 the pool's limits, and those of single endpoints
registry               endpoints by their key
collaborators          what a core calls: set by the front and the telemetry
core                   the state of one pool behind its lock
looks                  what is looked at outside a transition
by_label               the counts of endpoints by label, for exporters
holder                 what holds a connection
uses                   who holds it: where it was acquired, and since when
delivery               what the caller of an acquire gets of its slot
acquire, request       the machine of an acquire, and what it asks of the core
errors                 those of the connects of an endpoint
connecting             what follows from a connect that failed
blocks                 what holds an acquire up, and the errors that say so
inspection             what is to be seen of a pool while it works
release                the machine of a release
background             jobs: what is done for no caller, one at a time
watch                  what a caller waits for meanwhile
disposal, worker_pool  victims, and the workers that dispose of them
pool_view              what a pool shows of itself
events                 what listeners are told of
base_pool              what both pools share: the idle hit
reconfigure            changing limits while a pool is in use
steering               expiring, suspending and resuming endpoints in use
fastcall               faster ways through the interpreter for leases
sync_pool              the compiled half of the threading pool
async_pool, async_lease  ... of the asyncio pool, and the awaitable that it returns
lease_memory           how leases are freed, and used again
descriptors            what the managers of gcp.contrib do with descriptors
"""

import os
from _socket import socket     # the base of socket.socket, which takes long to import
from contextvars import Context, copy_context
from functools import partial
from operator import itemgetter
from types import AsyncGeneratorType, BuiltinFunctionType, CoroutineType, GenericAlias

cimport cython
from cpython.exc cimport (
    PyErr_CheckSignals,
    PyErr_Clear,
    PyErr_ExceptionMatches,
    PyErr_Occurred,
    PyErr_SetFromErrno,
)
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF
from libc.math cimport INFINITY
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memset

cdef extern from *:
    """
    /* Cython adds a frame to a traceback for each function that an error leaves. Here it adds none where the outermost
       one is of the pool already: an error shows where it happened, and not the way through the core. */
    #if PY_VERSION_HEX < 0x030B0000
    #include "frameobject.h"
    #endif
    static int gcp_is_ours(PyObject *traceback) {
        PyFrameObject *frame = ((PyTracebackObject *)traceback)->tb_frame;
    #if PY_VERSION_HEX >= 0x030B0000
        PyObject *names = PyFrame_GetGlobals(frame);
    #else
        PyObject *names = Py_NewRef(frame->f_globals);
    #endif
        PyObject *module = PyDict_GetItemString(names, "__name__");     /* borrowed */
        const char *name = module != NULL && PyUnicode_Check(module) ? PyUnicode_AsUTF8(module) : NULL;
        int ours = name != NULL && (
            !strcmp(name, "gcp._core") || !strcmp(name, "gcp.threading") || !strcmp(name, "gcp.asyncio")
            || !strncmp(name, "gcp.disposal", 12));
        PyErr_Clear();
        Py_DECREF(names);
        return ours;
    }
    static int gcp_add_frame(PyFrameObject *frame) {
        PyObject *kind, *error, *traceback;
        int ours;
        PyErr_Fetch(&kind, &error, &traceback);
        ours = traceback != NULL && PyTraceBack_Check(traceback) && gcp_is_ours(traceback);
        PyErr_Restore(kind, error, traceback);
        return ours ? 0 : PyTraceBack_Here(frame);
    }
    #define PyTraceBack_Here(frame) gcp_add_frame(frame)
    """

from gcp.core.clock cimport gcp_clock_init
from gcp.core.state cimport HOOK_DISPOSE

from gcp.exceptions import (
    AcquireTimeoutError, ConnectionNotAcquiredError, ConnectionPoolClosedError, ConnectionPoolNotFound,
    DiscardConnection, EndpointRetiredError, EndpointUnavailableError, ErrorClass, HookTimeoutError, PoolNotReadyError,
    PoolSuspendedError, TooManyWaitersError, describe_error,
)

gcp_clock_init()

include "core/records.pyx"
include "core/event.pyx"
include "core/arguments.pyx"
include "core/hook_call.pyx"
include "core/leaks.pyx"
include "core/snapshot.pyx"
include "core/fork.pyx"
include "core/finalizers.pyx"
include "core/limits.pyx"
include "core/registry.pyx"
include "core/collaborators.pyx"
include "core/core.pyx"
include "core/looks.pyx"
include "core/by_label.pyx"
include "core/holder.pyx"
include "core/uses.pyx"
include "core/delivery.pyx"
include "core/acquire.pyx"
include "core/errors.pyx"
include "core/request.pyx"
include "core/connecting.pyx"
include "core/blocks.pyx"
include "core/inspection.pyx"
include "core/release.pyx"
include "core/background.pyx"
include "core/watch.pyx"
include "core/disposal.pyx"
include "core/worker_pool.pyx"
include "core/pool_view.pyx"
include "core/events.pyx"
include "core/base_pool.pyx"
include "core/reconfigure.pyx"
include "core/steering.pyx"
include "core/fastcall.pyx"
include "core/sync_pool.pyx"
include "core/async_pool.pyx"
include "core/async_lease.pyx"
include "core/lease_memory.pyx"
include "core/descriptors.pyx"

# What `next` of a machine returns, for the drivers: a hook by its number, or one of these.
TODO_DISPOSE = <int>HOOK_DISPOSE
TODO_WAIT = <int>DO_WAIT
TODO_DONE = <int>DO_DONE
DISPOSE_GRACE = GRACE
