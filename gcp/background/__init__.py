"""What the pool does for no caller: it connects in the background, refills kept endpoints, checks idle connections.

The core says what there is to do (`gcp._core.next_job`). Here it is done, by threads (`gcp.background.threads`) or
tasks (`gcp.background.tasks`). A worker does not keep its pool alive, and ends with it."""

from __future__ import annotations

import logging
import sys

from gcp._core import Watch
from gcp.disposal import log
from gcp.exceptions import PoolNotReadyError

__all__ = ['raise_errors']


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
