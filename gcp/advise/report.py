"""Prints advice: as text, or as data for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gcp.advise.rules import UNUSED, Advice, Load, duration
from gcp.top.page import Pool, printable

__all__ = ['as_json', 'as_text']


def as_text(advices: Sequence[Advice]) -> str:
    """Return the advice for each pool, with its reasoning."""
    return '\n\n'.join('\n'.join(_block(advice)) for advice in advices)


def _block(advice: Advice) -> list[str]:
    lines = [f'{_name(advice.load.figures.pool)}: {advice.verdict}', *(f'  {line}' for line in _figures(advice.load))]
    for finding in advice.findings:
        lines += [f'  - {finding.verdict}: {printable(finding.reason)}', f'    {finding.action}']
    if not advice.findings:
        lines.append(
            '  Too few acquires to say anything.' if advice.verdict == UNUSED else '  Nothing to change at this load.'
        )
    return lines


def _name(pool: Pool) -> str:
    target = ', '.join(f'{name}={value}' for name, value in pool.target)
    return printable(f'{pool.name} ({target})' if target else pool.name)


def _figures(load: Load) -> list[str]:
    """Return the figures on which the advice is based."""
    if load.seconds is None:
        span = 'since the pool was built, at an unknown time'
    else:
        span = f'in {load.seconds:.0f} s' + (', since the process started' if load.figures.is_first else '')
    lines = [
        f'{load.acquires:.0f} acquires {span}: {load.hit_ratio:.0%} hits, {load.waited:.0%} waited or timed out, '
        f'{load.timeouts:.0f} time-outs, {load.creates.count} creations'
    ]
    if load.rate is not None and load.uses.count:
        lines.append(
            f'{load.rate:.3g} acquires/s x {duration(load.mean_use)} mean use = {load.in_use:.1f} connections in use '
            "on average (Little's law)"
        )
    if failed := load.results.get('error', 0.0):
        lines.append(f'{failed:.0f} more acquires failed, with errors of the connection manager')
    if load.has_own_limits:
        lines.append(
            'some endpoints have limits of their own, which the page does not show: max_size is that of the pool'
        )
    waits = [f'p{100 * q:g} {duration(load.wait(q))}' for q in (0.5, 0.95, 0.99)]
    lines.append(f'waits: {", ".join(waits)}; max_size={load.max_size}, total_max_size={load.total_max_size}')
    return lines


def as_json(shown: str, advices: Sequence[Advice]) -> dict[str, Any]:
    """Return the advice as data.

    :param shown: where the figures are from
    :param advices: the advice
    """
    return {'source': shown, 'pools': [_data(advice) for advice in advices]}


def _data(advice: Advice) -> dict[str, Any]:
    load = advice.load
    return {
        'pool': load.figures.pool.name,
        'target': dict(load.figures.pool.target),
        'verdict': advice.verdict,
        'findings': [
            {'verdict': finding.verdict, 'reason': finding.reason, 'action': finding.action}
            for finding in advice.findings
        ],
        'recommended': dict(advice.options),
        'seconds': load.seconds,
        'since_start': load.figures.is_first,
        'acquires': load.acquires,
        'acquires_per_second': load.rate,
        'mean_use_seconds': load.mean_use,
        'in_use': load.in_use,
        'busiest_endpoint': load.busiest,
        'busiest_share': load.share,
        'hit_ratio': load.hit_ratio,
        'waited_ratio': load.waited,
        'timeouts': load.timeouts,
        'creations_per_acquire': load.creations,
        'closed': load.closed,
        'wait_seconds': {f'p{100 * q:g}': load.wait(q) for q in (0.5, 0.95, 0.99)},
        'max_size': load.max_size,
        'total_max_size': load.total_max_size,
        'min_idle': load.min_idle,
    }
