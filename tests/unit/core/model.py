"""The rules of the core once more, in plain lists and without care for speed. `gcp._core` must agree with them.

Written after the design, not after the code: where the core keeps heaps and rings, the model searches."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import inf

WAIT, CREATE, USE, SHUT, DONE = 'wait', 'create', 'use', 'shut', 'done'

LIVES = 8
"""How many times its target's create time a connection lives before it may leave an endpoint with waiters."""


@dataclass(eq=False)
class Slot:
    """One connection."""

    name: str
    endpoint: str
    born: float
    expires: float
    state: str = 'used'  # or: idle, returning, disposing, gone
    since: float = 0.0
    extra: bool = False
    acquired: bool = False
    holder: Acquire | None = None
    reason: str = ''
    reserved_for: str | None = None
    started: bool = False


@dataclass(eq=False)
class Acquire:
    """One acquire."""

    endpoint: str
    age: int
    state: str = 'new'
    slot: Slot | None = None
    since: float = inf
    dropped: bool = False
    ended: bool = False
    hook: str = ''  # one has the connection; should the acquire end there, this is why the connection is disposed of


@dataclass
class Endpoint:
    """What is known of an endpoint while it has anything."""

    queue: list[Acquire] = field(default_factory=list)
    creating: int = 0
    create_time: float = 0.0


class Model:
    """The state of a pool. Its methods are the core's transitions, and their parts."""

    def __init__(
        self,
        *,
        max_size: int,
        total_max_size: int,
        min_idle: int,
        idle_timeout: float,
        max_lifetime: float,
        max_connecting: int | None = None,
        max_connecting_total: int | None = None,
    ) -> None:
        self.max_connecting = max_connecting or inf
        self.max_connecting_total = max_connecting_total or inf
        self.max_size = max_size
        self.total_max_size = total_max_size
        self.min_idle = min_idle
        self.idle_timeout = idle_timeout
        self.max_lifetime = max_lifetime
        self.now = 0.0
        self.closed = False
        self.slots: list[Slot] = []  # all that count against a cap
        self.idle_order: list[Slot] = []  # longest idle first
        self.victims: list[Slot] = []  # not yet taken away for disposal
        self.reserving: list[Slot] = []  # victims whose place is reserved, oldest first
        self.endpoints: dict[str, Endpoint] = {}
        self.create_time = 0.0
        self.arrivals = 0
        self.abandoned: list[tuple[Slot, Acquire | None]] = []  # left by finalizers: leases, or (no acquire) victims
        self.abandoned_permits: list[str] = []
        self.woken: list[Acquire] = []
        self.created_total = 0
        self.closed_by: Counter[str] = Counter()
        self.results: Counter[str] = Counter()
        self.releases: Counter[str] = Counter()
        self.hook_calls: Counter[tuple[str, str]] = Counter()

    # --- counting ---

    def at(self, endpoint: str) -> Endpoint:
        return self.endpoints.setdefault(endpoint, Endpoint())

    def count(self, endpoint: str, *states: str) -> int:
        return sum(slot.endpoint == endpoint and slot.state in states for slot in self.slots)

    def reserved(self, endpoint: str) -> int:
        return sum(slot.reserved_for == endpoint for slot in self.reserving)

    def held(self, endpoint: str) -> int:
        """What an endpoint has to work with."""
        return self.count(endpoint, 'idle', 'used', 'returning') + self.at(endpoint).creating

    def taken(self, endpoint: str) -> int:
        """What counts against its cap."""
        return self.held(endpoint) + self.count(endpoint, 'disposing') + self.reserved(endpoint)

    @property
    def size(self) -> int:
        return len(self.slots) + sum(each.creating for each in self.endpoints.values())

    def endpoint_may_connect(self, endpoint: str) -> bool:
        """Whether the limit of its connects leaves room for one more. A reservation counts as a connect."""
        return self.at(endpoint).creating + self.reserved(endpoint) < self.max_connecting

    def pool_may_connect(self) -> bool:
        """The same for all endpoints together."""
        creating = sum(each.creating for each in self.endpoints.values())
        return creating + len(self.reserving) < self.max_connecting_total

    def blocked(self, but: str | None = None) -> str | None:
        """Find the endpoint that holds least, of those whose waiters only the total cap holds back; among equals, the
        one with the oldest waiter."""
        return min(
            (
                name
                for name, each in self.endpoints.items()
                if name != but
                and len(each.queue) > self.reserved(name)
                and self.taken(name) < self.max_size
                and self.endpoint_may_connect(name)
            ),
            key=lambda name: (self.held(name) + self.reserved(name), self.at(name).queue[0].age),
            default=None,
        )

    def idle(self, endpoint: str, *, extra: bool) -> list[Slot]:
        return [slot for slot in self.idle_order if slot.endpoint == endpoint and slot.extra is extra]

    def expires_at(self, slot: Slot) -> float:
        return min(slot.expires, slot.since + self.idle_timeout) if slot.extra else slot.expires

    def is_expired(self, slot: Slot) -> str | None:
        if self.now >= slot.expires:
            return 'max_lifetime'
        if slot.extra and self.now >= slot.since + self.idle_timeout:
            return 'idle_timeout'
        return None

    # --- what happens to one connection ---

    def begin_use(self, slot: Slot, acquire: Acquire) -> None:
        if slot in self.idle_order:
            self.idle_order.remove(slot)
        slot.state, slot.since, slot.acquired, slot.holder = 'used', self.now, False, acquire
        acquire.state, acquire.slot = USE, slot

    def make_victim(self, slot: Slot, reason: str) -> None:
        if slot in self.idle_order:
            self.idle_order.remove(slot)
        slot.state, slot.reason, slot.acquired, slot.holder = 'disposing', reason, False, None
        self.victims.append(slot)
        self.closed_by[reason] += 1

    def evict_for(self, slot: Slot, endpoint: str) -> None:
        self.make_victim(slot, 'evicted')
        slot.reserved_for = endpoint
        self.reserving.append(slot)

    def cancel_reservation(self, slot: Slot) -> None:
        slot.reserved_for = None
        if slot in self.reserving:
            self.reserving.remove(slot)

    def add_idle(self, slot: Slot) -> None:
        out = self.count(slot.endpoint, 'used', 'returning') - 1
        slot.extra = out >= self.min_idle - len(self.idle(slot.endpoint, extra=False))
        slot.state, slot.since, slot.acquired, slot.holder = 'idle', self.now, False, None
        self.idle_order.append(slot)

    # --- serving ---

    def grant_permit(self, endpoint: str) -> None:
        acquire = self.at(endpoint).queue.pop(0)
        self.at(endpoint).creating += 1
        acquire.state = CREATE
        self.woken.append(acquire)

    def serve_blocked(self) -> None:
        """Serve the blocked endpoints, as far as free places and idle connections go."""
        while self.pool_may_connect() and (needy := self.blocked()) is not None:
            if self.size < self.total_max_size:
                self.grant_permit(needy)
                continue
            longest = [slot for slot in self.idle_order if slot.extra] or self.idle_order
            if not longest:
                break
            self.evict_for(longest[0], needy)
        for slot in list(self.reserving):
            if self.size < self.total_max_size and slot.reserved_for and self.at(slot.reserved_for).queue:
                endpoint = slot.reserved_for
                self.cancel_reservation(slot)
                self.grant_permit(endpoint)

    def find_use(self, slot: Slot) -> str:
        """Find the next use of one that comes back well."""
        queue = self.at(slot.endpoint).queue
        if self.closed or self.now >= slot.expires:
            self.make_victim(slot, 'pool_closed' if self.closed else 'max_lifetime')
            return 'discarded'
        needy = self.blocked(but=slot.endpoint) if self.pool_may_connect() else None
        if needy is not None and (not queue or self.yields_to(slot, needy)):
            self.evict_for(slot, needy)
            return 'discarded'
        if queue:
            acquire = queue.pop(0)
            self.begin_use(slot, acquire)
            self.woken.append(acquire)
            return 'handoff'
        self.add_idle(slot)
        return 'idle'

    def yields_to(self, slot: Slot, needy: str) -> bool:
        """The sharing rule: whether another endpoint is served before the waiters of the connection's own."""
        mine, theirs = self.held(slot.endpoint), self.held(needy) + self.reserved(needy)
        evens_out = mine - theirs > 1
        ends_having_none = theirs == 0 and self.at(needy).queue[0].age < self.at(slot.endpoint).queue[0].age
        price = self.at(needy).create_time or self.create_time
        return (evens_out or ends_having_none) and self.now - slot.born >= LIVES * price

    # --- transitions ---

    def begin(self, now: float) -> None:
        """Reclaim what finalizers left, the latest first, as each transition does before it happens."""
        self.now = now
        while self.abandoned:
            slot, acquire = self.abandoned.pop()
            if acquire is not None:
                if slot.holder is acquire:
                    self.discard(slot, 'discarded')
            elif slot.state == 'disposing':
                if slot.started:
                    self.disposed(slot)
                else:
                    self.victims.append(slot)
        for endpoint in self.abandoned_permits:
            self.at(endpoint).creating -= 1
        self.abandoned_permits.clear()
        self.serve_blocked()
        self.end()

    def end(self) -> None:
        """Wake what was served; an acquire that was dropped in the queue loses what came. Forget empty endpoints."""
        while self.woken:
            acquire = self.woken.pop(0)
            if acquire.dropped:
                self.drop(acquire)
        for name in list(self.endpoints):
            if not self.at(name).queue and not self.taken(name):
                del self.endpoints[name]

    def drop(self, acquire: Acquire) -> None:
        """The finalizer of an acquire runs."""
        if acquire.state == CREATE:
            self.abandoned_permits.append(acquire.endpoint)
        elif acquire.slot is not None and acquire.slot.holder is acquire:
            self.abandoned.append((acquire.slot, acquire))

    def open(self, endpoint: str) -> Acquire:
        self.arrivals += 1
        return Acquire(endpoint, self.arrivals)

    def request(self, acquire: Acquire) -> str:
        acquire.slot = None
        if self.closed:
            acquire.state = SHUT
            return SHUT
        queue = self.at(acquire.endpoint).queue
        if not queue or acquire.age < queue[0].age:
            while self.idle(acquire.endpoint, extra=False) or self.idle(acquire.endpoint, extra=True):
                base, extras = self.idle(acquire.endpoint, extra=False), self.idle(acquire.endpoint, extra=True)
                slot = base[0] if base else extras[-1]
                reason = self.is_expired(slot)
                if reason is None:
                    self.begin_use(slot, acquire)
                    return USE
                self.make_victim(slot, reason)
            may_connect = self.endpoint_may_connect(acquire.endpoint) and self.pool_may_connect()
            if self.taken(acquire.endpoint) < self.max_size and self.size < self.total_max_size and may_connect:
                self.at(acquire.endpoint).creating += 1
                acquire.state, acquire.since = CREATE, self.now
                return CREATE
        older = sum(other.age < acquire.age for other in queue)
        queue.insert(older, acquire)
        acquire.state, acquire.since = WAIT, inf
        self.serve_blocked()
        return acquire.state

    def retry(self, acquire: Acquire) -> str:
        if acquire.slot is not None and acquire.slot.holder is acquire:
            self.discard(acquire.slot, 'dead')
        return self.request(acquire)

    def poll(self, acquire: Acquire) -> str:
        if acquire.state == CREATE and acquire.since == inf:
            acquire.since = self.now
        return acquire.state

    def expire(self, acquire: Acquire) -> str:
        if acquire.state != WAIT:
            return self.poll(acquire)
        self.at(acquire.endpoint).queue.remove(acquire)
        acquire.state = DONE
        self.serve_blocked()
        return WAIT

    def created(self, acquire: Acquire, name: str) -> str:
        endpoint = self.at(acquire.endpoint)
        endpoint.creating -= 1
        took = self.now - acquire.since
        endpoint.create_time = smoothed(endpoint.create_time, took)
        self.create_time = smoothed(self.create_time, took)
        self.created_total += 1
        self.hook_calls['create', 'ok'] += 1
        slot = Slot(name, acquire.endpoint, self.now, self.now + self.max_lifetime)
        self.slots.append(slot)
        if self.closed:
            self.make_victim(slot, 'pool_closed')
            acquire.state = SHUT
        else:
            self.begin_use(slot, acquire)
            self.serve_blocked()
        return acquire.state

    def failed(self, acquire: Acquire) -> None:
        self.hook_calls['create', 'error'] += 1
        self.at(acquire.endpoint).creating -= 1
        acquire.state = DONE
        self.serve_blocked()

    def finish(self, acquire: Acquire) -> bool:
        if self.closed or acquire.slot is None or acquire.slot.holder is not acquire:
            return False
        acquire.slot.acquired = acquire.ended = True
        self.results['served'] += 1
        return True

    def abandon(self, acquire: Acquire, result: str) -> None:
        if acquire.ended:
            return
        if acquire.state == WAIT:
            self.at(acquire.endpoint).queue.remove(acquire)
        elif acquire.state == CREATE:
            self.at(acquire.endpoint).creating -= 1
        elif acquire.slot is not None and acquire.slot.holder is acquire:
            if acquire.hook:
                self.discard(acquire.slot, acquire.hook)
            else:
                self.end_release(acquire.slot)
        acquire.state, acquire.ended = DONE, True
        self.results[result] += 1
        self.serve_blocked()

    def begin_release(self, slot: Slot) -> None:
        slot.state = 'returning'

    def end_release(self, slot: Slot) -> None:
        acquired = slot.acquired
        outcome = self.find_use(slot)
        self.releases[outcome] += acquired
        self.serve_blocked()

    def discard(self, slot: Slot, reason: str) -> None:
        self.releases['discarded'] += slot.acquired
        self.make_victim(slot, 'pool_closed' if self.closed else reason)
        self.serve_blocked()

    def victim(self) -> Slot | None:
        return self.victims.pop(0) if self.victims else None

    def disposed(self, slot: Slot) -> None:
        if slot.state != 'disposing':
            return
        slot.state = 'gone'
        self.slots.remove(slot)
        endpoint = slot.reserved_for
        self.cancel_reservation(slot)
        if endpoint and self.at(endpoint).queue and self.taken(endpoint) < self.max_size:
            may_connect = self.endpoint_may_connect(endpoint) and self.pool_may_connect()
            if self.size < self.total_max_size and may_connect:
                self.grant_permit(endpoint)
        self.serve_blocked()

    def overdue(self, slot: Slot) -> None:
        self.cancel_reservation(slot)
        self.serve_blocked()

    def collect(self, limit: int) -> int:
        due = [(slot.expires, slot) for slot in self.idle_order]
        due += [(slot.since + self.idle_timeout, slot) for slot in self.idle_order if slot.extra]
        collected = 0
        for when, slot in sorted(due, key=lambda each: each[0]):
            if when > self.now or collected == limit:
                break
            if slot.state == 'idle':
                self.make_victim(slot, 'max_lifetime' if when == slot.expires else 'idle_timeout')
                collected += 1
        return collected

    def close(self) -> None:
        self.closed = True
        for name in self.endpoints:
            for acquire in self.at(name).queue:
                acquire.state = SHUT
                self.woken.append(acquire)
            self.at(name).queue.clear()
        for slot in sorted(self.idle_order, key=lambda slot: not slot.extra):  # a stable sort: else in their order
            self.make_victim(slot, 'pool_closed')

    def force(self) -> None:
        for slot in list(self.slots):
            if slot.state == 'used' and slot.acquired:
                self.discard(slot, 'pool_closed')


def smoothed(old: float, new: float) -> float:
    """A fifth of each new sample; the first one whole."""
    return old + (new - old) * (0.2 if old > 0 else 1.0)
