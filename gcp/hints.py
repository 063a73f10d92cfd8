"""What the options of other pools are called here. Imported only for the error about an unknown argument.

Names are in snake_case; `hint` also finds them in camelCase, as HikariCP and MongoDB spell theirs. Where pools use one
name for different things, psycopg_pool's meaning counts."""

from __future__ import annotations

import re
from typing import Final

__all__ = ['HINTS', 'hint']

MANAGER = 'pass it to the connection manager, which creates the connections'
CREATE = 'do it in create of the connection manager'
CHECK = 'check_aliveness of the connection manager is called before each reuse'
NOT_OFFERED = 'not offered:'

#: Advice, and the names that it answers.
_ADVICE: Final[tuple[tuple[str, str], ...]] = (
    # times
    (
        'use acquire_timeout, in seconds',
        'timeout pool_timeout connection_timeout max_wait wait_timeout wait_queue_timeout_ms',
    ),
    (
        'use idle_timeout, in seconds',
        'max_idle max_idle_time max_idle_time_ms max_inactive_connection_lifetime conn_max_idle_time keepalive_expiry '
        'keepalive_timeout',
    ),
    ('use max_lifetime, in seconds', 'pool_recycle recycle conn_max_age conn_max_lifetime'),
    ('use leak_threshold, in seconds', 'leak_detection_threshold'),
    ('use max_uses', 'max_queries maxusage'),
    ('acquire_timeout limits the check, too; ' + CHECK, 'validation_timeout'),
    # sizes
    (
        'use max_size for one endpoint, and total_max_size for all endpoints together',
        'maximum_pool_size max_pool_size maxsize maxconn maxconnections max_connections max_active max_total '
        'max_open_conns',
    ),
    (
        'use max_size, which is pool_size and max_overflow together; min_idle connections are kept open',
        'pool_size max_overflow',
    ),
    ('use max_size', 'limit_per_host max_connections_per_host'),
    ('use total_max_size', 'limit'),
    (
        'use min_idle, and call warm_up to open them in advance',
        'min_size minsize minconn mincached minimum_idle min_pool_size init_size initial_size',
    ),
    (
        'use min_idle for the idle connections that are kept, and idle_timeout for all others',
        'maxcached max_keepalive_connections max_idle_conns',
    ),
    ('one pool serves any number of endpoints; total_max_size limits their connections', 'num_pools'),
    ('use max_waiting', 'max_wait_queue_size wait_queue_multiple'),
    (
        'use reserve, and acquire with priority=1 what is to have those places',
        'reserve_pool reserve_pool_size reserved_connections superuser_reserved_connections min_reserved',
    ),
    ('use reserve_timeout, in seconds', 'reserve_pool_timeout'),
    (f'{NOT_OFFERED} a connection has one holder at a time; use max_size', 'maxshared'),
    # names and telemetry
    ('use name', 'pool_name logging_name pool_logging_name'),
    (
        'use registry for Prometheus, and meter_provider for OpenTelemetry',
        'metric_registry metrics_tracker_factory register_mbeans health_check_registry',
    ),
    ("use the logger 'gcp', and tracing for spans", 'echo echo_pool'),
    # hooks of the manager
    (CHECK, 'check ping pool_pre_ping pre_ping connection_test_query validation_query test_on_borrow'),
    (
        'use keepalive_interval, after which idle connections are checked in the background',
        'health_check_interval keepalive_time test_while_idle',
    ),
    ('use check_interval', 'alive_bypass_window alive_bypass_window_ms'),
    (
        'check_aliveness of the connection manager decides whether a connection is dead',
        'isfatal failures exception_override_class_name',
    ),
    (
        'use create of the connection manager, which is called for each new connection',
        'configure init setsession connection_init_sql creator connect redis_connect_func',
    ),
    ('use on_acquire of the connection manager, which is called before a connection is handed out', 'setup'),
    (
        'use on_release of the connection manager, which is called when a connection is released',
        'reset reset_on_return pool_reset_on_return pool_reset_session',
    ),
    ('use create, on_acquire, on_release and on_connection_dead of the connection manager', 'events pool_events'),
    (CREATE, 'auto_commit autocommit read_only transaction_isolation isolation_level catalog schema'),
    # what the manager is told
    (
        MANAGER,
        'conninfo kwargs dsn url jdbc_url connect_args connect_kwargs connection_kwargs connection_class record_class '
        'host port username user password passfile credentials credential_provider db dbname database server_settings '
        'driver_class_name data_source data_source_class_name data_source_properties dialect ssl ssl_context '
        'command_timeout statement_cache_size max_cached_statement_lifetime max_cacheable_statement_size socket_timeout '
        'socket_connect_timeout socket_keepalive decode_responses client_name protocol cache_factory headers proxy '
        'maint_notifications_config',
    ),
    # what has no counterpart
    (
        f'{NOT_OFFERED} a pool is open once it is built, and connects at the first acquire',
        'open initialization_fail_timeout',
    ),
    (
        'use connect_retry, within the time-out of the acquire',
        'reconnect_timeout reconnect_failed retry retries retry_on_timeout retry_on_error',
    ),
    ('call acquire with timeout=0 to fail at once instead of waiting', 'block blocking'),
    (
        'use connect_workers to create connections in the background, and background_collector to dispose of expired ones',
        'num_workers thread_factory scheduled_executor',
    ),
    (
        f'{NOT_OFFERED} base connections (min_idle) are used first in, first out, all others last in, first out',
        'use_lifo pool_use_lifo queue_class',
    ),
    (f'{NOT_OFFERED} call release, or use connection() in a with statement', 'close_returns force_close'),
    (f'{NOT_OFFERED} an asyncio pool belongs to the event loop that first uses it', 'loop'),
    (f'{NOT_OFFERED} choose gcp.threading.ConnectionPool or gcp.asyncio.ConnectionPool', 'pool poolclass'),
    (f'{NOT_OFFERED} a check runs outside the transactions of the program; {CHECK}', 'isolate_internal_queries'),
    (f'{NOT_OFFERED} close() closes a pool for good', 'allow_pool_suspension'),
)

#: The advice for each name.
HINTS: Final[dict[str, str]] = {name: advice for advice, names in _ADVICE for name in names.split()}

_WORD = re.compile(r'(?<=[a-z0-9])(?=[A-Z])')


def snake_case(name: str) -> str:
    """Return a name in snake_case, whether it is in camelCase or already in snake_case."""
    return _WORD.sub('_', name).lower()


def hint(name: str) -> str | None:
    """Return what to use instead of another pool's option.

    :param name: the option, in snake_case or camelCase
    :return: ``None`` when it is not known
    """
    return HINTS.get(snake_case(name))
