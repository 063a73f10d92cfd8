"""The targets of `make must-show`, in chapters: each case measures one thing and yields rows of the table.

A case is given an effort, 1 for a full measurement and less for a shorter one. Contenders take turns: on a shared
machine, ratios within a run are reliable where times are not.

rows            a row of the table, and the functions that make one
contest         pools under the same load, in turn
hit             acquiring and releasing an idle connection
hooks           what each hook that the manager overrides costs
contention      threads that wait, and threads that never hold
tasks           the same for asyncio
endpoints       one endpoint, and a hundred thousand
memory          the memory of idle connections and endpoints
expiry          idle connections that expire, all at once
spike           many requests at once for few connections
restart         PostgreSQL that is restarted under load
orm             sessions of SQLAlchemy's ORM that share ten connections
imports         what `import gcp.threading` takes
handover        a place of the total cap that moves to another endpoint
disconnects     a web service whose clients disconnect at random
sharing         endpoints that overload the total cap
reserve         health checks of a pool that is overloaded
scrape          a page of metrics, and `stats()`, of a pool of many endpoints
scaling         two threads at the same time, where there is no GIL
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .contention import case_race, case_threads
from .disconnects import case_disconnects
from .endpoints import case_endpoints
from .expiry import case_expiry
from .handover import case_handover
from .hit import case_hit, case_keys
from .hooks import case_hooks
from .imports import case_imports
from .memory import case_memory
from .orm import case_orm
from .reserve import case_reserve
from .restart import case_restart
from .rows import Row
from .scaling import case_scaling
from .scrape import case_scrape
from .sharing import case_sharing
from .spike import case_spike
from .tasks import case_tasks

__all__ = ['CASES', 'Row']

CASES: dict[str, Callable[[float], Iterator[Row]]] = {
    'hit': case_hit,
    'keys': case_keys,
    'hooks': case_hooks,
    'threads': case_threads,
    'race': case_race,
    'tasks': case_tasks,
    'endpoints': case_endpoints,
    'memory': case_memory,
    'expiry': case_expiry,
    'spike': case_spike,
    'restart': case_restart,
    'orm': case_orm,
    'imports': case_imports,
    'handover': case_handover,
    'disconnects': case_disconnects,
    'sharing': case_sharing,
    'reserve': case_reserve,
    'scrape': case_scrape,
    'scaling': case_scaling,
}
