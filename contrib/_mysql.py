"""What the managers of MySQL and MariaDB share: which state of a session they know, and what errors mean."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from gcp.contrib._errors import BROKEN, PERMANENT, STALE, TRANSIENT, is_of_create, look_at_os
from gcp.exceptions import ErrorClass

__all__ = ['ERRORS', 'RESET_CONNECTION', 'look_at_mysql', 'status_of']

#: What error numbers mean. All others, such as 1062 or 1213, are TRANSIENT: the connection is kept if it is clean.
#: Those that mean BROKEN are TRANSIENT in a connect.
ERRORS: Mapping[int, ErrorClass] = MappingProxyType(
    {
        1040: TRANSIENT,  # too many connections
        1044: PERMANENT,  # no privilege for the database
        1045: PERMANENT,  # wrong user or password
        1049: PERMANENT,  # unknown database
        1053: BROKEN,  # the server is shutting down
        1129: PERMANENT,  # the host is blocked because of too many failed connects
        1130: PERMANENT,  # the host may not connect
        1203: TRANSIENT,  # too many connections of this user
        1226: TRANSIENT,  # the user is over a limit
        1251: PERMANENT,  # the server wants an authentication that the client does not know
        1290: STALE,  # the server is read-only: the primary was demoted
        1317: TRANSIENT,  # the query was killed
        1524: PERMANENT,  # an authentication that is not loaded
        1698: PERMANENT,  # the user may not log in by a password
        1836: STALE,  # the server is in read-only mode
        1927: BROKEN,  # the connection was killed (MariaDB)
        2006: BROKEN,  # the server has gone away
        2013: BROKEN,  # lost in the middle of a query
        2014: BROKEN,  # commands out of sync
        2026: PERMANENT,  # TLS fails
        2055: BROKEN,  # lost
        2059: PERMANENT,  # an authentication that the client cannot load
        2061: PERMANENT,  # an authentication that needs TLS
        4031: BROKEN,  # the session was idle for too long (MySQL)
    }
)

#: The command COM_RESET_CONNECTION: ends the transaction, and leaves nothing of the session's state but the database.
RESET_CONNECTION = 0x1F

#: Bits of the status that the server sends with each answer.
IN_TRANSACTION, AUTOCOMMIT = 1, 2


def status_of(conn: Any) -> int:
    """Return of the last status that the server has sent whether a transaction is open, and whether it commits by
    itself."""
    return int(conn.server_status) & (IN_TRANSACTION | AUTOCOMMIT)


def look_at_mysql(error: BaseException, drivers_own: tuple[type[BaseException], ...]) -> ErrorClass | None:
    """Say what an error means.

    :param error: the error
    :param drivers_own: the driver's classes of errors
    """
    number = error.args[0] if isinstance(error, drivers_own) and error.args else None
    if isinstance(number, int) and not isinstance(error, OSError):
        if number == 0:
            return BROKEN  # used after it was closed
        if number in (2002, 2003):
            return None  # it could not connect: its cause says why
        found = ERRORS.get(number, TRANSIENT)
    else:
        found = look_at_os(error)  # type: ignore[assignment]
    return TRANSIENT if found is BROKEN and is_of_create(error) else found
