"""`gcp.contrib.django` under the real Django, in processes of their own, whose settings are of the whole process.

Django's own tests run in `tests/nightly/test_django_suite.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from peers import driver

from gcp.demo.server import Server

HEAD = """
import threading
import django
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

def configure(second=None, **changes):
    '''Set up Django with the aliases `default` and `other`; `changes` are those of `default`.'''
    common = {{'ENGINE': 'gcp.contrib.django', 'NAME': 'postgres', 'USER': {user!r}, 'HOST': {host!r}}}
    first = {{**common, 'OPTIONS': {{'pool': {{'max_size': 2, 'acquire_timeout': 60}}}}, **changes}}
    other = {{**common, 'OPTIONS': {{'pool': True}}, **(second or {{}})}}
    settings.configure(DATABASES={{'default': first, 'other': other}}, USE_TZ=True, TIME_ZONE='Africa/Nairobi')
    django.setup()

def ask(statement, alias='default'):
    from django.db import connections
    with connections[alias].cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchone()[0] if cursor.description else None

def pid(alias='default'):
    return ask('SELECT pg_backend_pid()', alias)

def end_request():
    from django.core.signals import request_finished, request_started
    request_finished.send(None)
    request_started.send(None)

def in_a_thread(work):
    seen = []
    def run():
        try:
            seen.append(work())
        except BaseException as error:
            seen.append(error)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    return seen[0]
"""

Program = Callable[[str], None]


@pytest.fixture
def program(script: Any, postgres: Server) -> Program:
    driver('django')
    driver('psycopg')
    head = HEAD.format(user=postgres.parameters['user'], host=str(postgres.parameters['host']))

    def run(source: str) -> None:
        script(head + source, '-W', 'ignore::DeprecationWarning').quietly()

    return run


def test_one_pool_serves_all_aliases_and_a_request_releases(program: Program) -> None:
    program("""
from gcp.contrib.django import process_pool
assert process_pool() is None
configure()
first, other = pid(), pid('other')
pool = process_pool()
assert pool.name == 'django'
assert (pool.stats().used, pool.stats().idle) == (2, 0)
assert set(pool.stats().endpoints) == {'default', 'other'}
end_request()
assert (pool.stats().used, pool.stats().idle) == (0, 2)
assert (pid(), pid('other')) == (first, other)
end_request()
assert in_a_thread(lambda: (pid(), end_request())[0]) == first
assert pool.stats().created == 2
""")


def test_limits_are_those_of_the_alias_and_the_error_is_one_of_django(program: Program) -> None:
    program("""
configure(OPTIONS={'pool': {'max_size': 2, 'acquire_timeout': 0}})
from django.db import OperationalError
from gcp import AcquireTimeoutError
from gcp.contrib.django import process_pool
ready, done = threading.Barrier(3), threading.Event()

def hold():
    from django.db import connections
    pid()
    ready.wait(60)
    done.wait(60)
    connections.close_all()

threads = [threading.Thread(target=hold) for _ in range(2)]
[thread.start() for thread in threads]
ready.wait(60)
try:
    pid()
    raise SystemExit('a third')
except OperationalError as error:
    assert 'max_size=2' in str(error), error
    assert isinstance(error.__cause__.__cause__, AcquireTimeoutError)
pid('other')
done.set()
[thread.join(60) for thread in threads]
pid()
assert process_pool().stats().acquires['timeout'] == 1
""")


def test_what_a_request_leaves_is_cleared_away(program: Program) -> None:
    program("""
configure()
from django.db import connection, transaction
first = pid()
assert ask('SHOW TimeZone') == 'UTC'
connection.set_autocommit(False)
ask('CREATE TEMP TABLE left_behind (id int)')
end_request()
assert pid() == first
assert connection.get_autocommit()
assert ask("SELECT to_regclass('left_behind') IS NULL")
ask("SET TIME ZONE 'Asia/Tokyo'")
end_request()
assert pid() == first
assert ask('SHOW TimeZone') == 'UTC'
try:
    with transaction.atomic():
        ask('SELECT 1')
        ask('SELECT nonsense')
except Exception:
    pass
end_request()
assert pid() == first
""")


def test_a_connection_that_is_lost_costs_one_error(program: Program) -> None:
    program("""
configure()
from django.db import OperationalError
from gcp.contrib.django import process_pool
first = pid()
ask(f'SELECT pg_terminate_backend({first}, 60000)', 'other')
try:
    pid()
    raise SystemExit('it still answers')
except OperationalError:
    pass
end_request()
assert pid() != first
end_request()
idle = pid()
end_request()
ask(f'SELECT pg_terminate_backend({idle}, 60000)', 'other')
assert pid() != idle  # it was seen to be dead before it was handed out
stats = process_pool().stats()
assert stats.created - sum(stats.closed.values()) == stats.idle + stats.used == 2
""")


def test_health_checks_ask_the_server_before_each_reuse(program: Program) -> None:
    program("""
configure(CONN_HEALTH_CHECKS=True)
from gcp.contrib.django import process_pool
from gcp.contrib.django.shared import Manager
asked = []
keepalive = Manager.keepalive
Manager.keepalive = lambda *args: asked.append(args[1]) or keepalive(*args)
for _ in range(3):
    pid()
    pid('other')
    end_request()
assert asked == ['default', 'default'], asked
""")


def test_a_forked_child_has_a_pool_of_its_own(program: Program) -> None:
    program("""
import os
configure()
from django.db import connection
from gcp.contrib.django import process_pool
first = pid()
child = os.fork()
if not child:
    connection.close()
    assert pid() != first
    end_request()
    assert process_pool().stats().created == 1
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert pid() == first
""")


def test_a_role_is_assumed(program: Program) -> None:
    program("""
configure(OPTIONS={'pool': {'max_size': 1}, 'assume_role': 'pg_monitor'})
for _ in range(3):
    assert ask('SELECT current_user') == 'pg_monitor'
    end_request()
assert ask('SELECT current_user', 'other') != 'pg_monitor'
""")


def test_without_a_pool_it_is_the_backend_of_django(program: Program) -> None:
    program("""
configure(OPTIONS={}, CONN_MAX_AGE=60)
from gcp.contrib.django import process_pool
first = pid()
end_request()
assert pid() == first
assert process_pool() is None
from django.db import connection
connection.close()
assert pid() != first
""")


def test_the_options_are_left_as_they_are(program: Program) -> None:
    program("""
options = {'min_idle': 0, 'max_size': 2, 'acquire_timeout': 60, 'leak_threshold': 5}
configure(OPTIONS={'pool': options})
first = pid()
from django.db import connection
connection.close()
assert pid() == first
connection.close_pool()
assert options == {'min_idle': 0, 'max_size': 2, 'acquire_timeout': 60, 'leak_threshold': 5}
""")


def test_contradictions_say_what_to_set(program: Program) -> None:
    program("""
configure()
from gcp.contrib.django.shared import check_options
for options, max_age, words in [
    (True, 60, "CONN_MAX_AGE=60 of 'default' contradicts OPTIONS['pool'], which wins: set CONN_MAX_AGE to 0"),
    (True, None, "CONN_MAX_AGE=None of 'default' contradicts"),
    (5, 0, "OPTIONS['pool'] of 'default' must be True or a mapping, not 5"),
    ({'min_size': 2}, 0, "OPTIONS['pool'] of 'default': use min_idle instead of min_size"),
    ({'timeout': 2}, 0, 'use acquire_timeout instead of timeout'),
    ({'max_size': 0}, 0, "OPTIONS['pool'] of 'default': limits['default'].max_size"),
    ({'max_size': 1, 'min_idle': 2}, 0, "OPTIONS['pool'] of 'default': limits['default'].min_idle"),
    ({'limits': {}}, 0, 'limits cannot be set here: give each alias its own limits'),
]:
    try:
        check_options('default', options, max_age)
        raise SystemExit(f'no error: {options}')
    except ImproperlyConfigured as error:
        assert words in str(error), error
from django.db import connection
connection.settings_dict['CONN_MAX_AGE'] = 60
try:
    pid()
    raise SystemExit('no error')
except ImproperlyConfigured as error:
    assert 'set CONN_MAX_AGE to 0' in str(error)
""")


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ("OPTIONS={'pool': {'max_sise': 2}}", "OPTIONS['pool']: "),
        (
            "OPTIONS={'pool': {'leak_threshold': 5}}, second={'OPTIONS': {'pool': {'leak_threshold': 6}}}",
            "OPTIONS['pool']: leak_threshold=6 of 'other' contradicts leak_threshold=5 of 'default'",
        ),
    ],
)
def test_aliases_that_contradict_each_other_are_named(program: Program, changes: str, words: str) -> None:
    program(f"""
configure({changes})
try:
    pid()
    raise SystemExit('no error')
except ImproperlyConfigured as error:
    assert {words!r} in str(error), error
""")


def test_without_the_driver_the_extra_is_named(script: Any) -> None:
    script("""
        import sys
        sys.modules['django'] = None
        try:
            import gcp.contrib.django.base
        except ImportError as error:
            assert 'pip install gcpool[django]' in str(error), error
            assert error.name == 'django'
        else:
            raise SystemExit('imported')
    """).quietly()
