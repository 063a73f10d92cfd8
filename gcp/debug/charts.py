"""Drawings without styles and scripts of their own, which a content security policy would forbid: small SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from gcp.explanation import span

__all__ = ['bar', 'chart']

WIDTH, HEIGHT, COLUMN = 152, 40, 8


def bar(parts: Sequence[tuple[str, int]], limit: int, label: str) -> str:
    """Draw counts against their limit.

    :param parts: classes and counts, from the left
    :param limit: what the whole width stands for
    :param label: what the bar says, in words
    """
    whole = max(limit, sum(count for _, count in parts), 1)
    drawn, left = [], 0.0
    for kind, count in parts:
        width = 100 * count / whole
        if count:
            drawn.append(f'<rect class="{kind}" x="{left:.4g}" width="{width:.4g}" height="10"/>')
        left += width
    text = escape(label)
    return (
        f'<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" role="img" aria-label="{text}">'
        f'{"".join(drawn)}</svg>'
    )


def chart(title: str, times: Mapping[str, Any]) -> str:
    """Draw a histogram: a column for each bucket, as high as the logarithm of its count, so that the few slow ones are
    to be seen beside the many fast ones."""
    counts, bounds = times['counts'], times['bounds']
    most = math.log1p(max(counts)) or 1.0
    step = WIDTH / len(counts)
    path = ''.join(
        f'M{i * step:.1f} {HEIGHT}v-{max(2.0, HEIGHT * math.log1p(count) / most):.1f}h{step - 1:.1f}V{HEIGHT}z'
        for i, count in enumerate(counts)
        if count
    )
    figures = 'none yet'
    if times['count']:
        figures = f'{times["count"]:,} · p50 {span(times["p50"])} · p99 {span(times["p99"])}'
    return (
        f'<figure><figcaption><b>{escape(title)}</b> {figures}</figcaption>'
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(title)}: {figures}"><path d="{path}"/></svg>'
        f'<div class="axis"><span>{span(bounds[0])}</span><span>{span(bounds[len(bounds) // 2])}</span>'
        f'<span>{span(bounds[-1])}</span></div></figure>'
    )
