"""Other pools and queues behind one small interface (`Peer`), so that the same code measures each.

    peer = THREADS['psycopg_pool']
    if not peer.missing:
        with peer.open(8) as pool:            # TASKS: async with
            take, give = peer.worker(pool)    # for loads.in_threads; TASKS: for loads.in_tasks
            pair = peer.pair(pool)            # for turns.take_turns; TASKS: by way of turns.in_loop

peer            what a peer is, and the loops that measure it
fakes           fake connections, as each library needs them
in_threads      the blocking ones, and a bare deque as the unit
in_tasks        those for asyncio
contests        more threads, or tasks, than connections
"""

from __future__ import annotations

from .in_tasks import TASKS, stop_servers
from .in_threads import THREADS, UNIT
from .peer import Peer

__all__ = ['TASKS', 'THREADS', 'UNIT', 'Peer', 'stop_servers']
