"""What a pool looked like at one moment: frozen records over one consistent snapshot of the core."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Generic, TypeVar

__all__ = ['EndpointStats', 'PoolStats']

EndpointT = TypeVar('EndpointT')


@dataclass(frozen=True)
class Counts:
    """Connections by state, waiters, and what has happened so far.

    :ivar idle: connections that wait to be acquired
    :ivar used: connections that are checked out (a check or a hook in progress counts)
    :ivar creating: connections that are being created
    :ivar disposing: connections that are being disposed of
    :ivar waiting: acquires that wait in line
    :ivar created: connections created, ever
    :ivar closed: connections closed, ever, by reason
    :ivar acquires: acquires that ended, ever, by result: hit, created, waited, timeout, cancelled, error
    :ivar releases: releases, ever, by outcome: idle, handoff, discarded
    """

    idle: int
    used: int
    creating: int
    disposing: int
    waiting: int
    created: int
    closed: Mapping[str, int] = field(repr=False)
    acquires: Mapping[str, int] = field(repr=False)
    releases: Mapping[str, int] = field(repr=False)

    @property
    def size(self) -> int:
        """Places taken: connections in any state, those being created and disposed of included."""
        return self.idle + self.used + self.creating + self.disposing


@dataclass(frozen=True)
class EndpointStats(Counts, Generic[EndpointT]):
    """One endpoint's part.

    :ivar endpoint: the endpoint, as it was first given
    """

    endpoint: EndpointT


@dataclass(frozen=True)
class PoolStats(Counts, Generic[EndpointT]):
    """The whole pool, endpoints that are gone included in what has happened so far.

    :ivar name: the pool's name
    :ivar is_closed: whether the pool was closed
    :ivar endpoints: by endpoint, those that have a connection or a waiter now
    """

    name: str
    is_closed: bool
    endpoints: Mapping[EndpointT, EndpointStats[EndpointT]] = field(repr=False)


def picture(
        name: str, is_closed: bool, total: dict[str, Any], endpoints: list[tuple[EndpointT, dict[str, Any]]],
) -> PoolStats[EndpointT]:
    """Make the records of a core's snapshot."""
    return PoolStats(
        name=name,
        is_closed=is_closed,
        endpoints=MappingProxyType({key: EndpointStats(endpoint=key, **frozen(counts)) for key, counts in endpoints}),
        **frozen(total),
    )


def frozen(counts: dict[str, Any]) -> dict[str, Any]:
    return {name: MappingProxyType(value) if isinstance(value, dict) else value for name, value in counts.items()}
