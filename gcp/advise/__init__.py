"""`gcp advise`: how big each pool on a page of metrics should be, and why.

The pools are known by their exported metrics only, so they can be in any process, on any host."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

from gcp.advise.report import as_json, as_text
from gcp.advise.rules import advise
from gcp.advise.source import observe
from gcp.top.page import PageError
from gcp.top.watch import without_credentials

__all__ = ['main']

FAILED = 1


def main(targets: Sequence[str], interval: float | None, as_data: bool) -> int:
    """Print what is advised for each pool.

    :param targets: a page of metrics or a Prometheus server, or two pages of the same process, the earlier one first
    :param interval: seconds between two readings; of a Prometheus server: how far to look back. ``None``: one reading
    :param as_data: print JSON
    :return: the exit status: 0; 1: a page could not be read or has no pool
    """
    try:
        observed = observe(targets, interval)
    except PageError as error:
        print(f'gcp advise: {error}', file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return 0
    advices = [advise(pool) for pool in observed]
    shown = ', '.join(map(without_credentials, targets))
    try:
        print(json.dumps(as_json(shown, advices), indent=2) if as_data else as_text(advices), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it at exit
        return FAILED
    return 0
