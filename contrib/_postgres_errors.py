"""What an error of PostgreSQL says about a connection and its endpoint: by SQLSTATE where the driver shows it, else by
the text of libpq and of the server. Knows no driver, and does no I/O.

libpq shows no SQLSTATE of a connect that failed, and servers translate their messages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from gcp.contrib._errors import BROKEN, PERMANENT, STALE, TRANSIENT, UNKNOWN_HOST, is_of_create, look_at_os
from gcp.exceptions import ErrorClass

__all__ = ['SQLSTATES', 'look_at_postgres']

#: What SQLSTATEs mean; the longest beginning counts. All others, such as 23505 or 40001, are TRANSIENT: the connection
#: is kept if it is clean. Those that mean BROKEN are TRANSIENT in a connect.
SQLSTATES: Mapping[str, ErrorClass] = MappingProxyType(
    {
        '08': BROKEN,  # connection exceptions
        '08001': TRANSIENT,  # unable to establish a connection
        '08004': TRANSIENT,  # rejected
        '25006': STALE,  # read-only transaction: the primary was demoted
        '25P03': BROKEN,  # time-out of an idle transaction
        '25P04': BROKEN,  # time-out of a transaction
        '28': PERMANENT,  # wrong password, unknown role, no entry in pg_hba.conf
        '3D000': PERMANENT,  # unknown database
        '42501': PERMANENT,  # no privilege to connect
        '42704': PERMANENT,  # unknown setting among the connect parameters
        '53300': TRANSIENT,  # too many connections
        '57P01': BROKEN,  # the session was terminated, or the server is shutting down
        '57P02': STALE,  # a crash: the server ends all sessions
        '57P03': TRANSIENT,  # the server is starting up or shutting down
        '57P04': STALE,  # the database was dropped
        '57P05': BROKEN,  # time-out of an idle session
    }
)

#: Parts of texts that a connect gets which cannot succeed before something is changed. Names in them are empty.
REFUSALS = (
    'authentication failed',
    'no password supplied',
    'password authentication is not',
    'authentication method',
    'database "" does not exist',
    'role "" does not exist',
    'pg_hba.conf',  # no entry in it, or one that rejects; in all languages
    'is not permitted to log in',
    'permission denied for database',
    'permission denied to ',
    'unrecognized configuration parameter',
    'invalid value for parameter',
    'no such database',  # of PgBouncer, whose older versions use 08P01 for all errors
    'no such user',
    'certificate verify failed',
    'certificate authentication failed',
    'certificate has expired',
    'root certificate file',
    'does not match host name',
    'server does not support SSL',
    'rejected SSL upgrade',
    'alert unknown ca',
    'alert bad certificate',
    'alert certificate',
    'private key file',
    'invalid connection option',
    'invalid dsn',
    'invalid sslmode value',
    'definition of service "" not found',
    'Permission denied',
)

#: The same from servers that speak other languages, as translated in PostgreSQL 15.
TRANSLATED = (
    'Passwort-Authentifizierung für Benutzer ""',
    'Datenbank "" existiert nicht',
    'Rolle "" existiert nicht',
    'la autentificación password falló para el usuario ""',
    'no existe la base de datos ""',
    'no existe el rol ""',
    "authentification par mot de passe échouée pour l'utilisateur",
    'la base de données "" n\'existe pas',
    'le rôle "" n\'existe pas',
    "autenticazione con password fallita per l'utente",
    'il database "" non esiste',
    'il ruolo "" non esiste',
    'のパスワード認証に失敗しました',
    'データベース""は存在しません',
    'ロール""は存在しません',
    'პაროლით ავთენტიფიკაცია მომხმარებლისთვის ""',
    'მონაცემთა ბაზა "" არ არსებობს',
    'როლი არ არსებობს: ""',
    '의 password 인증을 실패했습니다',
    '"" 데이터베이스 없음',
    '"" 롤(role) 없음',
    'не прошёл проверку подлинности',
    'база данных "" не существует',
    'роль "" не существует',
    'Lösenordsautentisering misslyckades för användare ""',
    'databasen "" existerar inte',
    'rollen "" finns inte',
    'не пройшов автентифікацію за допомогою пароля',
    'бази даних "" не існує',
    'роль "" не існує',
    'Password 认证失败',
    '数据库 "" 不存在',
    '角色 "" 不存在',
)

#: Parts of texts that say that a server was not reached.
UNREACHED = (
    'Connection refused',
    'timeout expired',
    'Connection timed out',
    'No route to host',
    'Network is unreachable',
    'Host is down',
    'No such file or directory',
)

#: Beginnings of the texts of libpq about one attempt to connect; there is one for each address and kind of encryption.
ATTEMPTS = re.compile('(?=connection to server |could not connect to server|could not translate host name )')

#: Parts of texts that say that an open connection was lost.
LOST = (
    'server closed the connection',
    'connection is closed',
    'connection is lost',
    'connection is bad',
    'connection already closed',
    'connection was closed',
    'connection has been closed',
    'consuming input failed',
    'could not receive data from server',
    'could not send data to server',
    'no connection to the server',
    'lost synchronization with server',
    'SSL SYSCALL error',
    'EOF detected',
    'terminating connection',
    'cannot switch to ',  # asyncpg: its state machine is out of step, as when the session ended in between
)

#: A name in a text, in the quotation marks of any language.
QUOTED = re.compile('"[^"]*"|»[^«]*«|«[^»]*»')


def look_at_postgres(error: BaseException, drivers_own: tuple[type[BaseException], ...]) -> ErrorClass | None:
    """Say what an error means.

    :param error: the error
    :param drivers_own: the driver's classes of errors
    """
    state = getattr(error, 'sqlstate', None) or getattr(error, 'pgcode', None)
    if isinstance(state, str):
        return _in_place(error, _look_at_state(state, str(error)))
    if isinstance(error, drivers_own) and not isinstance(error, OSError):
        return _in_place(error, _look_at_text(str(error))) or look_at_os(error)
    found = look_at_os(error)
    if found is None and isinstance(error, OSError) and is_of_create(error):  # asyncpg's own, without a number
        found = _look_at_text(str(error))
    return _in_place(error, found)


def _in_place(error: BaseException, found: ErrorClass | None) -> ErrorClass | None:
    """Return what an error means where it was raised. A connection that is being made is no loss."""
    return TRANSIENT if found in (BROKEN, STALE) and is_of_create(error) else found


def _look_at_state(state: str, text: str) -> ErrorClass:
    if state == '08P01' and _look_at_text(text) is PERMANENT:
        return PERMANENT
    known = max((prefix for prefix in SQLSTATES if state.startswith(prefix)), key=len, default=None)
    return TRANSIENT if known is None else SQLSTATES[known]


def _look_at_text(text: str) -> ErrorClass | None:
    """Say what a text of libpq, or of a driver, means. ``None``: it is about no connection."""
    found = {_look_at_attempt(attempt) for attempt in ATTEMPTS.split(QUOTED.sub('""', text))}
    if 'refused' in found and 'answered' not in found:
        return PERMANENT
    if 'unknown host' in found and found <= {'unknown host', 'no attempt'}:
        return PERMANENT
    if found != {'no attempt'}:
        return TRANSIENT
    return BROKEN if any(part in text for part in LOST) else None


def _look_at_attempt(text: str) -> str:
    """Say how an attempt to connect ended. A server that answered something else may soon answer otherwise: that it
    starts up, or that it has too many clients; then a refusal of the next attempt, without TLS, is of no account."""
    if any(part in text for part in REFUSALS + TRANSLATED):
        return 'refused'
    if any(part in text for part in UNKNOWN_HOST):
        return 'unknown host'
    if not ATTEMPTS.match(text):
        return 'no attempt'
    return 'unreached' if any(part in text for part in UNREACHED) else 'answered'
