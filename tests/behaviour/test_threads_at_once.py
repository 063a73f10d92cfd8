"""What several threads do at the same time to the Python half of a pool happens once, and nothing of it is lost. Where
there is a gate, it stops one thread in the middle; where there is none, many threads begin at the same moment: without
the GIL they meet."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from fronts import PATIENCE

from gcp import waiting

ROUNDS = 30_000


def at_once(*functions: Callable[[], Any]) -> list[Any]:
    """Call functions in threads that begin together. Returns their results, and raises the first error."""
    barrier = threading.Barrier(len(functions))
    results: dict[int, Any] = {}
    errors: list[BaseException] = []

    def work(number: int) -> None:
        barrier.wait(PATIENCE)
        try:
            results[number] = functions[number]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), 'in vain'
    if errors:
        raise errors[0]
    return [results[number] for number in range(len(functions))]


# --- waiting ---


def test_an_event_that_several_threads_set_at_the_same_time() -> None:
    event = waiting.PatchedEvent()

    def set_often() -> None:
        for _ in range(ROUNDS):
            event.set()

    def receive() -> None:
        for _ in range(ROUNDS):
            event.wait(0)

    at_once(set_often, set_often, receive)
    event.set()
    assert event.wait(0)
    assert not event.wait(0)


def test_a_wait_within_a_wait_of_the_same_thread() -> None:
    """As in a signal handler."""

    class Outer(waiting.PatchedEvent):
        def wait(self, seconds: float = 0.0) -> bool:
            inner = waiting.PatchedEvent()
            inner.set()
            return waiting.wait_for(inner, float('inf'))

    assert waiting.wait_for(Outer(), float('inf'))
    assert threading.get_ident() not in waiting.waiting
