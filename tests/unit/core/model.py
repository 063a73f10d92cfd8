"""The rules of the core once more: plain lists, no cleverness, and no care for speed. What `gcp._core` must agree with.

Written after the design, not after the code: where the core keeps heaps and rings, the model searches."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import inf

WAIT, CREATE, USE, SHUT, DONE = 'wait', 'create', 'use', 'shut', 'done'

LIVES = 8
"""How many times its target's create time a connection lives before it may be taken from a line of its own."""


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
    lent: bool = False
    holder: Ticket | None = None
    reason: str = ''
    promised_to: str | None = None
    started: bool = False


@dataclass(eq=False)
class Ticket:
    """One acquire."""

    endpoint: str
    age: int
    state: str = 'new'
    slot: Slot | None = None
    since: float = inf
    dropped: bool = False
    ended: bool = False
    hook: bool = False


@dataclass
class Endpoint:
    """What is known of an endpoint while it has anything."""

    line: list[Ticket] = field(default_factory=list)
    creating: int = 0
    create_time: float = 0.0


class Model:
    """The state of a pool, by the book. Its methods are the core's verbs, and what they are made of."""

    def __init__(
        self, *, max_size: int, total_max_size: int, min_idle: int, idle_timeout: float, max_lifetime: float
    ) -> None:
        self.max_size = max_size
        self.total_max_size = total_max_size
        self.min_idle = min_idle
        self.idle_timeout = idle_timeout
        self.max_lifetime = max_lifetime
        self.now = 0.0
        self.closed = False
        self.slots: list[Slot] = []  # all that count against a cap
        self.idle_order: list[Slot] = []  # longest idle first
        self.victims: list[Slot] = []  # nobody has come for them yet
        self.pledges: list[Slot] = []  # victims that have promised their place, oldest first
        self.endpoints: dict[str, Endpoint] = {}
        self.create_time = 0.0
        self.arrivals = 0
        self.orphans: list[tuple[Slot, Ticket | None]] = []  # left by finalizers: leases, or (no ticket) victims
        self.lost_permits: list[str] = []
        self.woken: list[Ticket] = []
        self.created_total = 0
        self.closed_by: Counter[str] = Counter()
        self.results: Counter[str] = Counter()
        self.releases: Counter[str] = Counter()

    # --- counting ---

    def at(self, endpoint: str) -> Endpoint:
        return self.endpoints.setdefault(endpoint, Endpoint())

    def count(self, endpoint: str, *states: str) -> int:
        return sum(slot.endpoint == endpoint and slot.state in states for slot in self.slots)

    def promised(self, endpoint: str) -> int:
        return sum(slot.promised_to == endpoint for slot in self.pledges)

    def held(self, endpoint: str) -> int:
        """What an endpoint has to work with."""
        return self.count(endpoint, 'idle', 'used', 'returning') + self.at(endpoint).creating

    def taken(self, endpoint: str) -> int:
        """What counts against its cap."""
        return self.held(endpoint) + self.count(endpoint, 'disposing') + self.promised(endpoint)

    @property
    def size(self) -> int:
        return len(self.slots) + sum(each.creating for each in self.endpoints.values())

    def blocked(self, but: str | None = None) -> str | None:
        """Find the endpoint that holds least, of those whose waiters only the total cap holds back; among equals, the
        one with the oldest waiter."""
        return min(
            (
                name
                for name, each in self.endpoints.items()
                if name != but and len(each.line) > self.promised(name) and self.taken(name) < self.max_size
            ),
            key=lambda name: (self.held(name) + self.promised(name), self.at(name).line[0].age),
            default=None,
        )

    def idle(self, endpoint: str, *, extra: bool) -> list[Slot]:
        return [slot for slot in self.idle_order if slot.endpoint == endpoint and slot.extra is extra]

    def is_expired(self, slot: Slot) -> str | None:
        if self.now >= slot.expires:
            return 'max_lifetime'
        if slot.extra and self.now >= slot.since + self.idle_timeout:
            return 'idle_timeout'
        return None

    # --- what happens to one connection ---

    def lend(self, slot: Slot, ticket: Ticket) -> None:
        if slot in self.idle_order:
            self.idle_order.remove(slot)
        slot.state, slot.since, slot.lent, slot.holder = 'used', self.now, False, ticket
        ticket.state, ticket.slot = USE, slot

    def retire(self, slot: Slot, reason: str) -> None:
        if slot in self.idle_order:
            self.idle_order.remove(slot)
        slot.state, slot.reason, slot.lent, slot.holder = 'disposing', reason, False, None
        self.victims.append(slot)
        self.closed_by[reason] += 1

    def evict_for(self, slot: Slot, endpoint: str) -> None:
        self.retire(slot, 'evicted')
        slot.promised_to = endpoint
        self.pledges.append(slot)

    def release_pledge(self, slot: Slot) -> None:
        slot.promised_to = None
        if slot in self.pledges:
            self.pledges.remove(slot)

    def park(self, slot: Slot) -> None:
        out = self.count(slot.endpoint, 'used', 'returning') - 1
        slot.extra = out >= self.min_idle - len(self.idle(slot.endpoint, extra=False))
        slot.state, slot.since, slot.lent, slot.holder = 'idle', self.now, False, None
        self.idle_order.append(slot)

    # --- serving ---

    def grant(self, endpoint: str) -> None:
        ticket = self.at(endpoint).line.pop(0)
        self.at(endpoint).creating += 1
        ticket.state = CREATE
        self.woken.append(ticket)

    def settle(self) -> None:
        """Serve whom a free place or an idle connection can serve."""
        while (needy := self.blocked()) is not None:
            if self.size < self.total_max_size:
                self.grant(needy)
                continue
            longest = [slot for slot in self.idle_order if slot.extra] or self.idle_order
            if not longest:
                break
            self.evict_for(longest[0], needy)
        for slot in list(self.pledges):
            if self.size < self.total_max_size and slot.promised_to and self.at(slot.promised_to).line:
                endpoint = slot.promised_to
                self.release_pledge(slot)
                self.grant(endpoint)

    def place(self, slot: Slot) -> str:
        """Find the next use of one that comes back well."""
        line = self.at(slot.endpoint).line
        if self.closed or self.now >= slot.expires:
            self.retire(slot, 'pool_closed' if self.closed else 'max_lifetime')
            return 'discarded'
        needy = self.blocked(but=slot.endpoint)
        if needy is not None and (not line or self.yields(slot, needy)):
            self.evict_for(slot, needy)
            return 'discarded'
        if line:
            ticket = line.pop(0)
            self.lend(slot, ticket)
            self.woken.append(ticket)
            return 'handoff'
        self.park(slot)
        return 'idle'

    def yields(self, slot: Slot, needy: str) -> bool:
        """The sharing rule: whether another endpoint is served before the connection's own line."""
        mine, theirs = self.held(slot.endpoint), self.held(needy) + self.promised(needy)
        evens_out = mine - theirs > 1
        ends_having_none = theirs == 0 and self.at(needy).line[0].age < self.at(slot.endpoint).line[0].age
        price = self.at(needy).create_time or self.create_time
        return (evens_out or ends_having_none) and self.now - slot.born >= LIVES * price

    # --- verbs ---

    def begin(self, now: float) -> None:
        """Each verb first takes back what finalizers left, the latest first."""
        self.now = now
        while self.orphans:
            slot, ticket = self.orphans.pop()
            if ticket is not None:
                if slot.holder is ticket:
                    self.discard(slot, 'discarded')
            elif slot.state == 'disposing':
                if slot.started:
                    self.disposed(slot)
                else:
                    self.victims.append(slot)
        for endpoint in self.lost_permits:
            self.at(endpoint).creating -= 1
        self.lost_permits.clear()
        self.settle()
        self.end()

    def end(self) -> None:
        """Wake; whoever was dropped in line loses what came. Forget endpoints that have nothing."""
        while self.woken:
            ticket = self.woken.pop(0)
            if ticket.dropped:
                self.lose(ticket)
        for name in list(self.endpoints):
            if not self.at(name).line and not self.taken(name):
                del self.endpoints[name]

    def lose(self, ticket: Ticket) -> None:
        """A ticket's finalizer runs."""
        if ticket.state == CREATE:
            self.lost_permits.append(ticket.endpoint)
        elif ticket.slot is not None and ticket.slot.holder is ticket:
            self.orphans.append((ticket.slot, ticket))

    def open(self, endpoint: str) -> Ticket:
        self.arrivals += 1
        return Ticket(endpoint, self.arrivals)

    def request(self, ticket: Ticket) -> str:
        ticket.slot = None
        if self.closed:
            ticket.state = SHUT
            return SHUT
        line = self.at(ticket.endpoint).line
        if not line or ticket.age < line[0].age:
            while self.idle(ticket.endpoint, extra=False) or self.idle(ticket.endpoint, extra=True):
                base, extras = self.idle(ticket.endpoint, extra=False), self.idle(ticket.endpoint, extra=True)
                slot = base[0] if base else extras[-1]
                reason = self.is_expired(slot)
                if reason is None:
                    self.lend(slot, ticket)
                    return USE
                self.retire(slot, reason)
            if self.taken(ticket.endpoint) < self.max_size and self.size < self.total_max_size:
                self.at(ticket.endpoint).creating += 1
                ticket.state, ticket.since = CREATE, self.now
                return CREATE
        older = sum(other.age < ticket.age for other in line)
        line.insert(older, ticket)
        ticket.state, ticket.since = WAIT, inf
        self.settle()
        return ticket.state

    def retry(self, ticket: Ticket) -> str:
        if ticket.slot is not None and ticket.slot.holder is ticket:
            self.discard(ticket.slot, 'dead')
        return self.request(ticket)

    def poll(self, ticket: Ticket) -> str:
        if ticket.state == CREATE and ticket.since == inf:
            ticket.since = self.now
        return ticket.state

    def expire(self, ticket: Ticket) -> str:
        if ticket.state != WAIT:
            return self.poll(ticket)
        self.at(ticket.endpoint).line.remove(ticket)
        ticket.state = DONE
        self.settle()
        return WAIT

    def created(self, ticket: Ticket, name: str) -> str:
        endpoint = self.at(ticket.endpoint)
        endpoint.creating -= 1
        took = self.now - ticket.since
        endpoint.create_time = smoothed(endpoint.create_time, took)
        self.create_time = smoothed(self.create_time, took)
        self.created_total += 1
        slot = Slot(name, ticket.endpoint, self.now, self.now + self.max_lifetime)
        self.slots.append(slot)
        if self.closed:
            self.retire(slot, 'pool_closed')
            ticket.state = SHUT
        else:
            self.lend(slot, ticket)
        return ticket.state

    def failed(self, ticket: Ticket) -> None:
        self.at(ticket.endpoint).creating -= 1
        ticket.state = DONE
        self.settle()

    def finish(self, ticket: Ticket) -> bool:
        if self.closed or ticket.slot is None or ticket.slot.holder is not ticket:
            return False
        ticket.slot.lent = ticket.ended = True
        self.results['served'] += 1
        return True

    def abandon(self, ticket: Ticket, result: str) -> None:
        if ticket.ended:
            return
        if ticket.state == WAIT:
            self.at(ticket.endpoint).line.remove(ticket)
        elif ticket.state == CREATE:
            self.at(ticket.endpoint).creating -= 1
        elif ticket.slot is not None and ticket.slot.holder is ticket:
            if ticket.hook:
                self.discard(ticket.slot, 'error')
            else:
                self.give_back(ticket.slot)
        ticket.state, ticket.ended = DONE, True
        self.results[result] += 1
        self.settle()

    def checkin(self, slot: Slot) -> None:
        slot.state = 'returning'

    def give_back(self, slot: Slot) -> None:
        lent = slot.lent
        outcome = self.place(slot)
        self.releases[outcome] += lent
        self.settle()

    def discard(self, slot: Slot, reason: str) -> None:
        self.releases['discarded'] += slot.lent
        self.retire(slot, 'pool_closed' if self.closed else reason)
        self.settle()

    def victim(self) -> Slot | None:
        return self.victims.pop(0) if self.victims else None

    def disposed(self, slot: Slot) -> None:
        if slot.state != 'disposing':
            return
        slot.state = 'gone'
        self.slots.remove(slot)
        endpoint = slot.promised_to
        self.release_pledge(slot)
        has_room = self.size < self.total_max_size
        if endpoint and self.at(endpoint).line and self.taken(endpoint) < self.max_size and has_room:
            self.grant(endpoint)
        self.settle()

    def overdue(self, slot: Slot) -> None:
        self.release_pledge(slot)
        self.settle()

    def collect(self, limit: int) -> int:
        due = [(slot.expires, slot) for slot in self.idle_order]
        due += [(slot.since + self.idle_timeout, slot) for slot in self.idle_order if slot.extra]
        collected = 0
        for when, slot in sorted(due, key=lambda each: each[0]):
            if when > self.now or collected == limit:
                break
            if slot.state == 'idle':
                self.retire(slot, 'max_lifetime' if when == slot.expires else 'idle_timeout')
                collected += 1
        return collected

    def close(self) -> None:
        self.closed = True
        for name in self.endpoints:
            for ticket in self.at(name).line:
                ticket.state = SHUT
                self.woken.append(ticket)
            self.at(name).line.clear()
        for slot in sorted(self.idle_order, key=lambda slot: not slot.extra):  # a stable sort: else in their order
            self.retire(slot, 'pool_closed')

    def force(self) -> None:
        for slot in list(self.slots):
            if slot.state == 'used' and slot.lent:
                self.discard(slot, 'pool_closed')


def smoothed(old: float, new: float) -> float:
    """A fifth of each new sample; the first one whole."""
    return old + (new - old) * (0.2 if old > 0 else 1.0)
