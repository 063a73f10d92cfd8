"""The performance itself: everything is put up, played for its time, judged, and taken down in whatever way it ends."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence

import psycopg2
from psycopg2.extensions import parse_dsn

from gcp.demo.databases import ENDPOINTS, prepared
from gcp.demo.loads import CONNECTIONS, TasksLoad, ThreadsLoad
from gcp.demo.losses import Losses
from gcp.demo.metrics import published
from gcp.demo.server import ServerError, serve
from gcp.demo.stop import Stop
from gcp.demo.summary import judge
from gcp.demo.view import open_view
from gcp.demo.work import ACQUIRE_TIMEOUT, Load

__all__ = ['NoServerError', 'perform']

SPARE_CONNECTIONS = 12
TICK = 0.05
PATIENCE = 2 * ACQUIRE_TIMEOUT  # what workers have to end what they had begun, seconds
HASTE = 0.8  # the same, when a signal has asked the program to end


class NoServerError(Exception):
    """There is no server to perform on."""


def perform(seconds: float, threads: int, tasks: int, dsn: str | None, stop: Stop) -> bool:
    """Perform.

    :param seconds: for how long
    :param threads: how many threads work
    :param tasks: how many tasks work
    :param dsn: the server to use; ``None``: start one
    :param stop: asks to end
    :return: whether the pools kept their word
    :raises NoServerError: when there is no server, or none any more
    """
    logging.getLogger('gcp').addHandler(logging.NullHandler())  # what the pools would say is in the view
    over = threading.Event()
    try:
        with contextlib.ExitStack() as stage:
            server = stage.enter_context(_found(dsn, stop))
            databases = stage.enter_context(prepared(server, keep=dsn is None))
            loads: list[Load] = []
            for load in (ThreadsLoad(databases, threads, over), TasksLoad(databases, tasks, over)):
                loads.append(load)
                stage.callback(load.close)
            losses = stage.enter_context(contextlib.closing(Losses(server, databases, loads, seconds)))
            stage.callback(over.set)
            url = stage.enter_context(published())
            if url is not None:
                print(f'metrics are at {url}; to watch: python -m gcp top {url}', flush=True)
            return _play(loads, losses, seconds, over, stop)
    except (ServerError, psycopg2.Error) as error:
        raise NoServerError(f'has no server: {str(error).strip()}') from error


@contextlib.contextmanager
def _found(dsn: str | None, stop: Stop) -> Iterator[Mapping[str, str]]:
    if dsn is None:
        print('starting PostgreSQL', flush=True)
        with serve(len(ENDPOINTS) * sum(CONNECTIONS.values()) + SPARE_CONNECTIONS, given_up=stop) as server:
            yield server.parameters
    else:
        try:
            parameters = parse_dsn(dsn)
        except psycopg2.ProgrammingError:  # whose words repeat the DSN
            raise NoServerError('cannot read --dsn: "key=value ..." or "postgresql://..." was expected') from None
        yield parameters


def _play(loads: Sequence[Load], losses: Losses, seconds: float, over: threading.Event, stop: Stop) -> bool:
    started = time.monotonic()
    for load in loads:
        load.start()
    with open_view(loads, losses, seconds) as view:
        due = view.interval
        while (elapsed := time.monotonic() - started) < seconds and not stop.wait(min(TICK, seconds - elapsed)):
            losses.inflict(elapsed)
            if elapsed >= due:
                view.show(elapsed)
                due += view.interval
    over.set()
    _rest(loads, stop)
    if stop():
        print('stopped')
        return False
    outcome = judge(loads, losses, seconds)
    print(outcome)
    return not outcome.faults


def _rest(loads: Sequence[Load], stop: Stop) -> None:
    """Let the workers end what they had begun; those that cannot are left behind, and missed by the judge."""
    since, hasty = time.monotonic(), None
    while not all(load.rest(0.02) for load in loads):
        now = time.monotonic()
        hasty = hasty or (now if stop() else None)
        if now - since > PATIENCE or (hasty and now - hasty > HASTE):
            return
