"""What the pool does for no caller: it connects in the background, refills kept endpoints, checks idle connections.

The core says what there is to do (`gcp._core.next_job`). Here it is done, by threads (`gcp.background.threads`) or
tasks (`gcp.background.tasks`). A worker does not keep its pool alive, and ends with it."""

from __future__ import annotations

import logging
import sys
from typing import Any, Generic

from gcp._core import Watch, expire_connections, resume_endpoints
from gcp.disposal import log
from gcp.exceptions import PoolNotReadyError
from gcp.managers import EndpointT

__all__ = ['Steering', 'raise_errors']


class Steering(Generic[EndpointT]):
    """What is done with endpoints in use at once, the same way by threads and by tasks."""

    def expire(self, endpoint: EndpointT | None = None) -> None:
        """Let no connection be handed out again that was opened before now, or whose connect has begun. Idle ones are
        disposed of now, used ones when they are released. `wait_expired` waits until they are gone.

        :param endpoint: the endpoint; ``None``: all. One that the pool does not know has none
        """
        pool: Any = self
        expire_connections(pool, endpoint)

    def resume(self, endpoint: EndpointT | None = None) -> None:
        """End what `suspend` began: acquires are served again, those first that have waited longest. Does nothing to an
        endpoint that is not suspended.

        :param endpoint: the endpoint, as it was suspended by itself; ``None``: all, and each that was suspended by
                         itself
        """
        pool: Any = self
        resume_endpoints(pool, endpoint)


def raise_errors(watch: Watch, logger: logging.Logger, pool: str) -> None:
    """Raise why endpoints could not be warmed up, if one could not.

    :param pool: the pool's name
    :raises ExceptionGroup: if there are several errors (Python 3.11); before, the first is raised, the others logged
    """
    errors = watch.raised()
    try:
        watch.conclude()
    except PoolNotReadyError as not_ready:
        if not errors:
            raise
        errors.append(not_ready)
    if len(errors) > 1 and sys.version_info >= (3, 11):
        raise BaseExceptionGroup(f'{pool}: {len(errors)} endpoints could not be warmed up', errors)  # noqa: F821
    for error in errors[1:]:
        log(logger, '%s: an endpoint could not be warmed up: %r', pool, error)
    if errors:
        raise errors[0]
