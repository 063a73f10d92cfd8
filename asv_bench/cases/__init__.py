"""What gcp must show, in chapters: each case measures one thing and yields the rows of the table.

A case is given an effort, 1 for everything and less for less of it, and lets contenders take turns: on a machine that
does other things as well, ratios within a run hold where times do not.

rows            a line of the table, and what makes one
contest         pools under the same load, in turn
hit             an idle connection taken and given back
hooks           what each hook costs that the manager overrides
contention      threads that wait in line, and threads that never hold
tasks           the same for asyncio
endpoints       one endpoint, and a hundred thousand
memory          what idle connections and endpoints keep
expiry          idle connections that expire, all at once
spike           many requests at once for few connections
imports         what `import gcp.threading` takes
handover        a place that moves to another endpoint
sharing         endpoints that overload the total cap
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .contention import case_race, case_threads
from .endpoints import case_endpoints
from .expiry import case_expiry
from .handover import case_handover
from .hit import case_hit, case_keys
from .hooks import case_hooks
from .imports import case_imports
from .memory import case_memory
from .rows import Row
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
    'imports': case_imports,
    'handover': case_handover,
    'sharing': case_sharing,
}
