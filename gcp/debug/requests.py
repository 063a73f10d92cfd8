"""Which requests are answered: one set of rules for WSGI and ASGI."""

from __future__ import annotations

import hmac
import ipaddress
import json
import os
import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

__all__ = ['LONGEST_BODY', 'Refusal', 'Request', 'Token', 'check_action', 'check_client', 'fields_of']

LONGEST_BODY = 64 * 1024
HEADER = 'x-gcp-token'


@dataclass(frozen=True)
class Request:
    """A request, as far as it matters.

    :ivar method: in upper case
    :ivar client: the address of the client; empty: it came through a Unix socket
    :ivar scheme: ``http`` or ``https``
    :ivar headers: by name in lower case
    :ivar query: the query string
    :ivar body: of a POST
    """

    method: str
    client: str
    scheme: str
    headers: Mapping[str, str]
    query: str = ''
    body: bytes = field(default=b'', repr=False)

    def parameter(self, name: str) -> str | None:
        """Return a parameter of the query, or None. Of several, the last one counts."""
        found = parse_qs(self.query, keep_blank_values=True, max_num_fields=20).get(name)
        return found[-1] if found else None


class Refusal(Exception):
    """The answer to a request that is not served."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Token:
    """What a request for an action has to show: random, and another one in each process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pid = 0
        self._secret = ''

    def value(self) -> str:
        """Return the token of this process. A forked child has its own."""
        with self._lock:
            if self._pid != os.getpid():
                self._pid, self._secret = os.getpid(), secrets.token_urlsafe(24)
            return self._secret

    def key(self) -> bytes:
        """Return a key for ids that mean nothing to other processes."""
        return self.value().encode()


# --- who asks ---


def check_client(request: Request, allow_remote: bool) -> None:
    """Refuse what does not come from this host, or is addressed to a name that is not this host's: a page of another
    site whose name was made to lead to this address (DNS rebinding).

    :raises Refusal: with 403
    """
    if allow_remote:
        return
    if request.client and not is_loopback(request.client):
        raise Refusal(403, 'this page answers to this host only; allow_remote=True lets others see it')
    if came_through_proxy(request.headers):
        raise Refusal(403, 'this request came through a proxy; this page answers to this host only')
    if not is_own_name(request.headers.get('host', '')):
        raise Refusal(403, 'the Host header names neither localhost nor a loopback address')


def is_loopback(address: str) -> bool:
    """Whether an address is of this host alone."""
    try:
        found = ipaddress.ip_address(address.partition('%')[0])
    except ValueError:
        return False
    mapped = getattr(found, 'ipv4_mapped', None)
    return bool((mapped or found).is_loopback)


def came_through_proxy(headers: Mapping[str, str]) -> bool:
    """Whether a proxy on this host says that it forwards a request of another one."""
    named = [part.strip() for part in headers.get('x-forwarded-for', '').split(',') if part.strip()]
    named += [headers['x-real-ip'].strip()] if 'x-real-ip' in headers else []
    return 'forwarded' in headers or not all(is_loopback(address) for address in named)


def is_own_name(host: str) -> bool:
    """Whether a Host header can only mean this host."""
    try:
        name = (urlsplit(f'//{host}').hostname or '').rstrip('.')
    except ValueError:
        return False
    return name == 'localhost' or name.endswith('.localhost') or is_loopback(name)


# --- who acts ---


def check_action(request: Request, allow_actions: bool, token: Token, fields: Mapping[str, str]) -> None:
    """Refuse an action that is not allowed, comes from another site, or does not show the token.

    :raises Refusal: with 403
    """
    if not allow_actions:
        raise Refusal(403, 'actions are not allowed here: the page was made without allow_actions=True')
    site = request.headers.get('sec-fetch-site')
    if site not in (None, 'same-origin'):
        raise Refusal(403, 'this request comes from another site')
    origin = request.headers.get('origin')
    if origin is not None and not is_same_origin(origin, request):
        raise Refusal(403, 'this request comes from another origin')
    given = request.headers.get(HEADER) or fields.get('token') or ''
    if not hmac.compare_digest(given.encode('utf-8', 'replace'), token.value().encode()):
        raise Refusal(403, 'the token is missing, or is that of another process: load the page again')


def is_same_origin(origin: str, request: Request) -> bool:
    """Whether an Origin header names the host that was asked. Its scheme may differ: TLS may end at a proxy."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    host = request.headers.get('host', '')
    return parts.scheme in ('http', 'https') and bool(host) and parts.netloc.lower() == host.lower()


def fields_of(request: Request) -> dict[str, str]:
    """Return the fields of a form, or of a JSON object.

    :raises Refusal: with 400, 413 or 415, if it is neither
    """
    if len(request.body) > LONGEST_BODY:
        raise Refusal(413, f'a body has at most {LONGEST_BODY} bytes')
    kind = request.headers.get('content-type', '').partition(';')[0].strip().lower()
    try:
        if kind == 'application/json':
            found = json.loads(request.body)
            return {str(name): str(value) for name, value in found.items() if value is not None}
        if kind == 'application/x-www-form-urlencoded':
            form = parse_qs(request.body.decode(), keep_blank_values=True, max_num_fields=20)
            return {name: values[-1] for name, values in form.items()}
    except (ValueError, AttributeError, RecursionError):
        raise Refusal(400, 'the body is neither a form nor a JSON object') from None
    raise Refusal(415, 'a form or a JSON object was expected')
