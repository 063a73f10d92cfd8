# cython: language_level=3, freethreading_compatible=True
"""The compiled core of gcp: pool state and its steps, and the compiled halves of the two fronts.

Pool state decides; it never waits, never calls a manager. Read it in this order:

platform    mutex, random bits
clock       what time it is
containers  rings, heaps, the table of held connections
metrics     histograms and the counters of the manager's steps
state       slot, endpoint, waiter, pool: what there is
steps       what happens: one short atomic transition each, no Python inside
event       what a thread sleeps on
core        the steps behind a lock; user keys looked up outside it
checkouts   handles on what the core lends
lifecycle   one call of a manager's hook: counted and timed
pools       the compiled half of both fronts
shortcuts   ... past the interpreter
threads     ... of the threading pool
tasks       ... of the asyncio pool
awaiting    ... and what it returns
"""

import os
from collections import deque
from types import CoroutineType, GenericAlias

cimport cython
from cpython.exc cimport PyErr_CheckSignals, PyErr_Clear, PyErr_ExceptionMatches, PyErr_Occurred
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.math cimport INFINITY
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memset

from gcp.exceptions import AcquireTimeoutError, ConnectionNotAcquiredError, ConnectionPoolClosedError

include "core/platform.pxi"
include "core/clock.pxi"
include "core/containers.pxi"
include "core/metrics.pxi"
include "core/state.pxi"
include "core/steps.pxi"
include "core/event.pxi"
include "core/core.pxi"
include "core/checkouts.pxi"
include "core/lifecycle.pxi"
include "core/disposal.pxi"
include "core/pools.pxi"
include "core/shortcuts.pxi"
include "core/threads.pxi"
include "core/tasks.pxi"
include "core/awaiting.pxi"

# The verdicts, for the Python halves.
VERDICT_WAIT = <int>WAIT
VERDICT_CREATE = <int>CREATE
VERDICT_USE = <int>USE
VERDICT_SHUT = <int>TURNED_AWAY
