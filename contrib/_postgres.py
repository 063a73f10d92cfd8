"""What the PostgreSQL managers share beside what those of all databases do: messages, notices, and SQLSTATEs. Knows no
driver."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from gcp.contrib._database import Manager, Verdict
from gcp.contrib._postgres_errors import look_at_postgres
from gcp.exceptions import ErrorClass

__all__ = ['ASYNC_MESSAGES', 'MessageReader', 'Postgres', 'error_message', 'judge_notices']

#: Beginnings of the SQLSTATEs of a session that ends: connection exceptions, and operator intervention such as
#: admin_shutdown and idle_session_timeout. 57014, query_canceled, is none of them.
SESSION_ENDS = ('08', '57P', '25P03', '25P04')

#: Severities of the messages of a session that goes on, and of one that does not. Servers translate them, save in a
#: field of their own that psycopg2 does not show, and that servers and poolers before PostgreSQL 9.6 do not send.
HARMLESS = ('NOTICE', 'WARNING', 'INFO', 'LOG', 'DEBUG')
FATAL = ('FATAL', 'ERROR', 'PANIC')

#: First bytes of the messages that a server may send to an idle connection: NoticeResponse, NotificationResponse,
#: ParameterStatus. See "Asynchronous Operations" and "Message Formats" in the PostgreSQL documentation.
ASYNC_MESSAGES = frozenset([b'N', b'A', b'S'])

ConnectionT = TypeVar('ConnectionT')


class Postgres(Manager[ConnectionT]):
    """Knows what errors of PostgreSQL mean."""

    def _look_at_error(self, error: BaseException) -> ErrorClass | None:
        return look_at_postgres(error, self._errors)

    def _ends_session(self, error: BaseException) -> bool:
        """Tell whether an error of the server is one after which it ends the session: by its SQLSTATE."""
        state = getattr(error, 'sqlstate', None) or getattr(error, 'pgcode', None)
        return isinstance(state, str) and state.startswith(SESSION_ENDS)


class MessageReader:
    """Reads the types of the messages that an idle connection receives, in pieces of any length."""

    def __init__(self) -> None:
        self._header = b''
        self._body_left = 0

    def are_async(self, data: bytes) -> bool:
        """Tell whether the messages that begin in the data are all asynchronous ones."""
        while data:
            skipped = min(self._body_left, len(data))
            self._body_left -= skipped
            self._header, data = self._header + data[skipped : skipped + 5], data[skipped + 5 :]
            if self._header and self._header[:1] not in ASYNC_MESSAGES:
                return False
            if len(self._header) >= 5:
                self._header, data = self._header[:5], self._header[5:] + data
                self._body_left = int.from_bytes(self._header[1:], 'big') - 4  # the length includes itself
                self._header = b''
        return True


def error_message(data: bytes) -> str | None:
    """Return the text of the first ErrorResponse among complete messages, if there is one."""
    while len(data) >= 5:
        end = 1 + int.from_bytes(data[1:5], 'big')
        if data[:1] == b'E':
            for field in data[5:end].split(b'\0'):
                if field[:1] == b'M':
                    return field[1:].decode(errors='replace')
        if end < 5:
            break
        data = data[end:]
    return None


def judge_notices(severities: Iterable[str]) -> Verdict:
    """Tell from the severities of what an idle connection was told whether it is alive: ask, when one is translated.

    :param severities: the severities, or texts that begin with them
    """
    verdict = Verdict.ALIVE
    for severity in severities:
        if severity.startswith(FATAL):
            return Verdict.DEAD
        if not severity.startswith(HARMLESS):
            verdict = Verdict.ASK
    return verdict
