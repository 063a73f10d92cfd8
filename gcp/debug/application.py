"""The application behind both entry points: a request in, a response out."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from gcp.debug import page
from gcp.debug.actions import perform
from gcp.debug.events import Events
from gcp.debug.facts import collect
from gcp.debug.listening import listen
from gcp.debug.requests import Refusal, Request, Token, check_action, check_client, fields_of

__all__ = ['Application', 'Response']

MOST = 1000
METHODS = ('GET', 'HEAD', 'POST')
PHRASES = {
    200: 'OK',
    400: 'Bad Request',
    403: 'Forbidden',
    404: 'Not Found',
    405: 'Method Not Allowed',
    409: 'Conflict',
    413: 'Content Too Large',
    415: 'Unsupported Media Type',
    500: 'Internal Server Error',
    501: 'Not Implemented',
}
HTML, JSON = 'text/html; charset=utf-8', 'application/json'

#: of this process, for all applications in it
TOKEN = Token()
EVENTS = Events()
if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=EVENTS.reset_after_fork)


@dataclass(frozen=True)
class Response:
    """A response.

    :ivar status: the status code
    :ivar headers: names and values
    :ivar body: empty for HEAD
    """

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def line(self) -> str:
        """The status with its phrase."""
        return f'{self.status} {PHRASES[self.status]}'


class Application:
    """Answers requests for the page.

    :param allow_actions: whether POST requests with the token of this process may expire, suspend, resume and retire
    :param allow_remote: whether other hosts may see the page
    :param top: how many rows a table has, at most
    :raises TypeError: for an argument of a wrong type
    :raises ValueError: for a `top` that is out of range
    """

    def __init__(self, *, allow_actions: bool = False, allow_remote: bool = False, top: int = 50) -> None:
        for name, value in (('allow_actions', allow_actions), ('allow_remote', allow_remote)):
            if not isinstance(value, bool):
                raise TypeError(f'{name} must be True or False, not {value!r}')
        if isinstance(top, bool) or not isinstance(top, int):
            raise TypeError(f'top must be a number of rows, not {type(top).__name__}: {top!r}')
        if not 1 <= top <= MOST:
            raise ValueError(f'top must be from 1 to {MOST}, not {top}')
        self._allow_actions = allow_actions
        self._allow_remote = allow_remote
        self._top = top
        listen(EVENTS, TOKEN.key)

    def respond(self, request: Request) -> Response:
        """Answer a request. Takes up to a tenth of a second of a busy process; call it in no event loop."""
        as_json = is_json(request)
        try:
            if request.method not in METHODS:
                raise Refusal(405, f'{request.method} is not answered here')
            check_client(request, self._allow_remote)
            status, kind, body = self._act(request) if request.method == 'POST' else self._look(request)
        except Refusal as refusal:
            status, said = refusal.status, str(refusal)
            kind, body = (JSON, page.as_json({'error': said})) if as_json else (HTML, page.message('Not done', said))
        return self._response(status, kind, body, request.method == 'HEAD')

    def _look(self, request: Request) -> tuple[int, str, str]:
        form = request.parameter('format') or 'html'
        if form not in ('html', 'json'):
            raise Refusal(400, 'format must be html or json')
        actions = self._allow_actions
        facts = collect(self._top, TOKEN.key(), EVENTS, request.parameter('pool'), actions=actions)
        if form == 'json':
            said = {'allowed': actions, **({'token': TOKEN.value()} if actions else {})}
            return 200, JSON, page.as_json({**facts, 'actions': said})
        return 200, HTML, page.render(facts, TOKEN.value() if actions else None)

    def _act(self, request: Request) -> tuple[int, str, str]:
        fields = fields_of(request) if self._allow_actions else {}
        check_action(request, self._allow_actions, TOKEN, fields)
        result = perform(fields, TOKEN.key(), EVENTS)
        if is_json(request):
            return 200, JSON, page.as_json(result)
        return 200, HTML, page.message('Done' if result['done'] else 'Begun', result['message'])

    def _response(self, status: int, kind: str, body: str, head: bool) -> Response:
        data = body.encode('utf-8', 'replace')
        headers = [
            ('Content-Type', kind),
            ('Content-Length', str(len(data))),
            ('Cache-Control', 'no-store'),
            ('Content-Security-Policy', page.policy()),
            ('X-Content-Type-Options', 'nosniff'),
            ('X-Frame-Options', 'DENY'),
            (
                'Referrer-Policy',
                'same-origin',
            ),  # with no-referrer, the page's own forms would come from the origin "null"
            ('Cross-Origin-Resource-Policy', 'same-origin'),
            ('Cross-Origin-Opener-Policy', 'same-origin'),
        ]
        if status == 405:
            headers.append(('Allow', ', '.join(METHODS)))
        return Response(status, headers, b'' if head else data)


def is_json(request: Request) -> bool:
    """Whether the answer is to be JSON."""
    accepted = request.headers.get('accept', '')
    wants: Any = request.parameter('format')
    return wants == 'json' or (request.method == 'POST' and accepted.startswith('application/json'))
