# The state of a pool: slots, endpoints, waiters, and the pool itself. Plain C structs that point at each other, so that
# a transition changes them without touching a Python object. Each struct lies inside the Python object that owns it.

from cpython.object cimport PyObject
from libc.math cimport INFINITY
from libc.stdint cimport uint64_t

from gcp.core.heap cimport heap_t, place_t
from gcp.core.histogram cimport N_WAIT_BOUNDS, gcp_seconds, histogram_t, observe
from gcp.core.platform cimport GCP_APART, GCP_STRIPES
from gcp.core.ring cimport ring_t
from gcp.core.table cimport table_t

cdef enum slot_state:
    FREE, IDLE, USED, RETURNING, DISPOSING

cdef enum waiter_state:
    # from WAIT to SUSPENDED: the verdicts of an acquire. CROWDED_OUT: too many wait; HOPELESS: its time would run out;
    # REFUSED: its endpoint is being retired; SUSPENDED: its endpoint is suspended, and it is not to wait
    NEW, WAIT, CREATE, USE, TURNED_AWAY, REFUSED, UNAVAILABLE, FAILED, CROWDED_OUT, HOPELESS, SUSPENDED, DONE

cdef enum close_reason:
    IDLE_TIMEOUT, MAX_LIFETIME, DEAD, DISCARDED, EVICTED, POOL_CLOSED, HOOK_FAILED, EXPIRED, MAX_USES, RETIRED,
    N_REASONS

cdef enum acquire_result:
    HIT, CREATED, WAITED, TIMED_OUT, CANCELLED, ERROR, REJECTED, N_RESULTS

cdef enum suspend_mode:
    OPEN, ACQUIRES_WAIT, ACQUIRES_FAIL      # the larger one counts where an endpoint and its pool are both suspended

cdef enum release_outcome:
    # TO_IDLE comes last, so that its counter lies beside that of HIT: an idle hit uses both
    HANDOFF, TO_DISPOSAL, TO_IDLE, N_OUTCOMES

# The hooks of a manager, and the outcomes of a call.
cdef enum hook_kind:
    HOOK_CREATE, HOOK_DISPOSE, HOOK_CHECK, HOOK_ON_ACQUIRE, HOOK_ON_RELEASE, HOOK_ON_DEAD, HOOK_KEEPALIVE, N_HOOKS

cdef enum hook_outcome:
    CALL_OK, CALL_ERROR, CALL_TIMEOUT, CALL_CANCELLED, CALL_DEAD, N_HOOK_OUTCOMES

cdef enum event_kind:        # what listeners are told of
    CONNECTION_CREATED, CONNECTION_CLOSED, CONNECTION_ACQUIRED, CONNECTION_RELEASED, ACQUIRE_TIMED_OUT, BREAKER_CHANGED,
    CONNECTION_LEAKED

ctypedef unsigned char flag_t


# --- what is counted ---

cdef struct counters_t:      # of an endpoint
    uint64_t releases[<int>N_OUTCOMES]
    uint64_t acquires[<int>N_RESULTS]
    uint64_t created
    uint64_t closed[<int>N_REASONS]
    uint64_t leaks
    uint64_t connect_failures[2]     # connects that failed: whose error may go away by itself, and permanent ones


cdef struct metrics_t:       # of a pool
    histogram_t use          # only in what is read of a pool: uses are counted in its stripes
    histogram_t wait         # without hits: these did not wait
    histogram_t age
    histogram_t hook_time[<int>N_HOOKS]
    histogram_t failed_hook_time[<int>N_HOOKS]
    uint64_t hook_calls[<int>N_HOOKS][<int>N_HOOK_OUTCOMES]
    uint64_t limits_errors   # how often the limits of an endpoint could not be determined
    uint64_t abandoned_leases    # leases that were garbage-collected before they were released
    uint64_t reclaim_runs        # how often the garbage collector was run for holders that are gone
    uint64_t listener_errors, listener_events_dropped     # calls that have raised; events that found no room


cdef inline void count_hook_call(metrics_t* metrics, int hook, int outcome, double seconds) noexcept nogil:
    metrics.hook_calls[hook][outcome] += 1
    if outcome == CALL_OK or outcome == CALL_DEAD:
        observe(&metrics.hook_time[hook], gcp_seconds, N_WAIT_BOUNDS, seconds)
    else:
        observe(&metrics.failed_hook_time[hook], gcp_seconds, N_WAIT_BOUNDS, seconds)


# --- what there is ---

cdef struct endpoint_t
cdef struct waiter_t
cdef struct slot_t
cdef struct pool_t

# Returns why a connection is not used again. Called by its address, so that no compiler makes it part of the release.
ctypedef int (*screen_t)(pool_t* pool, slot_t* s, double now, bint acquired) noexcept nogil

ctypedef void (*note_t)(pool_t* pool, int kind, PyObject* about, int detail) noexcept nogil     # queues an event

cdef struct event_t:         # what listeners are to be told
    int kind, detail         # the detail: of CONNECTION_CLOSED the reason, of BREAKER_CHANGED whether it has opened
    PyObject* about          # owned: the endpoint's key; of CONNECTION_LEAKED the holder

cdef struct limits_t:        # what an endpoint was given; negative: nothing
    Py_ssize_t max_size
    Py_ssize_t min_idle
    double idle_timeout
    double max_lifetime
    Py_ssize_t max_waiting
    double weight
    Py_ssize_t floor, reserve

# What an idle hit touches comes first in a slot and in an endpoint, and takes two cache lines of 64 bytes in each. The
# first line also holds the header of the Python object, 16 bytes.

cdef struct slot_t:          # one connection
    PyObject* conn           # owned by the Slot; identifies this record in the tables
    ring_t in_endpoint       # in a ring of its endpoint: base, extras, used or disposals
    ring_t in_pool           # in a ring of the pool: idle_bases, idle_extras or victims
    endpoint_t* ep
    double since             # when it entered its state
    double expires
    uint64_t lease           # a new number for each use; a release with another number does nothing
    unsigned char state
    unsigned char reason
    flag_t extra
    flag_t acquired          # its acquire has succeeded, so that its release will be counted
    flag_t leaked            # held for longer than leak_after, and counted as a leak
    flag_t started           # abandoned after its dispose was called
    flag_t stale             # opened before its endpoint's connections were expired; part of `endpoint_t.stale`
    uint64_t uses            # how often it was released after a use
    uint64_t preferred       # the number of its use for an acquire with a priority, see `reserve`; 0 after that
    flag_t fresh             # created in the background for the acquire that gets it now
    flag_t retired           # opened before its endpoint was retired
    flag_t forced            # taken from its holder by a retirement
    double born
    double luck              # which part of `jitter` its lifetime is shortened by
    double checked           # when it was found alive in the background
    ring_t reservation       # in the pool's ring of victims whose place is reserved
    endpoint_t* reserved_for      # the endpoint that may create a connection when this victim is gone
    place_t due              # its place in the heap of lifetimes
    place_t check            # its place in the heap of checks in the background
    double check_at          # when to look whether it is to be checked: not after that time
    double patience          # seconds without a use after which it is checked
    double idle_since        # while it is checked: since when it was idle before
    slot_t* next_abandoned
    uint64_t abandoned_lease
    flag_t in_abandoned      # in the pool's list of abandoned slots, which owns a reference


cdef struct endpoint_t:
    PyObject* key            # owned by the Endpoint; identifies this record in the tables
    ring_t base              # idle; the longest idle is acquired first
    ring_t used              # in the order of acquire
    int n_base
    int n_extra
    int n_used
    int waiting
    Py_ssize_t min_idle      # its limits: its own, else the pool's; see `set_limits`, and the accessors below
    double idle_timeout
    counters_t counters
    ring_t extras            # idle; the most recently released is acquired first
    ring_t disposals         # victims until they are gone
    ring_t queue             # the wait queue, the oldest waiter first
    ring_t link              # in the pool's ring of endpoints
    uint64_t listing         # the number under which it was listed there: they ascend in that ring
    int creating, disposing
    int reserved             # permits reserved for this endpoint, to be granted when victims of others are gone
    int abandoned_permits    # permits of acquires that were dropped; part of `creating` until they are reclaimed
    place_t rank             # its place in the heap of blocked endpoints
    place_t expiring         # its place in the heap of endpoints with extras
    double extras_due        # no extra expires before
    Py_ssize_t max_size
    double max_lifetime
    Py_ssize_t max_waiting
    double weight
    Py_ssize_t floor
    Py_ssize_t reserve       # places that are only for acquires with a priority, see `reserve`
    int n_preferred          # connections that those hold, of an endpoint with such places
    int preferred_permits    # part of `creating` that they have
    int preferring           # how many of them wait
    double virtual           # what it has had of the total cap: see `sharing`. 0 where no endpoint has weight or floor
    double settled           # when that was so
    Py_ssize_t places        # what it has had since
    limits_t own             # what it was given
    limits_t next_own        # what it is given by limits that are not in force yet
    uint64_t asked           # the number under which it was asked for them
    Py_ssize_t changing      # how many idle connections become base, or extras: see `sort_idle`
    # what is done for it in the background
    int jobs                 # connects in the background, begun or not; part of `creating`
    int unbegun              # those that no worker has begun
    int wanted               # connections that a warm-up is to bring it to
    int abandoned_jobs, abandoned_preferred     # parts of `abandoned_permits`
    int checking             # connections that are being checked; part of `n_used`, shown as idle
    ring_t in_unbegun        # in the pool's ring of endpoints that have unbegun connects
    ring_t in_short          # in the pool's ring of endpoints that may have too few connections
    double refill_at         # no refill begins before, after one that failed
    double refilled_at       # when the last refill failed
    int refill_steps         # how many have failed, one after the other
    flag_t kept              # it was warmed up: it is to have `min_idle` connections
    flag_t retiring          # it takes no new acquires
    double create_time       # smoothed, seconds; 0 before the first
    double use_time          # smoothed, seconds; 0 before the first. Only known where it is asked for, see `screen`
    # connects that have failed since the last one that succeeded: see `may_connect`
    int failures
    flag_t delayed           # its connects are made one at a time, the next one not before `retry_at`
    flag_t broken            # acquires that find no idle connection fail at once, except one that probes
    double failed_at
    double retry_at
    double retry_since       # when the delay began
    double retry_luck        # which part of the jitter is taken off
    int retry_steps          # how many delays there were; 0 before the first failure
    flag_t permanent         # one of those errors is not worth another try: broken whatever the threshold is
    ring_t in_failing        # in the pool's ring of failing endpoints
    waiter_t* timekeeper     # the waiter that looks again at `retry_at`
    endpoint_t* next_called
    flag_t in_called         # in the pool's list of endpoints whose timekeeper is to be woken
    # connects that were permitted before the latest of so many `expire` count as begun before it
    uint64_t expiries
    Py_ssize_t stale         # connections opened before they were expired, and connects in progress that began before
    Py_ssize_t stale_connects
    int suspended            # by itself, see `suspension`: OPEN, ACQUIRES_WAIT, ACQUIRES_FAIL
    endpoint_t* next_empty
    flag_t over              # it has held more than its cap since that was lowered
    flag_t in_empties        # in the pool's list of empty endpoints
    flag_t listed            # in the pool's ring of endpoints, which owns a reference then
    flag_t shown             # listed, and not suspended: idle hits see it
    flag_t dropped           # it was listed, and is not any more: it is not listed again


cdef struct waiter_t:
    ring_t node              # in the wait queue of its endpoint, or in the pool's ring of the woken
    endpoint_t* ep
    uint64_t seq             # its age: smaller is older
    int priority             # higher is served first, of waiters of the same endpoint
    PyObject* self           # the Acquire; the core owns a reference while it is queued or woken
    waiter_t* next_abandoned
    slot_t* slot
    double began             # when its acquire was called
    double deadline          # when it gives up; inf: never
    double expected          # how long its wait was expected to take, if that is too long
    int ahead                # how many were in the wait queue before it
    uint64_t lease
    int state
    bint queued              # it has been in the wait queue
    bint admitted            # it may wait, however many do: it does not wait for others, or was served before
    bint fresh               # its connection was used or checked lately, and needs no check
    bint creates, borrows    # it creates its connection by itself; it has waited for long enough to borrow a place
    uint64_t expiries        # those of its endpoint when it was permitted to create a connection


# A part of the endpoints, with what an idle hit changes beside its endpoint and its slot. With the GIL there is one; a
# free-threaded build has several, each with its own lock (see platform), so that hits of different endpoints do not
# wait for each other.
cdef struct stripe_t:
    ring_t idle_bases        # idle connections, the longest idle first: of the base, and the others
    ring_t idle_extras
    Py_ssize_t idle
    Py_ssize_t used
    uint64_t leases
    table_t held             # used slots by their connection
    table_t inherited        # in a forked child: slots that its parent uses
    histogram_t use          # how long connections were used
    char apart[<int>GCP_APART]


cdef struct pool_t:
    # limits
    Py_ssize_t max_size
    Py_ssize_t total_max_size, min_idle
    double idle_timeout, max_lifetime, jitter
    double leak_after        # seconds after which a use counts as a leak; inf: none does
    double leaks_at          # before that, none has become a leak that was not counted
    Py_ssize_t max_uses              # 0: no limit
    Py_ssize_t max_connecting, max_connecting_total     # connects at a time: of one endpoint, of all
    Py_ssize_t max_waiting
    Py_ssize_t breaker_threshold     # failed connects in a row; 0: no breaker, unless an error is permanent
    Py_ssize_t connect_workers       # 0: callers create connections
    double keepalive_interval        # inf: never
    double check_interval            # 0: idle connections are checked at each acquire
    double connect_timeout           # inf: no limit but the acquire's
    double retry_initial             # delays between the connects of an endpoint that fail, see gcp.limits.Retry
    double retry_maximum, retry_factor, retry_jitter
    Py_ssize_t reserve               # see `reserve`
    double reserve_timeout           # inf: never
    flag_t retries                   # a failed connect is tried again for its acquire
    flag_t admits_by_deadline
    flag_t refills
    flag_t skips_checks              # whether there is a check_interval
    # where connections are
    char apart[<int>GCP_APART]
    stripe_t stripes[<int>GCP_STRIPES]     # idle and used ones
    Py_ssize_t creating
    Py_ssize_t disposing
    Py_ssize_t waiting
    Py_ssize_t size          # idle and used ones, and those that are being created or disposed of
    ring_t victims           # to be disposed of, not yet taken for it
    ring_t reserving         # victims whose place is reserved, the oldest first
    Py_ssize_t reserved      # how many those are
    ring_t failing           # endpoints whose failures are remembered, the longest failing first
    ring_t unbegun           # endpoints with connects that a worker is to begin
    ring_t short             # endpoints that may have too few connections
    Py_ssize_t jobs          # connects in the background
    Py_ssize_t checking      # checks in the background; part of `used`, shown as idle
    flag_t unchecked         # the manager has no hook to check idle connections with
    flag_t sharing           # an endpoint has, or had, a weight or a floor
    flag_t reserves          # an endpoint has, or had, a reserve
    double virtual           # the greatest virtual time that was served, see `sharing`
    waiter_t* lingerer       # the waiter that looks again when an idle connection lingers no more
    int suspended            # as a whole, see `suspension`
    Py_ssize_t hidden        # endpoints that idle hits do not see, because they are suspended
    Py_ssize_t drains        # callers that wait until suspended endpoints hold no connection
    Py_ssize_t stale         # as for its endpoints, in all
    heap_t checks            # connections by the time of their next check: see `first_check`
    double check_time        # of one check in the background, smoothed, seconds; 0 before the first
    double check_began       # when the last one did
    double checks_planned    # when it was last found out whether many checks have to begin early: see `plan_checks`
    double checks_early      # when so many of them are to begin
    Py_ssize_t checks_ahead
    flag_t checks_go_on      # checks have begun: all that are due are made
    double worker_wakes_at   # when a worker that rests looks for checks; inf: none does
    ring_t endpoints
    Py_ssize_t n_endpoints
    uint64_t listings        # how often an endpoint was listed
    heap_t due               # connections, the first to expire first: see `first_due`
    heap_t blocked           # endpoints whose waiters only the total cap holds back: see `neediest`
    heap_t expiring          # endpoints that have or had extras, by a time before which none expires
    table_t known            # endpoints by their key, except those that are suspended: idle hits look here
    table_t members          # idle and used slots by their connection
    double now               # the time of the transition in progress
    double next_expiry       # no idle connection expires before
    # what a transition leaves to its caller
    ring_t woken             # waiters whose event is to be set, in the order in which they were woken
    endpoint_t* empties
    endpoint_t* called       # their timekeepers are to look how long they have to wait now
    int wake_collector       # something expires before the collector wakes; WAKE_LISTENERS: or there are but events
    bint wake_background     # there may be something to do in the background, or something there has ended
    # left by finalizers, reclaimed by the next call
    bint pending             # there may be something; looked at without a lock
    slot_t* abandoned_slots
    waiter_t* abandoned_waiters
    bint abandoned_permits
    # counters
    uint64_t arrivals
    uint64_t epoch           # grows in a forked child
    uint64_t random
    double create_time
    double collector_wakes_at     # -inf without a collector
    bint closed
    note_t note              # queues an event; NULL: there are no listeners
    event_t* events          # queued for them
    int n_events
    unsigned int wanted      # which kinds they are told of, a bit each
    screen_t screen          # asked about a connection that is released: see `update_screening`; NULL: it may be used
    bint over                # it has held more than the total cap since that was lowered
    Py_ssize_t n_over        # endpoints that have held more than their cap since that was lowered
    counters_t retired       # of endpoints that are gone
    metrics_t metrics


# --- the limits of an endpoint ---

cdef inline Py_ssize_t cap(endpoint_t* ep) noexcept nogil:
    """Return how many places an endpoint may take."""
    return ep.max_size


cdef inline Py_ssize_t base_size(endpoint_t* ep) noexcept nogil:
    """Return how many idle connections an endpoint keeps for their whole life."""
    return ep.min_idle


cdef inline double idle_limit(endpoint_t* ep) noexcept nogil:
    """Return for how long an extra of an endpoint may be idle, seconds."""
    return ep.idle_timeout


cdef inline double lifetime(endpoint_t* ep) noexcept nogil:
    """Return how old a connection of an endpoint may become, seconds."""
    return ep.max_lifetime


cdef inline Py_ssize_t queue_limit(endpoint_t* ep) noexcept nogil:
    """Return how many acquires of an endpoint may wait."""
    return ep.max_waiting


# --- suspension ---

cdef inline int suspension(pool_t* pool, endpoint_t* ep) noexcept nogil:
    """Return how an endpoint is suspended, by itself or with its pool; OPEN: it is not."""
    return max(pool.suspended, ep.suspended)


# --- how many places are taken ---

cdef inline Py_ssize_t held(endpoint_t* ep) noexcept nogil:
    """Return how many connections an endpoint has or is creating."""
    return ep.n_base + ep.n_extra + ep.n_used + ep.creating


cdef inline Py_ssize_t taken(endpoint_t* ep) noexcept nogil:
    """Return how many places count against an endpoint's cap."""
    return held(ep) + ep.disposing + ep.reserved


# --- from a ring's node, or a heap's place, to the struct that it lies in ---

cdef inline slot_t* slot_in_endpoint(ring_t* node) noexcept nogil:
    cdef slot_t* any = <slot_t*>node        # no slot: it only serves to measure where in a slot the node lies
    return <slot_t*>(<char*>node - (<char*>&any.in_endpoint - <char*>any))


cdef inline slot_t* slot_in_pool(ring_t* node) noexcept nogil:
    cdef slot_t* any = <slot_t*>node
    return <slot_t*>(<char*>node - (<char*>&any.in_pool - <char*>any))


cdef inline slot_t* slot_reservation(ring_t* node) noexcept nogil:
    cdef slot_t* any = <slot_t*>node
    return <slot_t*>(<char*>node - (<char*>&any.reservation - <char*>any))


cdef inline slot_t* slot_due(place_t* place) noexcept nogil:
    cdef slot_t* any = <slot_t*>place
    return <slot_t*>(<char*>place - (<char*>&any.due - <char*>any))


cdef inline endpoint_t* endpoint_link(ring_t* node) noexcept nogil:
    cdef endpoint_t* any = <endpoint_t*>node
    return <endpoint_t*>(<char*>node - (<char*>&any.link - <char*>any))


cdef inline endpoint_t* endpoint_rank(place_t* place) noexcept nogil:
    cdef endpoint_t* any = <endpoint_t*>place
    return <endpoint_t*>(<char*>place - (<char*>&any.rank - <char*>any))


cdef inline endpoint_t* endpoint_expiring(place_t* place) noexcept nogil:
    cdef endpoint_t* any = <endpoint_t*>place
    return <endpoint_t*>(<char*>place - (<char*>&any.expiring - <char*>any))


cdef inline endpoint_t* endpoint_failing(ring_t* node) noexcept nogil:
    cdef endpoint_t* any = <endpoint_t*>node
    return <endpoint_t*>(<char*>node - (<char*>&any.in_failing - <char*>any))


cdef inline endpoint_t* endpoint_unbegun(ring_t* node) noexcept nogil:
    cdef endpoint_t* any = <endpoint_t*>node
    return <endpoint_t*>(<char*>node - (<char*>&any.in_unbegun - <char*>any))


cdef inline endpoint_t* endpoint_short(ring_t* node) noexcept nogil:
    cdef endpoint_t* any = <endpoint_t*>node
    return <endpoint_t*>(<char*>node - (<char*>&any.in_short - <char*>any))


cdef inline slot_t* slot_check(place_t* place) noexcept nogil:
    cdef slot_t* any = <slot_t*>place
    return <slot_t*>(<char*>place - (<char*>&any.check - <char*>any))


cdef inline waiter_t* waiter_node(ring_t* node) noexcept nogil:
    cdef waiter_t* any = <waiter_t*>node
    return <waiter_t*>(<char*>node - (<char*>&any.node - <char*>any))


# --- the first of each ---

cdef inline waiter_t* first_waiter(endpoint_t* ep) noexcept nogil:
    """Return the waiter that is served next, of an endpoint that has one."""
    return waiter_node(ep.queue.next)


cdef inline slot_t* first_due(pool_t* pool) noexcept nogil:
    """Return the connection that reaches the end of its life first, or NULL."""
    return slot_due(pool.due.items[0]) if pool.due.n else NULL


cdef inline slot_t* first_check(pool_t* pool) noexcept nogil:
    """Return the connection whose check comes first, as far as that is known, or NULL."""
    return slot_check(pool.checks.items[0]) if pool.checks.n else NULL


cdef inline endpoint_t* neediest(pool_t* pool) noexcept nogil:
    """Return the blocked endpoint that is to be served first, or NULL."""
    return endpoint_rank(pool.blocked.items[0]) if pool.blocked.n else NULL


# --- the Python object that a slot or an endpoint lies in: they are its first members ---

cdef inline PyObject* slot_object(slot_t* s) noexcept nogil:
    return <PyObject*>(<char*>s - sizeof(PyObject))


cdef inline PyObject* endpoint_object(endpoint_t* e) noexcept nogil:
    return <PyObject*>(<char*>e - sizeof(PyObject))
