"""Looking at a pool while it works: the calls that both pools share."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Generic

from gcp._core import explain_endpoint, find_holders, list_waiters
from gcp.managers import EndpointT

if TYPE_CHECKING:
    from gcp.explanation import Explanation, Waiter
    from gcp.holders import HolderInfo

__all__ = ['Inspection']


class Inspection(Generic[EndpointT]):
    """What an engineer asks a pool that does not answer. Part of both pools."""

    def holders(self, endpoint: EndpointT | None = None) -> list[HolderInfo]:
        """Return who holds connections, the longest held first.

        :param endpoint: whose connections; ``None``: of all endpoints. For one that the pool does not know, the list
                         is empty
        :raises TypeError: if the endpoint cannot be hashed
        """
        pool: Any = self
        return find_holders(pool, endpoint, sys.maxsize)

    def explain(self, endpoint: EndpointT) -> Explanation[EndpointT]:
        """Say why an acquire of an endpoint would wait now: for which limit, for a connect, for the breaker. Nothing
        changes by asking.

        :param endpoint: the endpoint; of one that the pool does not know, the answer is empty
        :raises TypeError: if the endpoint cannot be hashed
        """
        from gcp.explanation import explanation

        pool: Any = self
        return explanation(endpoint, explain_endpoint(pool._core, endpoint))

    def waiters(self, endpoint: EndpointT | None = None) -> list[Waiter[EndpointT]]:
        """Return the acquires that wait, the oldest first, each with its age and what blocks it.

        :param endpoint: those of one endpoint; ``None``: all
        :raises TypeError: if the endpoint cannot be hashed
        """
        from gcp.explanation import Waiter

        pool: Any = self
        return [Waiter(*found) for found in list_waiters(pool._core, None if endpoint is None else (endpoint,), -1)]
