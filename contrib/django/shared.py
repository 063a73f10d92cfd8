"""The pool of the process, and what it knows of each database alias."""

from __future__ import annotations

import atexit
import threading
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from gcp.contrib.psycopg import DbConnectionManager
from gcp.exceptions import BaseError
from gcp.limits import EndpointLimits, LimitsOf
from gcp.threading import ConnectionPool

__all__ = ['ENGINE', 'AliasPool', 'SharedPool', 'shared']

ENGINE = 'gcp.contrib.django'

#: Options of `OPTIONS['pool']` that each alias has for itself; all others are those of the process's pool.
LIMITS = ('max_size', 'min_idle', 'idle_timeout', 'max_lifetime', 'max_waiting', 'weight', 'floor')
OF_ALIAS = (*LIMITS, 'acquire_timeout')

#: What Django or this backend decides.
DECIDED = {
    'limits': "give each alias its own limits in its OPTIONS['pool']",
    'endpoint_label': 'endpoints are called after their aliases',
}

#: Options of psycopg_pool, which Django's own backend takes, and what to use here.
RENAMED = {
    'min_size': 'min_idle',
    'timeout': 'acquire_timeout',
    'max_idle': 'idle_timeout',
    'num_workers': 'connect_workers',
    'reconnect_timeout': 'connect_retry',
}


class Entry:
    """An endpoint of the pool: an alias with its parameters.

    :param key: what it is recognised by: alias, parameters, options, and whether connections are checked by a query
    :ivar endpoint: its name
    """

    def __init__(self, key: tuple[Any, ...], endpoint: str) -> None:
        self.key = key
        self.alias, self.parameters, options, self.is_checked = key
        self.timeout = options.get('acquire_timeout')
        self.endpoint = endpoint
        self.limits = EndpointLimits(**{name: options[name] for name in LIMITS if name in options})


class Manager(DbConnectionManager):
    """Connects to the databases of Django's settings. With `CONN_HEALTH_CHECKS`, each connection is checked by a query
    before its reuse, else by a look at its socket."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        super().__init__(lambda endpoint: entries[endpoint].parameters)
        self._entries = entries

    def _find(self, endpoint: str, deadline: float) -> Mapping[str, Any]:
        # no thread is needed for that, as for a function of a user's
        parameters: Mapping[str, Any] = self._entries[endpoint].parameters
        return parameters

    def check_aliveness(self, endpoint: str, conn: Any, timeout: float | None = None) -> bool:
        """Tell whether an idle connection can still be used.

        :param endpoint: its endpoint
        :param conn: the connection
        :param timeout: how long a query may take, seconds
        """
        if self._entries[endpoint].is_checked:
            return self.keepalive(endpoint, conn, timeout)
        return super().check_aliveness(endpoint, conn, timeout)


class SharedPool:
    """The pool of the process, made when its first connection is needed.

    :ivar pool: the pool, or ``None``
    """

    def __init__(self) -> None:
        self.pool: ConnectionPool[str, Any] | None = None
        self.configured: weakref.WeakSet[Any] = weakref.WeakSet()
        self._options: dict[str, Any] = {}
        self._entries: dict[str, Entry] = {}
        self._lock = threading.Lock()

    def entry(self, key: tuple[Any, ...]) -> Entry:
        """Return the endpoint of an alias and its parameters; make the pool if there is none."""
        with self._lock:
            known = [entry for entry in self._entries.values() if entry.alias == key[0]]
            for entry in known:
                if entry.key == key:
                    return entry
            own = {name: value for name, value in key[2].items() if name not in OF_ALIAS}
            if self.pool is None:
                self._options = _options_of_all({**dict(_settings()), key[0]: own})
                self.pool = _make_pool(self._entries, self._options)
            self._compare(key[0], own)
            endpoint = key[0] if not known else f'{key[0]} ({len(known) + 1})'
            self._entries[endpoint] = entry = Entry(key, endpoint)
            return entry

    def _compare(self, alias: str, own: Mapping[str, Any]) -> None:
        """Refuse options that the pool was not made with."""
        for name, value in own.items():
            if name not in self._options or self._options[name] != value:
                there = repr(self._options[name]) if name in self._options else 'its default'
                raise ImproperlyConfigured(
                    f"OPTIONS['pool'] of {alias!r}: {name}={value!r} contradicts the pool of this process, which was "
                    f'made with {there}: one pool serves all aliases; set {name} in the settings of one of them'
                )

    def expire(self, alias: str) -> None:
        """Close the connections of an alias: idle ones now, others when they are released."""
        pool = self.pool  # another thread may close it meanwhile
        if pool is not None:
            for entry in list(self._entries.values()):
                if entry.alias == alias:
                    pool.expire(entry.endpoint)

    def close(self) -> None:
        """Close the pool, and forget it."""
        with self._lock:
            pool, self.pool = self.pool, None
            self._entries = {}
        if pool is not None:
            pool.close(timeout=0)


shared = SharedPool()
atexit.register(shared.close)


class AliasPool:
    """What the backend of Django calls its pool: the part of the process's pool that belongs to an alias.

    :param wrapper: the alias's connection in a thread, `DatabaseWrapper`
    :param options: its ``OPTIONS['pool']``
    """

    def __init__(self, wrapper: Any, options: Mapping[str, Any]) -> None:
        self._wrapper = wrapper
        self._options = options

    def open(self) -> None:
        """Do nothing: there is nothing to be opened before a connection is needed."""

    def getconn(self) -> Any:
        """Acquire a connection, and tell the wrapper its endpoint.

        :raises psycopg.OperationalError: if the pool has none in time, or refuses
        """
        wrapper = self._wrapper
        parameters = {**wrapper.get_connection_params(), 'autocommit': True}
        checked = bool(wrapper.settings_dict['CONN_HEALTH_CHECKS'])
        entry = shared.entry((wrapper.alias, parameters, self._options, checked))
        pool: Any = shared.pool
        try:
            conn = pool.acquire(entry.endpoint, entry.timeout)
        except BaseError as error:
            raise wrapper.Database.OperationalError(str(error)) from error
        wrapper.endpoint = entry.endpoint
        return conn


def check_options(alias: str, options: Any, max_age: float | None) -> dict[str, Any]:
    """Return ``OPTIONS['pool']`` as a mapping.

    :param max_age: ``CONN_MAX_AGE`` of the alias
    :raises ImproperlyConfigured: if it contradicts itself or Django's settings
    """
    if options is not True and not isinstance(options, Mapping):
        raise ImproperlyConfigured(f"OPTIONS['pool'] of {alias!r} must be True or a mapping, not {options!r}")
    if max_age != 0:
        raise ImproperlyConfigured(
            f"Pooling doesn't support persistent connections. CONN_MAX_AGE={max_age!r} of {alias!r} contradicts "
            f"OPTIONS['pool'], which wins: set CONN_MAX_AGE to 0. Connections go back to the pool after each request; "
            f"how long they live is set by OPTIONS['pool']['max_lifetime']."
        )
    named = {} if options is True else dict(options)
    for name in named:
        if name in DECIDED:
            raise ImproperlyConfigured(f"OPTIONS['pool'] of {alias!r}: {name} cannot be set here: {DECIDED[name]}")
        if name in RENAMED:
            raise ImproperlyConfigured(f"OPTIONS['pool'] of {alias!r}: use {RENAMED[name]} instead of {name}")
    try:
        LimitsOf({alias: EndpointLimits(**{name: named[name] for name in LIMITS if name in named})}, {})
    except (TypeError, ValueError) as error:
        raise ImproperlyConfigured(f"OPTIONS['pool'] of {alias!r}: {error}") from error
    return named


def _settings() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each alias of the settings that has a pool of gcp, with its options of the whole pool."""
    for alias, settings in connections.settings.items():
        options = settings.get('OPTIONS', {}).get('pool')
        if settings.get('ENGINE') == ENGINE and isinstance(options, Mapping):
            yield alias, {name: value for name, value in options.items() if name not in OF_ALIAS}


def _options_of_all(given: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for alias, own in given.items():
        for name, value in own.items():
            if name in options and options[name] != value:
                raise ImproperlyConfigured(
                    f"OPTIONS['pool']: {name}={value!r} of {alias!r} contradicts {name}={options[name]!r} of "
                    f'{origin[name]!r}: one pool serves all aliases, so {name} is set once; set it for one of them'
                )
            options[name], origin[name] = value, alias
    return options


def _make_pool(entries: Mapping[str, Entry], options: Mapping[str, Any]) -> ConnectionPool[str, Any]:
    try:
        return ConnectionPool(
            Manager(entries),
            **{'name': 'django', **options},
            limits=lambda endpoint: entries[endpoint].limits if endpoint in entries else None,
        )
    except (TypeError, ValueError) as error:
        raise ImproperlyConfigured(f"OPTIONS['pool']: {error}") from error
