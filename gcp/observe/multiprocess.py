"""Several processes."""

from __future__ import annotations

from gcp.observe.telemetry import Telemetry


def join(telemetry: Telemetry) -> None:
    """Let a pool be seen by the other processes."""
