# The workers of a pool: threads or tasks that dispose of victims in the background.

from gcp.core.clock cimport gcp_monotonic
from gcp.core.platform cimport gcp_lock_outer, gcp_read, gcp_unlock_outer


@cython.final
cdef class WorkerPool:
    """The workers of a pool, and the batches that wait for them.

    :param clock: returns seconds; for tests. ``None``: the monotonic clock
    :param make_event: makes what a thread waits on until a batch is gone
    """
    cdef Core core
    cdef object clock
    cdef object make_event
    # They change within the core's lock; what leaves them may die, but not within it.
    cdef list batches        # with victims that no worker has taken yet
    cdef list workers
    cdef list resting        # the workers that wait for work; the caller that wakes one takes it out

    def __init__(self, Core core not None, clock=None, make_event=Event):
        self.core = core
        self.clock = clock
        self.make_event = make_event
        self.batches = []
        self.workers = []
        self.resting = []

    cdef double now(self) except? -1:
        return gcp_monotonic() if self.clock is None else self.clock()

    @property
    def has_work(self):
        """Whether victims wait for a worker."""
        cdef bint found
        gcp_lock_outer(&self.core.mutex)
        found = len(self.batches) > 0
        gcp_unlock_outer(&self.core.mutex)
        return found

    def has_free_worker(self, double grace):
        """Return whether there is a worker that is not stuck.

        :param grace: a worker that has been at one victim for longer is stuck, seconds
        """
        cdef Worker worker
        cdef double now = self.now()
        cdef double begin
        for worker in self.all_workers():
            worker.at_work_on(&begin)
            if now - begin < grace:
                return True
        return False

    def has_unbegun_worker(self, double grace):
        """Return whether there is a worker that has not begun.

        :param grace: for longer than so many seconds
        """
        cdef Worker worker
        cdef double now = self.now()
        cdef double begin
        for worker in self.all_workers():
            if worker.at_work_on(&begin) is None and now - begin >= grace:
                return True
        return False

    def offer(self, Batch batch not None):
        """Queue a batch for the next free worker."""
        self.queue(batch)

    cdef int queue(self, Batch batch) except -1:
        gcp_lock_outer(&self.core.mutex)
        self.batches.append(batch)
        gcp_unlock_outer(&self.core.mutex)
        return 0

    def wake_worker(self):
        """Wake a resting worker. Returns whether there was one."""
        cdef Worker worker = self.take_resting()
        if worker is None:
            return False
        set_event(worker.event)
        return True

    def dispose(self, own, double seconds, hook, timeout, start, report):
        """Dispose of all victims on behalf of a caller: in its thread those of its own endpoint without a time-out, all
        others by the workers. Returns the batch if the caller has waited for a moment and some are left, else None.

        :param own: the caller's endpoint; `NO_ENDPOINT`: it has none
        :param seconds: how long to wait for victims of other endpoints at most
        :param hook: the manager's blocking `dispose`
        :param timeout: ``dispose_timeout``, seconds; ``None``: no limit
        :param start: as for `submit`
        :param report: as for `dispose_here`
        """
        cdef Batch batch = gather(self.core, self.make_event(), origin_of(self.core))
        if batch is None:
            return None
        if batch.belongs_to(own):
            if timeout is None:
                dispose_here(batch, hook, report)
                return None
            seconds = timeout
        if self.submit(batch, min(seconds, GRACE), GRACE, start) or seconds <= 0:
            return None
        batch.patience = seconds - GRACE
        return batch

    cpdef bint submit(self, Batch batch, double seconds, double grace, start) except -1:
        """Queue a batch for the workers, and wait until its victims are gone. Returns whether they are.

        :param seconds: how long to wait at most
        :param grace: as for `has_free_worker`
        :param start: starts a worker
        """
        cdef Worker worker
        # Looked at before and after: neither a signal nor a worker that is just ending may leave a batch without one.
        if not self.has_free_worker(grace):
            try:
                start()
            except BaseException:
                batch.victims.clear()   # an error's traceback may keep the batch: its victims go back to the core now
                raise
        self.queue(batch)       # a worker that begins to rest sees it, or is seen here
        worker = self.take_resting()
        if worker is not None:
            return set_and_wait(worker.event, batch.event, seconds)
        if not self.has_free_worker(grace):
            start()
        return seconds > 0 and wait_for_event(batch.event, seconds)

    cdef Worker take_resting(self):
        """Take the worker out that began to rest last, or return None."""
        cdef Worker worker = None
        gcp_lock_outer(&self.core.mutex)
        if self.resting:
            worker = <Worker>self.resting.pop()
        gcp_unlock_outer(&self.core.mutex)
        return worker

    cdef list all_workers(self):
        gcp_lock_outer(&self.core.mutex)
        found = self.workers[:]
        gcp_unlock_outer(&self.core.mutex)
        return found

    cdef bint take_out(self, list members, Worker worker) except -1:
        """Take a worker out of those that work, or rest. Returns whether it was one of them."""
        cdef bint found
        gcp_lock_outer(&self.core.mutex)
        found = worker in members
        if found:
            members.remove(worker)
        gcp_unlock_outer(&self.core.mutex)
        return found

    cdef Victim next_victim(self, list gone):
        """Take the next victim of the queued batches, or return None.

        :param gone: gets the batches that are done, and what a forked child leaves alone
        """
        cdef Victim victim = None
        cdef Batch batch
        gcp_lock_outer(&self.core.mutex)
        while victim is None and self.batches:
            batch = <Batch>self.batches[0]
            victim = batch.take_within_lock(gone)
            if victim is None:
                gone.append(batch)
                self.batches.remove(batch)
            else:
                victim.batch = batch
        gcp_unlock_outer(&self.core.mutex)
        return victim

    def stuck(self, double grace):
        """Return the victims that take long, as a list of (victim, seconds).

        :param grace: how long a disposal may take, seconds
        """
        cdef Worker worker
        cdef Victim victim
        cdef double now = self.now()
        cdef double begin
        cdef list found = []
        for worker in self.all_workers():
            victim = worker.at_work_on(&begin)
            if victim is not None and is_under_way(victim) and now - begin >= grace:
                found.append((victim, now - begin))
        return found

    def is_busy(self):
        """Return whether disposals are in progress."""
        return self.has_work or any([is_under_way(victim) for victim in self.under_way()])

    def needs_watching(self, bint timed):
        """Return whether a disposal in progress may come to take too long.

        :param timed: whether disposals have a time-out: then they are watched until it has passed, else until their
                      reservations are cancelled
        """
        cdef Victim victim
        if self.has_work:
            return True
        for victim in self.under_way():
            if is_under_way(victim) and not gcp_read(&victim.given_up if timed else &victim.overdue):
                return True
        return False

    cdef list under_way(self):
        """Return the victims in work."""
        cdef Worker worker
        cdef Victim victim
        cdef double begin
        cdef list found = []
        for worker in self.all_workers():
            victim = worker.at_work_on(&begin)
            if victim is not None:
                found.append(victim)
        return found


cdef bint is_under_way(Victim victim) noexcept:
    """Whether the disposal of a victim in work has not ended."""
    return not gcp_read(&victim.done)


@cython.final
cdef class Worker:
    """A thread or task that disposes of victims, one at a time.

    :param worker_pool: to which it belongs from `join` to `quit`
    :param event: what it waits for when there is nothing to do
    """
    cdef WorkerPool worker_pool
    cdef object event
    cdef Victim in_work      # changes, with the time, within the core's lock: other threads look at it
    cdef double begin        # inf: there is none
    # The event of a caller whose victims are gone. It is set late, since setting it costs a switch of threads.
    cdef object completed

    def __init__(self, WorkerPool worker_pool not None, event=None):
        self.worker_pool = worker_pool
        self.event = event
        self.begin = INFINITY

    def join(self):
        """Enrol in the worker pool. One that does not begin to work counts as stuck, too."""
        self.note(None, self.worker_pool.now())
        gcp_lock_outer(&self.worker_pool.core.mutex)
        self.worker_pool.workers.append(self)
        gcp_unlock_outer(&self.worker_pool.core.mutex)

    def quit(self):
        """Leave the worker pool. The victim in work, if there is one, is let go."""
        self.let_go()
        self.notify()
        self.note(None, INFINITY)
        self.worker_pool.take_out(self.worker_pool.workers, self)

    @property
    def victim(self):
        """The victim in work, or None."""
        return self.in_work

    def rest(self, double idle_time):
        """Wait until there is something to do. Returns whether there is.

        :param idle_time: how long to wait at most, seconds
        """
        cdef WorkerPool worker_pool = self.worker_pool
        completed, self.completed = self.completed, None
        if not self.begin_rest():      # a batch came in meanwhile
            set_event(completed)
            return True
        return set_and_wait(completed, self.event, idle_time) or not worker_pool.take_out(worker_pool.resting, self)

    cdef bint begin_rest(self) except -1:
        """Begin to rest. Returns False if there is something to do."""
        cdef WorkerPool worker_pool = self.worker_pool
        cdef bint rests
        gcp_lock_outer(&worker_pool.core.mutex)
        rests = not worker_pool.batches
        if rests:
            worker_pool.resting.append(self)
        gcp_unlock_outer(&worker_pool.core.mutex)
        return rests

    def work(self, hook, timeout, report):
        """Dispose of all queued victims.

        :param hook: the manager's blocking `dispose`
        :param timeout: seconds, passed on to the hook; ``None``: no limit
        :param report: called with a victim, the error that its `dispose` raised, and whether it was not given up before
        """
        cdef Victim victim = self.take()
        cdef bint first
        while victim is not None:
            error = None
            try:
                error = dispose_of(victim, hook, timeout, victim.batch.origin)
            except BaseException:
                pass            # of a tracer, say: a worker has no caller
            if error is not None:
                first = self.let_go()
                self.notify()
                try:
                    report(victim, error, first)
                except BaseException:
                    pass        # logged
            victim = self.take()

    def begin_work(self, hook, iterate, started, report):
        """Dispose of queued victims, up to the first whose disposal suspends. It is in work then.

        :param hook: the manager's asynchronous `dispose`
        :param iterate: as for `begin_disposal`
        :param started: likewise
        :param report: as for `Victim.end`; what it raises ends the work
        :return: what `begin_disposal` returned; None when there is nothing left
        """
        cdef Victim victim = self.take()
        while victim is not None:
            rest = begin_disposal(victim, hook, iterate, started, victim.batch.origin, report)
            if rest is not None:
                return rest
            victim = self.take()
        return None

    cdef Victim take(self):
        """Take the next victim, or None. The last one is let go."""
        cdef WorkerPool worker_pool = self.worker_pool
        cdef Victim victim
        self.let_go()
        victim = worker_pool.next_victim([])
        if victim is None:
            self.note(None, INFINITY)
        else:
            self.notify()
            self.note(victim, worker_pool.now())
        return victim

    cdef int note(self, Victim victim, double now) except -1:
        cdef Victim _last = self.in_work    # it may die, but not within the lock
        gcp_lock_outer(&self.worker_pool.core.mutex)
        self.in_work = victim
        self.begin = now
        gcp_unlock_outer(&self.worker_pool.core.mutex)
        return 0

    cdef Victim at_work_on(self, double* begin):
        """Return the victim in work, and since when; for other threads."""
        cdef Victim victim
        gcp_lock_outer(&self.worker_pool.core.mutex)
        victim = self.in_work
        begin[0] = self.begin
        gcp_unlock_outer(&self.worker_pool.core.mutex)
        return victim

    cdef bint let_go(self) except -1:
        """The victim in work is gone, or goes back to the core if its disposal was not begun. Returns whether its
        caller had still counted on it."""
        cdef Victim victim = self.in_work
        cdef bint last = False
        cdef bint first
        if victim is None:
            return False
        if not victim.started:
            victim.take_back()
        first = victim.count(&last)
        if last:
            self.notify()
            self.completed = victim.batch.event
        return first

    cdef int notify(self) except -1:
        """Wake a caller whose victims are gone."""
        if self.completed is not None:
            completed, self.completed = self.completed, None
            set_event(completed)
        return 0
