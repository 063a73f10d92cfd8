"""The commands `python -m gcp expire`, `suspend`, `resume` and `retire`: they ask the debug page of another process."""

from __future__ import annotations

import base64
import ipaddress
import json
import sys
import urllib.error
import urllib.request
from typing import Any, NoReturn
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

__all__ = ['main']

TIMEOUT = 10.0  # seconds
LARGEST = 4 * 1024 * 1024  # of an answer, bytes
FAILED, REFUSED = 1, 3


class CommandError(Exception):
    """Why a command has done nothing.

    :ivar status: the exit status
    """

    def __init__(self, message: str, status: int = FAILED) -> None:
        super().__init__(message)
        self.status = status


def main(action: str, url: str, pool: str, endpoint: str | None = None, timeout: float | None = None) -> int:
    """Have a process do something with a pool.

    :param action: ``expire``, ``suspend``, ``resume`` or ``retire``
    :param url: the address of its debug page
    :param pool: the name of the pool
    :param endpoint: the endpoint, as it is shown on the page, or a string by itself; ``None``: all endpoints
    :param timeout: of `retire`, seconds: then connections in use are taken by force
    :return: the exit status: 0: done, or begun; 1: it has failed; 3: the process does not allow it
    """
    try:
        print(perform(action, page_address(url), pool, endpoint, timeout))
    except CommandError as error:
        print(f'gcp {action}: {error}', file=sys.stderr)
        return error.status
    return 0


def perform(action: str, url: str, pool: str, endpoint: str | None, timeout: float | None) -> str:
    """Do it, and return what the process says.

    :raises CommandError: if it was not done
    """
    found, url = ask(url)
    actions = found.get('actions')
    if not isinstance(actions, dict) or 'pools' not in found:
        raise CommandError(f'{shown(url)} is no debug page of gcp')
    if not actions.get('allowed'):
        raise CommandError('actions are not allowed there: its page was made without allow_actions=True', REFUSED)
    fields = {'action': action, 'pool': pool, 'endpoint': endpoint, 'timeout': timeout}
    body = json.dumps({name: value for name, value in fields.items() if value is not None})
    headers = {'Content-Type': 'application/json', 'X-Gcp-Token': str(actions.get('token'))}
    answer, _ = ask(url, body.encode(), headers)
    return printable(answer.get('message'))


def page_address(given: str) -> str:
    """Return the address at which the page answers with JSON.

    :raises CommandError: if this is no such address
    """
    try:
        parts = urlsplit(given if '://' in given else f'http://{given}')
        if parts.scheme not in ('http', 'https') or not parts.hostname:
            raise ValueError
    except ValueError:
        raise CommandError('an address such as http://127.0.0.1:8000/debug/pools was expected') from None
    query = [(name, value) for name, value in parse_qsl(parts.query) if name not in ('format', 'pool')]
    query.append(('format', 'json'))
    return urlunsplit((parts.scheme, parts.netloc, parts.path or '/debug/pools', urlencode(query), ''))


class SameHost(urllib.request.HTTPRedirectHandler):
    """Follows a redirect of a question to the same host: frameworks add a slash where an application is mounted. The
    token goes nowhere else."""

    def redirect_request(self, request: Any, file: Any, code: int, message: str, headers: Any, url: str) -> Any:
        same = urlsplit(url)[:2] == urlsplit(request.full_url)[:2]
        if request.get_method() != 'GET' or not same:
            return None
        return super().redirect_request(request, file, code, message, headers, url)


def ask(url: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[dict[str, Any], str]:
    """Ask the page. Credentials in the URL are sent, and never shown.

    :return: its answer, and the address that has answered

    :raises CommandError: if it does not answer, or refuses
    """
    parts = urlsplit(url)
    credentials, _, address = parts.netloc.rpartition('@')
    target = urlunsplit((parts.scheme, address, parts.path, parts.query, ''))
    request = urllib.request.Request(target, body, {'Accept': 'application/json', **(headers or {})})
    if credentials:
        request.add_header('Authorization', f'Basic {base64.b64encode(unquote(credentials).encode()).decode()}')
    no_proxy = [urllib.request.ProxyHandler({})] * is_loopback(parts.hostname or '')
    try:
        with urllib.request.build_opener(SameHost, *no_proxy).open(request, timeout=TIMEOUT) as response:
            found = json.loads(response.read(LARGEST))
            path = urlsplit(response.geturl()).path
    except urllib.error.HTTPError as error:
        refuse(error, url)
    except ValueError:
        raise CommandError(f'{shown(url)} is no debug page of gcp') from None
    except OSError as error:
        reason = getattr(error, 'reason', error)
        said = getattr(reason, 'strerror', None) or str(reason) or type(reason).__name__
        raise CommandError(f'{shown(url)}: {printable(said)}') from None
    except Exception as error:  # an answer that is not HTTP
        raise CommandError(f'{shown(url)}: {type(error).__name__}') from None
    if not isinstance(found, dict):
        raise CommandError(f'{shown(url)} is no debug page of gcp')
    return found, urlunsplit((parts.scheme, parts.netloc, path, parts.query, ''))


def refuse(error: urllib.error.HTTPError, url: str) -> NoReturn:
    """Raise what an answer says that is no success."""
    with error:
        try:
            said = str(json.loads(error.read(LARGEST))['error'])
        except Exception:
            said = f'{shown(url)}: {error.code} {error.reason}'
    raise CommandError(printable(said), REFUSED if error.code == 403 else FAILED)


def is_loopback(host: str) -> bool:
    """Whether a host is this one, which must not be asked for through a proxy."""
    try:
        return host == 'localhost' or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def shown(url: str) -> str:
    """Show an address without credentials and without its query."""
    parts = urlsplit(url)
    return printable(urlunsplit((parts.scheme, parts.netloc.rpartition('@')[2], parts.path, '', '')))


def printable(text: object) -> str:
    """Return a text that commands no terminal."""
    return ''.join(c if c.isprintable() else '\N{REPLACEMENT CHARACTER}' for c in str(text))
