"""Guarantee 13 (docs/guarantees.md): at the end of the interpreter, nothing hangs and nothing is printed to stderr.

Each case is a script in its own interpreter, also in development mode with warnings as errors."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Any

import pytest
from gil import needs_gil

Run = Callable[..., Any]

THREADS = """
import os, signal, sys, threading, time
import gcp.threading
from gcp.exceptions import ConnectionPoolClosedError
from gcp.testing import *

manager = FakeManager()
pool = gcp.threading.ConnectionPool(manager, max_size=2, min_idle=0,
                                    idle_timeout=COLLECT, background_collector=COLLECTOR)

def spawn(function, *args):
    def act():
        try:
            function(*args)
        except ConnectionPoolClosedError:
            pass
    threading.Thread(target=act, daemon=True).start()

def until(predicate):
    deadline = time.monotonic() + 60
    while not predicate():
        assert time.monotonic() < deadline
        time.sleep(0.001)
"""

IN_FLIGHT_IN_THREADS = {
    'nothing': 'pass',
    'idle connections': "pool.release(pool.acquire('db'), 'db')",
    'a held connection': "held = pool.acquire('db')",
    'a lease': "lease = pool.connection('db'); lease.__enter__()",
    'a waiter': """
        held = [pool.acquire('db') for _ in range(2)]
        spawn(pool.acquire, 'db')
        until(lambda: pool.stats().waiting == 1)
    """,
    'a creation': """
        manager.create.does(never())
        spawn(pool.acquire, 'db')
        until(lambda: manager.create.running)
    """,
    'a check': """
        manager.check_aliveness.does(never())
        pool.release(pool.acquire('db'), 'db')
        spawn(pool.acquire, 'db')
        until(lambda: manager.check_aliveness.running)
    """,
    'a release': """
        manager.on_release.does(never())
        spawn(pool.release, pool.acquire('db'), 'db')
        until(lambda: manager.on_release.running)
    """,
    'a disposal': """
        manager.dispose.does(never())
        manager.on_release.does(error(OSError()))
        spawn(lambda: pool.release(pool.acquire('db'), 'db'))
        until(lambda: manager.dispose.running)
    """,
    'a disposal of the collector': """
        manager.dispose.does(never())
        pool.release(pool.acquire('db'), 'db')
        until(lambda: not COLLECTOR or COLLECT > 1 or manager.dispose.running)
    """,
    'a close': """
        held = pool.acquire('db')
        spawn(pool.close)
        until(lambda: pool.closed)
    """,
    'busy threads': """
        def work(endpoint):
            while True:
                with pool.connection(endpoint):
                    pass
        for endpoint in 'abcabc':
            spawn(work, endpoint)
        until(lambda: len(manager.calls) > 200)
    """,
}

# Endings: the text, the exit status, and whether a thread that dies of it may say so.
ENDINGS = {
    'end of the script': ('', 0),
    'sys.exit': ('sys.exit(3)', 3),
    'a forced close': ('pool.close(timeout=0.05)', 0),
    'SIGTERM': ('os.kill(os.getpid(), signal.SIGTERM); time.sleep(5)', -15),
    'SIGTERM turned into an exit': (
        """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(4))
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(5)
    """,
        4,
    ),
    'atexit closes': ('import atexit; atexit.register(pool.close, 0.05)', 0),
}


def threads_script(in_flight: str, ending: str, collector: bool, collect: float) -> str:
    if in_flight == 'a check':  # of a connection that must not expire before
        collect = 60
    head = THREADS.replace('COLLECTOR', str(collector)).replace('COLLECT', str(collect))
    body = textwrap.dedent(IN_FLIGHT_IN_THREADS[in_flight]).replace('COLLECTOR', str(collector))
    return '\n'.join([head, body.replace('COLLECT', str(collect)), ENDINGS[ending][0]])


@pytest.mark.parametrize('in_flight', IN_FLIGHT_IN_THREADS)
def test_threads(script: Run, in_flight: str, thorough: bool) -> None:
    """Each thing in flight, with a plain end, and in development mode; with and without a collector."""
    ways: list[tuple[tuple[str, ...], bool]] = [(('-X', 'dev', '-W', 'error'), True), ((), False)]
    for options, collector in ways[: 2 if thorough else 1]:
        script(threads_script(in_flight, 'end of the script', collector, 0.01), *options, timeout=60).quietly()


@pytest.mark.parametrize('ending', ENDINGS)
def test_threads_end_in_every_way(script: Run, ending: str, thorough: bool) -> None:
    for in_flight in ('busy threads', *(('a waiter', 'a disposal of the collector') if thorough else ())):
        source = threads_script(in_flight, ending, True, 60 if in_flight == 'a waiter' else 0.01)
        script(source, '-X', 'dev', '-W', 'error', timeout=60).quietly(status=ENDINGS[ending][1])


@needs_gil('the names of modules are gone before what they refer to')
def test_a_pool_in_a_global_of_a_module_that_goes_away(script: Run) -> None:
    script(
        """
        import gcp.threading, types, sys
        from gcp.testing import BareFakeManager
        module = types.ModuleType('settings')
        sys.modules['settings'] = module
        module.pool = gcp.threading.ConnectionPool(BareFakeManager(), background_collector=True)
        module.lease = module.pool.connection('db')
        module.lease.__enter__()
        class Late:
            def __del__(self, pool=module.pool):
                pool.stats()
                with pool.connection('late', timeout=0):
                    pass
        module.late = Late()
    """,
        '-X',
        'dev',
        '-W',
        'error',
    ).quietly()


def test_a_pool_that_outlives_the_modules_of_the_package(script: Run) -> None:
    """Another module keeps the globals, and the pool among them, until what is left is collected."""
    pytest.importorskip('prometheus_client')
    script(
        """
        import prometheus_client
        import gcp.threading
        from gcp.testing import BareFakeManager

        prometheus_client.kept = lambda: pool
        with gcp.threading.ConnectionPool(BareFakeManager()) as pool:
            with pool.connection('db'):
                pass
        """
    ).quietly()


def test_ctrl_c_in_a_blocked_acquire(script: Run) -> None:
    ended = script(
        """
        import gcp.threading, os, signal, threading
        from gcp.testing import BareFakeManager
        pool = gcp.threading.ConnectionPool(BareFakeManager(), max_size=1, background_collector=True)
        holder = threading.Thread(target=pool.acquire, args=('db',))
        holder.start()
        holder.join()
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            pool.acquire('db')
        except KeyboardInterrupt:
            print('interrupted', pool.stats().waiting)
    """,
        '-X',
        'dev',
        '-W',
        'error',
        '-W',
        'ignore:pool',  # it is dropped at the end
        timeout=60,
    )
    assert ended.quietly() == 'interrupted 0\n'


ASYNCIO = """
import asyncio, os, signal, sys, threading, time
import gcp.asyncio
from gcp.testing import *

gcp.asyncio.ConnectionPool(AsyncFakeManager())      # the first imports telemetry; -X dev tells of what takes long
manager = AsyncFakeManager()
tasks = []

def spawn(coroutine):
    tasks.append(asyncio.ensure_future(coroutine))

async def until(predicate):
    deadline = time.monotonic() + 60
    while not predicate():
        assert time.monotonic() < deadline
        await asyncio.sleep(0)

async def main():
    pool = gcp.asyncio.ConnectionPool(manager, max_size=2, min_idle=0, idle_timeout=COLLECT,
                                      background_collector=COLLECTOR)
    if KEPT:
        globals()['pool'] = pool
    BODY
"""

IN_FLIGHT_IN_TASKS = {
    'nothing': 'pass',
    'idle connections': "await pool.release(await pool.acquire('db'), 'db')",
    'a held connection': "held = await pool.acquire('db')",
    'a lease': "lease = pool.connection('db'); await lease.__aenter__()",
    'a never awaited acquire': "awaitable = pool.acquire('db')",
    'a waiter': """
        held = [await pool.acquire('db') for _ in range(2)]
        spawn(pool.acquire('db'))
        await until(lambda: pool.stats().waiting == 1)
    """,
    'a waiter with a deadline': """
        held = [await pool.acquire('db') for _ in range(2)]
        spawn(pool.acquire('db', timeout=60))
        await until(lambda: pool.stats().waiting == 1)
    """,
    'a creation': """
        manager.create.does(never())
        spawn(pool.acquire('db', timeout=60))
        await until(lambda: manager.create.running)
    """,
    'a check': """
        manager.check_aliveness.does(never())
        await pool.release(await pool.acquire('db'), 'db')
        spawn(pool.acquire('db'))
        await until(lambda: manager.check_aliveness.running)
    """,
    'a release': """
        manager.on_release.does(never())
        spawn(pool.release(await pool.acquire('db'), 'db'))
        await until(lambda: manager.on_release.running)
    """,
    'a disposal': """
        manager.dispose.does(never())
        await pool.release(await pool.acquire('db'), 'db')
        await asyncio.sleep(0.02)
        async def use():
            async with pool.connection('other'):
                pass
        spawn(use())
        await until(lambda: manager.dispose.running or COLLECT > 1)
    """,
    'a close': """
        held = await pool.acquire('db')
        spawn(pool.close())
        await until(lambda: pool.closed)
    """,
    'busy tasks': """
        async def work(endpoint):
            while True:
                async with pool.connection(endpoint):
                    await asyncio.sleep(0)
        for endpoint in 'abcabc':
            spawn(work(endpoint))
        await until(lambda: len(manager.calls) > 200)
    """,
}

ASYNCIO_ENDINGS = {
    'end of asyncio.run': ('asyncio.run(main())', 0),
    'sys.exit in the loop': (
        """
        async def leave():
            await main()
            sys.exit(3)
        asyncio.run(leave())
    """,
        3,
    ),
    'SIGTERM turned into a cancellation': (
        """
        async def stay():
            me = asyncio.current_task()
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, me.cancel)
            await main()
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(5)
        try:
            asyncio.run(stay())
        except asyncio.CancelledError:
            pass
    """,
        0,
    ),
    'a loop that is just closed': (
        """
        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
        for task in asyncio.all_tasks(loop):
            task._log_destroy_pending = False
        loop.close()
    """,
        0,
    ),
}


def asyncio_script(in_flight: str, ending: str, collector: bool, kept: bool) -> str:
    body = textwrap.indent(textwrap.dedent(IN_FLIGHT_IN_TASKS[in_flight]), '    ').strip()
    head = ASYNCIO.replace('BODY', body).replace('COLLECTOR', str(collector)).replace('KEPT', str(kept))
    collect = '60' if in_flight == 'a check' else '0.01'
    # In its debug mode asyncio warns of a step that took long, as one does on a busy machine. Errors are still shown.
    # A lease that is dropped before the loop has ended is warned of.
    calm = "import logging\nfor name in ('asyncio', 'gcp'): logging.getLogger(name).setLevel(logging.ERROR)"
    return '\n'.join([calm, head.replace('COLLECT', collect), textwrap.dedent(ASYNCIO_ENDINGS[ending][0])])


@pytest.mark.parametrize('in_flight', IN_FLIGHT_IN_TASKS)
def test_asyncio(script: Run, in_flight: str, thorough: bool) -> None:
    """Each thing in flight at the end of `asyncio.run`; the pool dies with it, or is kept to the interpreter's end."""
    ignore_never_awaited = ('-W', 'ignore:coroutine')  # only of an acquire that nobody awaits, and only if at all
    strict = ('-X', 'dev', '-W', 'error', '-W', 'ignore:pool')  # the pool is dropped without a close
    ways: list[tuple[tuple[str, ...], bool, bool]] = [(strict, True, False), ((), False, True)]
    for options, collector, kept in ways[: 2 if thorough else 1]:
        more = ignore_never_awaited if in_flight == 'a never awaited acquire' else ()
        script(asyncio_script(in_flight, 'end of asyncio.run', collector, kept), *options, *more, timeout=60).quietly()


@pytest.mark.parametrize('ending', ASYNCIO_ENDINGS)
def test_asyncio_ends_in_every_way(script: Run, ending: str, thorough: bool) -> None:
    for in_flight in ('a held connection', 'busy tasks', *(('idle connections', 'a close') if thorough else ())):
        if ending == 'a loop that is just closed' and in_flight in ('a close', 'busy tasks'):
            continue  # the script's own tasks are what is noisy there
        source = asyncio_script(in_flight, ending, True, True)
        script(source, timeout=60).quietly(status=ASYNCIO_ENDINGS[ending][1])


def test_ctrl_c_in_a_loop_with_everything_in_flight(script: Run) -> None:
    for in_flight in ('a waiter', 'a creation', 'a close', 'busy tasks'):
        source = asyncio_script(in_flight, 'end of asyncio.run', True, True).replace(
            'asyncio.run(main())',
            """
async def stay():
    await main()
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.sleep(5)
try:
    asyncio.run(stay())
except KeyboardInterrupt:
    print('interrupted')
""",
        )
        assert script(source, '-X', 'dev', '-W', 'error', timeout=60).quietly() == 'interrupted\n'


def test_an_async_pool_that_is_used_from_several_runs_says_so(script: Run) -> None:
    out = script(
        """
        import asyncio, gcp.asyncio
        from gcp.testing import AsyncBareFakeManager
        pool = gcp.asyncio.ConnectionPool(AsyncBareFakeManager())
        async def use():
            async with pool.connection('db'):
                pass
        asyncio.run(use())
        try:
            asyncio.run(use())
        except RuntimeError as e:
            print(type(e).__name__, e)
    """,
        '-X',
        'dev',
        '-W',
        'error',
    ).quietly()
    assert out.startswith('RuntimeError') and 'loop' in out
