"""Runs the demo: sets up the server, databases and loads, runs the loads, evaluates the result, and cleans up."""

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
from gcp.demo.metrics import PAGE, published
from gcp.demo.server import ServerError, serve
from gcp.demo.stop import Stop
from gcp.demo.summary import evaluate
from gcp.demo.view import open_view
from gcp.demo.work import ACQUIRE_TIMEOUT, Load

__all__ = ['NoServerError', 'run']

SPARE_CONNECTIONS = 12
TICK = 0.05
FINISH_TIMEOUT = 2 * ACQUIRE_TIMEOUT  # how long workers may take to finish their queries, seconds
STOP_TIMEOUT = 0.8  # the same, after SIGINT or SIGTERM


class NoServerError(Exception):
    """There is no server."""


def run(seconds: float, threads: int, tasks: int, dsn: str | None, stop: Stop) -> bool:
    """Run the demo.

    :param seconds: the duration of the load, seconds
    :param threads: the number of threads
    :param tasks: the number of tasks
    :param dsn: the server to use; ``None`` starts one
    :param stop: set by a signal
    :return: whether every acquire was served and every ended connection replaced
    :raises NoServerError: when there is no server, or it has failed
    """
    logging.getLogger('gcp').addHandler(logging.NullHandler())  # the view shows what the pools would log
    over = threading.Event()
    try:
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(_server(dsn, stop))
            databases = stack.enter_context(prepared(server, keep=dsn is None))
            loads: list[Load] = []
            for load in (ThreadsLoad(databases, threads, over), TasksLoad(databases, tasks, over)):
                loads.append(load)
                stack.callback(load.close)
            losses = stack.enter_context(contextlib.closing(Losses(server, databases, loads, seconds)))
            stack.callback(over.set)
            url = stack.enter_context(published())
            if url is not None:
                print(f'metrics are at {url}; to watch: python -m gcp top {url}', flush=True)
                print(f'the pools are shown at {url.removesuffix("/metrics")}{PAGE}', flush=True)
            return _run_loads(loads, losses, seconds, over, stop)
    except (ServerError, psycopg2.Error) as error:
        raise NoServerError(f'has no server: {str(error).strip()}') from error


@contextlib.contextmanager
def _server(dsn: str | None, stop: Stop) -> Iterator[Mapping[str, str]]:
    if dsn is None:
        print('starting PostgreSQL', flush=True)
        with serve(len(ENDPOINTS) * sum(CONNECTIONS.values()) + SPARE_CONNECTIONS, given_up=stop) as server:
            yield server.parameters
    else:
        try:
            parameters = parse_dsn(dsn)
        except psycopg2.ProgrammingError:  # its message repeats the DSN
            raise NoServerError('cannot read --dsn: "key=value ..." or "postgresql://..." was expected') from None
        yield parameters


def _run_loads(loads: Sequence[Load], losses: Losses, seconds: float, over: threading.Event, stop: Stop) -> bool:
    started = time.monotonic()
    for load in loads:
        load.start()
    with open_view(loads, losses, seconds) as view:
        due = view.interval
        while (elapsed := time.monotonic() - started) < seconds and not stop.wait(min(TICK, seconds - elapsed)):
            losses.end_due(elapsed)
            if elapsed >= due:
                view.show(elapsed)
                due += view.interval
    over.set()
    _wait_finished(loads, stop)
    if stop():
        print('stopped')
        return False
    outcome = evaluate(loads, losses, seconds)
    print(outcome)
    return not outcome.faults


def _wait_finished(loads: Sequence[Load], stop: Stop) -> None:
    """Wait until the workers have finished. Those that do not finish in time are reported as acquires not served."""
    since, stopped = time.monotonic(), None
    while not all(load.wait_finished(0.02) for load in loads):
        now = time.monotonic()
        stopped = stopped or (now if stop() else None)
        if now - since > FINISH_TIMEOUT or (stopped and now - stopped > STOP_TIMEOUT):
            return
