"""Guarantee 28 (docs/guarantees.md): how endpoints with weights and floors share the total cap, in simulated time."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from core.helpers import CREATE, USE, WAIT, Bench
from core.simulation import Outcome, Simulation
from gcp.limits import EndpointLimits

USE_TIME = 0.002


def simulated(
    weights: Sequence[float],
    clients: Sequence[int],
    cap: int,
    floors: dict[int, int] | None = None,
    seconds: float = 8.0,
    create: float = 0.02,
) -> Outcome:
    """Simulate endpoints that use a connection for 2 ms each."""
    found = floors or {}
    limits = [EndpointLimits(weight=weight, floor=found.get(number)) for number, weight in enumerate(weights)]
    simulation = Simulation(len(weights), clients, cap, limits=limits.__getitem__, create=create, use=USE_TIME)
    return simulation.run(seconds, warm_up=3.0)


def shares(
    weights: Sequence[float], clients: Sequence[int], cap: int, floors: dict[int, int] | None = None
) -> list[float]:
    """Return the places that each endpoint is to have: in proportion to weight, not below its floor, and not more than
    it can use."""
    fixed: dict[int, float] = {}
    while True:
        rest = cap - sum(fixed.values())
        total = sum(weight for number, weight in enumerate(weights) if number not in fixed)
        found = {number: rest * weight / total for number, weight in enumerate(weights) if number not in fixed}
        bounds = {number: min((floors or {}).get(number, 0), clients[number]) for number in found}
        new = {number: float(bounds[number]) for number, share in found.items() if share < bounds[number]}
        new |= {number: float(clients[number]) for number, share in found.items() if share > clients[number]}
        if not new:
            return [(fixed | found)[number] for number in range(len(weights))]
        fixed |= new


def deviations(outcome: Outcome, expected: Sequence[float]) -> list[float]:
    """Return what each endpoint got, relative to its share, the least first."""
    total = outcome.served.total()
    return sorted(outcome.served[number] / total * sum(expected) / share for number, share in enumerate(expected))


FIFTY = [1.0 + number % 5 for number in range(50)]


@pytest.mark.parametrize('others', [1, 4, 10])
def test_one_endpoint_with_a_hundred_times_the_load(others: int) -> None:
    """50 endpoints under a total cap of 20, with weights of 1 to 5, and floors on three."""
    clients = [100 * others] + [others] * 49
    floors = {1: 1, 2: 1, 3: 1}
    outcome = simulated(FIFTY, clients, 20, floors, seconds=20.0)
    found = deviations(outcome, shares(FIFTY, clients, 20, floors))
    assert 0.9 <= found[0] <= found[-1] <= 1.1, found
    assert outcome.evicted < 0.01 * outcome.served.total(), str(outcome)
    assert outcome.rate > 0.9 * 20 / USE_TIME
    assert max(outcome.longest[number] for number in floors) <= 2 * others * USE_TIME
    assert max(outcome.longest[number] for number in range(1, 50)) <= 4.0  # those without a floor wait for their turn


@pytest.mark.parametrize('create', [0.002, 0.02])
@pytest.mark.parametrize(
    ('weights', 'floors'),
    [
        ([1, 3], {}),
        ([1, 2, 3, 4, 5], {}),
        ([10, 20, 30, 40, 50], {}),
        ([1, 2, 3, 4, 5], {0: 5}),
        ([1, 1, 1, 7], {0: 3}),
    ],
)
def test_in_proportion_to_weight_and_never_below_the_floor(
    weights: list[float], floors: dict[int, int], create: float
) -> None:
    clients = [40] * len(weights)
    outcome = simulated(weights, clients, 20, floors, create=create)
    found = deviations(outcome, shares(weights, clients, 20, floors))
    assert 0.95 <= found[0] <= found[-1] <= 1.05, found
    assert outcome.evicted < 0.01 * outcome.served.total(), str(outcome)


def test_what_one_does_not_use_goes_to_the_others() -> None:
    """A floor that its endpoint does not use holds no place back; nor does a weight."""
    clients = [1, 40, 40]
    outcome = simulated([10, 1, 1], clients, 10, {0: 5})
    found = deviations(outcome, shares([10, 1, 1], clients, 10, {0: 5}))
    assert 0.9 <= found[0] <= found[-1] <= 1.1, found
    outcome = simulated([10, 1, 1], [0, 40, 40], 10, {0: 5})
    assert outcome.rate > 0.97 * 10 / USE_TIME


def of(bench: Bench, endpoint: str) -> tuple[int, int]:
    counts = bench.endpoints[endpoint]
    return counts['used'], counts['waiting']


def test_an_endpoint_below_its_floor_is_served_first() -> None:
    limits = {'floored': EndpointLimits(floor=1)}
    bench = Bench(max_size=3, total_max_size=3, limits=lambda endpoint: limits.get(endpoint))
    held = [bench.get('busy') for _ in range(3)]
    waiting = [bench.keep(bench.ask('busy')) for _ in range(2)]
    needy = bench.keep(bench.ask('floored'))
    bench.put(held.pop())
    bench.dispose_all()
    assert [bench.verdict(acquire) for acquire in (needy, *waiting)] == [CREATE, WAIT, WAIT]
    served = bench.take(needy)
    bench.put(held.pop())
    assert bench.verdict(waiting[0]) == USE
    again = bench.keep(bench.ask('floored'))
    assert bench.verdict(again) == WAIT
    bench.put(served)  # its own waiter: it has no more than its floor
    assert bench.verdict(again) == USE


def test_a_connection_lingers_for_as_long_as_a_connect_takes() -> None:
    bench = Bench(max_size=1, total_max_size=1, limits=lambda endpoint: EndpointLimits(weight=2))
    first = bench.ask('a')
    bench.clock.advance(0.5)  # its connect
    held = bench.take(first)
    bench.clock.advance(0.01)
    waiting = bench.keep(bench.ask('b'))
    bench.put(held)
    assert (bench.total['idle'], bench.verdict(waiting)) == (1, WAIT)
    bench.poll(waiting)
    assert 0 < waiting.time_to_wait() <= 0.5
    bench.clock.advance(0.49)
    held = bench.get('a')  # it comes back in time
    bench.clock.advance(0.01)
    bench.put(held)
    bench.clock.advance(0.51)
    bench.poll(waiting)
    bench.dispose_all()
    assert bench.verdict(waiting) == CREATE
