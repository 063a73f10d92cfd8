# Victims on their way out: handed over in batches, taken by whoever is free, one after the other. From one `dispose` to
# the next it is all compiled: that costs less, and no signal handler runs in between.
#
# Nobody is lost: a victim of a batch that is dropped is given back to the core by its finalizer.

@cython.final
cdef class Batch:
    """Victims that were handed over together. Nobody owns them: each worker that is free takes the next one."""
    cdef Core core
    cdef list victims        # the next one is the last
    cdef Py_ssize_t left     # neither gone nor given up; changes within the core's lock
    cdef object origin       # of their spans
    cdef public object event  # is_set when all are gone: somebody may wait for it

    cdef Victim take(self):
        """Take the next victim, or None. A forked child leaves its parent's alone."""
        cdef Victim victim
        while self.victims:
            try:
                victim = <Victim>self.victims.pop()
            except IndexError:      # another worker was faster
                break
            if victim.epoch == self.core.pool.epoch:
                return victim
        return None

    @property
    def is_gone(self):
        """Whether all are gone, or were given up."""
        return self.left == 0

    def concerns(self, endpoint):
        """Tell whether all are the business of whoever uses an endpoint: of that endpoint, and nobody else's place."""
        cdef Victim victim
        for victim in self.victims:
            if not victim.concerns(endpoint):
                return False
        return True

    def wait(self, double seconds):
        """Wait until all are gone; tell whether they are.

        :param seconds: at most; ``inf``: for ever
        """
        return wait_for_event(self.event, seconds)


cpdef Batch gather(Core core, event=None, origin=None):
    """Take all victims away. Returns None when there are none.

    :param event: called when all are gone
    :param origin: as for `Core.hook_call`
    """
    cdef Victim victim = core.victim()
    cdef Batch batch
    if victim is None:
        return None
    batch = Batch.__new__(Batch)
    batch.core = core
    batch.event = event
    batch.origin = origin
    batch.victims = []
    while victim is not None:
        batch.victims.append(victim)
        victim = core.victim()
    batch.left = len(batch.victims)
    batch.victims.reverse()
    return batch


cpdef int dispose_here(Batch batch, hook, tell) except -1:
    """Dispose of victims in the caller's thread, however long it takes.

    :param hook: the manager's blocking `dispose`
    :param tell: called with a victim and what went wrong
    """
    cdef Victim victim = batch.take()
    try:
        while victim is not None:
            error = dispose_of(victim, hook)
            if error is not None:
                tell(victim, error)
            victim = batch.take()
    finally:
        batch.victims.clear()       # an error's traceback may keep the batch: its victims are given back now
    return 0


# --- who disposes ---

@cython.final
cdef class WorkerPool:
    """The workers of a pool, and what waits for them.

    :param clock: returns seconds; for tests. ``None``: the monotonic clock
    """
    cdef Core core
    cdef object clock
    cdef object batches      # deque: with victims that nobody has taken yet
    cdef object workers      # deque
    cdef object resting      # deque: those of them who sleep until somebody calls one; who calls it takes it out

    def __init__(self, Core core not None, clock=None):
        self.core = core
        self.clock = clock
        self.batches = deque()
        self.workers = deque()
        self.resting = deque()

    cdef double now(self) except? -1:
        return gcp_monotonic() if self.clock is None else self.clock()

    @property
    def has_work(self):
        """Whether victims wait for a worker."""
        return len(self.batches) > 0

    def has_free_worker(self, double grace):
        """Tell whether somebody is there who is not stuck.

        :param grace: seconds after which one who is at work on the same victim is
        """
        cdef Worker worker
        cdef double now = self.now()
        cdef double begin
        for worker in list(self.workers):
            worker.at_work_on(&begin)
            if now - begin < grace:
                return True
        return False

    def offer(self, Batch batch not None):
        """Put victims where the next worker that is free takes them."""
        self.batches.append(batch)

    def call(self):
        """Wake a worker that rests; tell whether there was one."""
        cdef Worker worker = self.take_resting()
        if worker is None:
            return False
        set_event(worker.event)
        return True

    def hand_over(self, Batch batch not None, double seconds, double grace, start):
        """Give victims to the workers, and wait until they are gone. Returns whether they are.

        :param seconds: how long to wait
        :param grace: as for `has_free_worker`
        :param start: starts a worker
        """
        cdef Worker worker
        # before and after: neither a signal nor a worker that just goes may leave a victim to nobody
        if not self.has_free_worker(grace):
            try:
                start()
            except BaseException:
                batch.victims.clear()       # its victims are given back now, though the error's traceback keeps it
                raise
        self.batches.append(batch)
        worker = self.take_resting()
        if worker is not None:
            return set_and_wait(worker.event, batch.event, seconds)
        if not self.has_free_worker(grace):
            start()
        return seconds > 0 and wait_for_event(batch.event, seconds)

    cdef Worker take_resting(self):
        while self.resting:
            try:
                return <Worker>self.resting.pop()
            except IndexError:
                break
        return None

    def stuck(self, double grace):
        """Return who takes long, as a list of (victim, seconds).

        :param grace: what is not long yet, seconds
        """
        cdef Worker worker
        cdef Victim victim
        cdef double now = self.now()
        cdef double begin
        cdef list found = []
        for worker in list(self.workers):
            victim = worker.at_work_on(&begin)
            if victim is not None and not victim.done and now - begin >= grace:
                found.append((victim, now - begin))
        return found

    def is_busy(self):
        """Tell whether disposals are under way."""
        return len(self.batches) > 0 or any([not (<Victim>victim).done for victim in self.under_way()])

    def needs_watching(self, bint timed):
        """Tell whether one of them may come to take too long.

        :param timed: whether they have a time-out: then they are watched until it has passed, else until it is known
                      that their place cannot be counted on
        """
        cdef Victim victim
        if self.batches:
            return True
        for victim in self.under_way():
            if not victim.done and not (victim.given_up if timed else victim.overdue):
                return True
        return False

    cdef list under_way(self):
        cdef Worker worker
        cdef Victim victim
        cdef double begin
        cdef list found = []
        for worker in list(self.workers):
            victim = worker.at_work_on(&begin)
            if victim is not None:
                found.append(victim)
        return found


@cython.final
cdef class Worker:
    """Whoever disposes of victims: of which one, and since when.

    :param worker_pool: where it belongs, from `join` to `quit`
    :param event: what it sleeps on when there is nothing to do
    """
    cdef WorkerPool worker_pool
    cdef object event
    cdef Victim in_work      # changes, with the time, within the core's lock: others look at it
    cdef double begin        # inf: there is none
    cdef object completed         # the event of a caller whose victims are gone; is_set when there is nothing better to do

    def __init__(self, WorkerPool worker_pool not None, event=None):
        self.worker_pool = worker_pool
        self.event = event
        self.begin = INFINITY

    def join(self):
        """Be one of the worker_pool."""
        self.worker_pool.workers.append(self)

    def quit(self):
        """Be it no longer. Whatever was in work is let go."""
        self.let_go()
        self.notify()
        self.note(None, INFINITY)
        try:
            self.worker_pool.workers.remove(self)
        except ValueError:
            pass

    @property
    def victim(self):
        """What it is at work on."""
        return self.in_work

    def rest(self, double idle_time):
        """Sleep until there is something to do; tell whether there is.

        :param idle_time: how long, seconds
        """
        cdef WorkerPool worker_pool = self.worker_pool
        completed, self.completed = self.completed, None
        worker_pool.resting.append(self)
        if worker_pool.batches:        # it came in just now
            self.stop_resting()
            set_event(completed)
            return True
        return set_and_wait(completed, self.event, idle_time) or not self.stop_resting()

    cdef bint stop_resting(self) except -1:
        """Rest no longer; tell whether nobody has called."""
        try:
            self.worker_pool.resting.remove(self)
        except ValueError:
            return False
        return True

    def work(self, hook, timeout, tell):
        """Dispose of all that waits.

        :param hook: the manager's blocking `dispose`
        :param timeout: seconds that it may take, by its own care; ``None``: no limit
        :param tell: called with a victim, what went wrong, and whether it was not given up before
        """
        cdef Victim victim = self.take()
        cdef bint first
        while victim is not None:
            error = None
            try:
                error = dispose_of(victim, hook, timeout, victim.batch.origin)
            except BaseException:
                pass            # of a tracer, say; a worker has nobody to raise it to
            if error is not None:
                first = self.let_go()
                self.notify()
                try:
                    tell(victim, error, first)
                except BaseException:
                    pass        # logged
            victim = self.take()

    def begin_work(self, hook, steps_of, begun):
        """Dispose of what waits, up to the first victim whose disposal has something to wait for, or goes wrong. It is
        in work then.

        :param hook: the manager's asynchronous `dispose`
        :param steps_of: as for `begin_disposal`
        :param begun: likewise
        :return: what `begin_disposal` did; None when there is nothing left
        """
        cdef Victim victim = self.take()
        while victim is not None:
            rest = begin_disposal(victim, hook, steps_of, begun, victim.batch.origin)
            if rest is not None:
                return rest
            victim = self.take()
        return None

    cdef Victim take(self):
        """Take the next victim, or None; the last one is let go."""
        cdef WorkerPool worker_pool = self.worker_pool
        cdef Batch batch
        cdef Victim victim = None
        self.let_go()
        while victim is None and worker_pool.batches:
            try:
                batch = <Batch>worker_pool.batches[0]
                victim = batch.take()
                if victim is None:
                    worker_pool.batches.remove(batch)
            except (IndexError, ValueError):    # another worker was faster
                pass
        if victim is None:
            self.note(None, INFINITY)
        else:
            victim.batch = batch
            self.notify()
            self.note(victim, worker_pool.now())
        return victim

    cdef int note(self, Victim victim, double now) except -1:
        cdef Victim last = self.in_work     # it may die, but not within the lock
        gcp_lock(&self.worker_pool.core.mutex)
        self.in_work = victim
        self.begin = now
        gcp_unlock(&self.worker_pool.core.mutex)
        return 0

    cdef Victim at_work_on(self, double* begin):
        """What it is at work on, and since when; for others."""
        cdef Victim victim
        gcp_lock(&self.worker_pool.core.mutex)
        victim = self.in_work
        begin[0] = self.begin
        gcp_unlock(&self.worker_pool.core.mutex)
        return victim

    cdef bint let_go(self) except -1:
        """The victim in work is gone, or goes back to the core when it was not begun. Tells whether it had not been
        let go before."""
        cdef Victim victim = self.in_work
        cdef bint last = False
        cdef bint first
        if victim is None:
            return False
        if not victim.started:
            victim.core.spare(victim)
        first = victim.count(&last)
        if last:
            self.notify()
            self.completed = victim.batch.event
        return first

    cdef int notify(self) except -1:
        """Let a caller go."""
        if self.completed is not None:
            completed, self.completed = self.completed, None
            set_event(completed)
        return 0
