"""Reads pages of metrics, in the Prometheus text format or OpenMetrics, and extracts the metrics of gcp."""

from __future__ import annotations

import base64
import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from math import isfinite
from typing import Any, Final
from urllib.parse import unquote, urlsplit, urlunsplit

from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from gcp.observe.names import METRICS, Metric

__all__ = ['Figures', 'Page', 'PageError', 'Pool', 'gather', 'is_file', 'load', 'parse', 'read']

TIMEOUT: Final = 5.0
LARGEST: Final = 64 << 20
ACCEPT: Final = 'text/plain;version=0.0.4;q=1,application/openmetrics-text;version=1.0.0;q=0.5,*/*;q=0.1'

START_TIME: Final = 'process_start_time_seconds'
OURS: Final = re.compile(rf'(?:# *(?:TYPE|HELP|UNIT) +)?(?:gcpool_|{START_TIME})|# EOF')
SERIES: Final[Mapping[str, Metric]] = {series: metric for metric in METRICS for series in metric.samples}

Labels = tuple[tuple[str, str], ...]
Figures = dict[str, dict[Labels, float]]
"""Values of one pool, by the name of the series and by its labels other than the pool's and the target's."""


class PageError(Exception):
    """A page is missing or cannot be read. The message says why, and contains no credentials."""


@dataclass(frozen=True, slots=True)
class Pool:
    """The identity of a pool. Merged pages, such as those of a federation, have the labels of targets, too.

    :ivar name: its name
    :ivar target: labels that gcp does not set, such as job and instance
    """

    name: str
    target: Labels


@dataclass(frozen=True, slots=True)
class Page:
    """The contents of a page.

    :ivar pools: the figures of each pool
    :ivar started: the start time of each target's process, where the page has it, seconds since the epoch
    :ivar written: the time of the page, seconds since the epoch
    """

    pools: Mapping[Pool, Figures]
    started: Mapping[Labels, float]
    written: float


# --- parsing ---


def parse(text: str, written: float) -> Page:
    """Read a page in either format.

    :raises PageError: when the metrics of gcp in it are malformed
    """
    lines = [line for line in text.splitlines() if OURS.match(line)]
    is_openmetrics = '# EOF' in lines[-1:]
    read = read_openmetrics if is_openmetrics else read_text
    try:
        return gather(samples(read('\n'.join([*lines, '']))), written)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise PageError(f'not a page of metrics: {printable(str(error)) or type(error).__name__}') from error


def gather(found: Iterable[tuple[str, dict[str, str], float]], written: float) -> Page:
    """Return a page of samples: the name of each, its labels and its value. Those of others are left out."""
    pools: dict[Pool, Figures] = defaultdict(lambda: defaultdict(dict))
    started: dict[Labels, float] = {}
    for name, labels, value in found:
        if name == START_TIME:
            started[tuple(sorted(labels.items()))] = value
        elif name in SERIES and 'pool' in labels and isfinite(value):
            pool, own = owner(labels, SERIES[name])
            pools[pool][name][own] = value
    return Page(pools, started, written)


def samples(families: Iterable[Any]) -> Iterator[tuple[str, dict[str, str], float]]:
    for family in families:
        for sample in family.samples:
            yield sample.name, sample.labels, sample.value


def owner(labels: Mapping[str, str], metric: Metric) -> tuple[Pool, Labels]:
    """Return the pool of a sample, and the labels that distinguish it from other samples of the pool."""
    own = {*metric.labels, 'le'} - {'pool'}
    target = tuple(sorted(item for item in labels.items() if item[0] not in own and item[0] != 'pool'))
    return Pool(labels['pool'], target), tuple(item for item in sorted(labels.items()) if item[0] in own)


def printable(text: str) -> str:
    """Replace characters that could control a terminal."""
    return ''.join(char if char.isprintable() else '\N{REPLACEMENT CHARACTER}' for char in text)


# --- reading ---


def read(target: str) -> Page:
    """Read a page.

    :param target: a URL, ``host:port``, the name of a file, or ``-``
    :raises PageError: when it cannot be read
    """
    return parse(*load(target))


def is_file(target: str) -> bool:
    """Tell whether a target is the name of a file, and not standard input or an address."""
    if target == '-' or '://' in target:
        return False
    return os.path.exists(target) or not re.fullmatch(r'[\w.-]+:\d+(/.*)?', target)


def load(target: str) -> tuple[str, float]:
    """Return the text of a page, and when it was written, seconds since the epoch.

    :param target: a URL, ``host:port``, the name of a file, or ``-``
    :raises PageError: when it cannot be read
    """
    try:
        if target == '-':
            return sys.stdin.read(), time.time()
        return read_file(target) if is_file(target) else (fetch(target), time.time())
    except urllib.error.HTTPError as error:
        error.close()
        raise PageError(f'{error.code} {printable(str(error.reason))}') from None
    except OSError as error:
        reason = getattr(error, 'reason', error)
        raise PageError(printable(getattr(reason, 'strerror', None) or str(reason) or type(reason).__name__)) from None
    except UnicodeDecodeError:
        raise PageError('not a page of metrics: not UTF-8') from None
    except PageError:
        raise
    except Exception as error:  # a reply that is not HTTP, an invalid URL
        raise PageError(f'{type(error).__name__}: {printable(str(error))}') from None


def read_file(name: str) -> tuple[str, float]:
    with open(name, encoding='utf-8') as file:
        return file.read(LARGEST), os.fstat(file.fileno()).st_mtime


def fetch(target: str) -> str:
    """Fetch a page. The default path is /metrics. Credentials in the URL are sent, and never shown."""
    parts = urlsplit(target if '://' in target else f'http://{target}')
    if parts.scheme not in ('http', 'https'):
        raise PageError('neither http:// nor https://')
    credentials, _, address = parts.netloc.rpartition('@')
    request = urllib.request.Request(
        urlunsplit((parts.scheme, address, parts.path.strip('/') and parts.path or '/metrics', parts.query, '')),
        headers={'Accept': ACCEPT},
    )
    if credentials:
        request.add_header('Authorization', f'Basic {base64.b64encode(unquote(credentials).encode()).decode()}')
    opener = urllib.request.build_opener(*[urllib.request.ProxyHandler({})] * is_loopback(parts.hostname or ''))
    with opener.open(request, timeout=TIMEOUT) as response:
        text: str = response.read(LARGEST).decode()
        return text


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine, which must not be asked for through a proxy."""
    try:
        return host == 'localhost' or ip_address(host).is_loopback
    except ValueError:
        return False
