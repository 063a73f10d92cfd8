"""A pool that is steered through the debug page."""

from __future__ import annotations

from typing import Any

import gcp.threading


class Steered(gcp.threading.ConnectionPool[Any, Any]):
    """A pool that notes what it is told."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.told: list[Any] = []

    def expire(self, endpoint: Any = None) -> None:
        self.told.append(('expire', endpoint))

    def suspend(self, endpoint: Any = None, mode: str = 'wait') -> None:
        self.told.append(('suspend', endpoint))

    def resume(self, endpoint: Any = None) -> None:
        self.told.append(('resume', endpoint))

    def retire(self, endpoint: Any, timeout: float | None = None) -> None:
        self.told.append(('retire', endpoint, timeout))
