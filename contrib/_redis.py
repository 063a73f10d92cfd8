"""What the two Redis managers share: endpoints, credentials, and the state of a session. Does no I/O.

Parameters hold passwords, so nothing here puts them, or a part of them, into an error or a repr."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from ssl import SSLContext
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import redis
from redis.credentials import CredentialProvider

from gcp.contrib._endpoints import Directory, Parameters, call_user, call_user_async
from gcp.contrib._tcp import TcpEndpoint, check_endpoint, decode_scope

__all__ = [
    'IRREVERSIBLE',
    'RESETTABLE',
    'REVERSIBLE',
    'ClosedError',
    'Credentials',
    'Deadline',
    'RedisEndpoint',
    'Secret',
    'ServerDirectory',
    'ServerSettings',
    'Session',
    'client_state',
]

RedisEndpoint = TcpEndpoint | str | Path
Secret = str | Callable[[], str | Awaitable[str]]
Command = Sequence[Any]

#: Changes of a session's state that a command reverts, in the order in which to revert them.
REVERSIBLE = {'MULTI': ('DISCARD',), 'WATCH': ('UNWATCH',), 'SELECT': ('SELECT',)}  # with the database

#: Commands of the user that revert such changes.
REVERTS = {'EXEC': ('MULTI', 'WATCH'), 'DISCARD': ('MULTI', 'WATCH'), 'UNWATCH': ('WATCH',)}

#: Changes that `RESET` and a new authentication revert.
RESETTABLE = {
    *REVERSIBLE,
    'ASKING',
    'AUTH',
    'CLIENT CACHING',
    'CLIENT REPLY',
    'CLIENT SETNAME',
    'CLIENT TRACKING',
    'HELLO',
    'READONLY',
    'READWRITE',
    'RESET',
}

#: Commands after which a connection cannot be used for others any more, or whose effect is not known.
IRREVERSIBLE = {
    'MONITOR',
    'PSUBSCRIBE',
    'PSYNC',
    'QUIT',
    'SCRIPT DEBUG',
    'SSUBSCRIBE',
    'SUBSCRIBE',
    'SYNC',
    'unknown commands',
}

WITH_EFFECT = {*RESETTABLE, *IRREVERSIBLE}

#: Commands whose second word is a subcommand.
CONTAINERS = {'CLIENT', 'SCRIPT'}

#: Subcommands of `CLIENT` that do not change the session; `SETINFO` only sets a label.
WITHOUT_EFFECT = {
    'CLIENT',
    'CLIENT GETNAME',
    'CLIENT GETREDIR',
    'CLIENT HELP',
    'CLIENT ID',
    'CLIENT INFO',
    'CLIENT KILL',
    'CLIENT LIST',
    'CLIENT PAUSE',
    'CLIENT SETINFO',
    'CLIENT TRACKINGINFO',
    'CLIENT UNBLOCK',
    'CLIENT UNPAUSE',
}


#: What a user can change of a connection of redis-py's on the client's side.
CHANGEABLE = (
    'client_name',
    'credential_provider',
    'db',
    'encoder',
    'health_check_interval',
    'driver_info',
    'password',
    'protocol',
    'redis_connect_func',
    'retry',
    'retry_on_error',
    'retry_on_timeout',
    'socket_connect_timeout',
    'socket_timeout',
    'username',
    '_parser',
)

ENCODING = ('encoding', 'encoding_errors', 'decode_responses')

#: Attributes of a client that change with its use.
CLIENT_CACHES = {'connection', 'initialized', '_usage_counter'}


class ClosedError(redis.ConnectionError):
    """A connection was used after it was closed. redis-py would reconnect without the pool's knowledge."""


ClosedError.__module__ = 'gcp.contrib.redis'  # where it is public


# ---- a session's state


class PackedCommands(list[Any]):
    """Commands as sent to the server, and their names."""

    def __init__(self, chunks: Iterable[Any], names: list[str]) -> None:
        super().__init__(chunks)
        self.names = names


class Session:
    """Tracks a connection's commands: how many replies are unread, and which commands changed the session's state.

    A mixin for redis-py's connections, sync and async. The public methods that it overrides are those that redis-py's
    clients, pipelines and subscriptions call.

    :ivar created_in: the process that connected it
    :ivar client: redis-py's client for it, once `client` has made it
    :ivar where: host and port, or path
    :ivar pending_replies: how many replies are unread; negative when there were more replies than commands
    :ivar lasting_commands: names of the commands whose effect lasts
    """

    pending_replies = 0
    lasting_commands: set[str]

    if TYPE_CHECKING:  # redis-py's classes have these, without types

        def disconnect(self, *args: Any, **kwargs: Any) -> Any: ...
        def on_connect(self) -> Any: ...

        encoder: Any
        _parser: Any

    socket_manager: Any
    created_in: int | None = None
    client: Any = None
    client_state: Any = None
    _original: Sequence[tuple[Any, str, Any]] = ()
    where: Mapping[str, Any]

    def configure(
        self,
        socket_manager: Any,
        address: TcpEndpoint | str,
        credentials: Credentials,
        deadline: Deadline,
    ) -> None:
        """Set how to connect.

        :param socket_manager: the manager of the underlying sockets
        :param address: their endpoint
        :param credentials: user name and password
        :param deadline: limits the operation in progress
        """
        self.socket_manager, self.address = socket_manager, address
        self.credentials, self.deadline = credentials, deadline
        self.mark_clean()

    def mark_clean(self) -> None:
        """Take the session's state for that of a new one."""
        self.pending_replies = 0
        self.lasting_commands = set()

    def remember_attributes(self) -> None:
        """Remember what a user can change on the client's side."""
        handlers = [name for name in vars(self._parser) if name.endswith('_handler_func')]
        parts = ((self, CHANGEABLE), (self.encoder, ENCODING), (self._parser, ['encoder', *handlers]))
        self._original = [
            (part, name, getattr(part, name)) for part, names in parts for name in names if hasattr(part, name)
        ]

    def restore_attributes(self) -> None:
        """Restore what the user changed on the client's side; drop a client whose attributes were changed."""
        for part, name, value in self._original:
            if getattr(part, name) != value:
                setattr(part, name, value)
        if self.client is not None and self.client_state != client_state(self.client):
            self.client = None

    def is_clean(self) -> bool:
        """Tell whether a session is as a new one: no reply is unread, and no command has a lasting effect."""
        return self.is_open() and not self.pending_replies and not self.lasting_commands

    def is_open(self) -> bool:
        """Tell whether it was connected, and not closed on this side since."""
        raise NotImplementedError

    def connect(self) -> Any:
        self.check_not_closed()
        return super().connect()  # type: ignore[misc]

    def check_not_closed(self) -> None:
        """Refuse to reconnect.

        :raises ClosedError: when it was connected and is closed
        """
        if self.created_in is not None and not self.is_open():
            raise ClosedError('the connection is closed; acquire another one')

    def pack_command(self, *args: Any) -> PackedCommands:
        return PackedCommands(super().pack_command(*args), [command_name(args)])  # type: ignore[misc]

    def pack_commands(self, commands: Iterable[Iterable[Any]]) -> PackedCommands:
        listed = [list(command) for command in commands]
        return PackedCommands(super().pack_commands(listed), [command_name(command) for command in listed])  # type: ignore[misc]

    def send_command(self, *args: Any, **kwargs: Any) -> Any:
        return self.send_packed_command(self.pack_command(*args), check_health=kwargs.get('check_health', True))

    def send_packed_command(self, command: Any, check_health: bool = True) -> Any:
        self.check_not_closed()
        for name in command.names if isinstance(command, PackedCommands) else ['unknown commands']:
            self.pending_replies += 1
            self._track(name)
        return super().send_packed_command(command, check_health)  # type: ignore[misc]

    def _track(self, name: str) -> None:
        if name in REVERTS:
            self.lasting_commands.difference_update(REVERTS[name])
        elif name in WITH_EFFECT or (name[:6] == 'CLIENT' and name not in WITHOUT_EFFECT):
            self.lasting_commands.add(name)


def client_state(client: Any) -> tuple[dict[str, Any], dict[Any, Any], dict[str, Any]]:
    """Return what a user can change of redis-py's client: its attributes, response callbacks and settings.

    :param client: the client
    """
    attributes = {name: value for name, value in vars(client).items() if name not in CLIENT_CACHES}
    return attributes, dict(client.response_callbacks), dict(client.connection_pool.connection_kwargs)


def command_name(command: Command) -> str:
    """Return a command's name: its first word, or the first two of a container command such as `CLIENT`."""
    name = _word(command[0])
    if ' ' in name or name in CONTAINERS:  # redis-py splits a first word at spaces
        first, *others = ' '.join(map(_word, command[:2])).split()
        name = ' '.join([first, *others[:1]]) if first in CONTAINERS else first
    return name


def _word(word: Any) -> str:
    return (word if isinstance(word, str) else bytes(word).decode('latin-1')).upper()


# ---- endpoints and credentials

#: The types of settings. Errors name the type of a wrong one, never its value, which may be a password.
KINDS = {
    'path': (str, Path, type(None)),
    'db': (int,),
    'username': (str, type(None)),
    'password': (str, type(None)),
    'credential_provider': (CredentialProvider, type(None)),
    'client_name': (str, type(None)),
    'ssl': (SSLContext, bool, type(None)),
}
EXPECTED = {
    'path': 'a path',
    'db': 'the number of a database',
    'username': 'a name',
    'password': 'a string or a function',
    'credential_provider': "a CredentialProvider of redis-py's",
    'client_name': 'a name',
    'ssl': 'a bool or an SSLContext',
}


@dataclasses.dataclass(frozen=True)
class ServerSettings:
    """How to connect to a server and open a session.

    :ivar host: name or address, with `port`; or else `path`
    :ivar path: the path of a unix socket
    :ivar password: the password, or a function that returns it
    :ivar ssl: ``None``: no TLS
    """

    host: Any = None
    port: int = 6379
    path: str | Path | None = None
    db: int = 0
    username: str | None = None
    password: Secret | None = dataclasses.field(default=None, repr=False)
    credential_provider: CredentialProvider | None = dataclasses.field(default=None, repr=False)
    client_name: str | None = None
    ssl: SSLContext | bool | None = None

    def __post_init__(self) -> None:
        for name, kinds in KINDS.items():
            value = getattr(self, name)
            if not isinstance(value, kinds) and not (name == 'password' and callable(value)):
                raise TypeError(f'{name}: {EXPECTED[name]} was expected, not an instance of {type(value).__name__}')
        if isinstance(self.db, bool) or self.db < 0:
            raise ValueError(f'db: the number of a database was expected, not {self.db!r}')
        if self.credential_provider is not None and (self.username is not None or self.password is not None):
            raise ValueError('credential_provider: it provides username and password, so give one or the other')
        if self.host is not None:
            check_endpoint((self.host, self.port))

    @property
    def address(self) -> TcpEndpoint | str:
        """The endpoint of the underlying socket."""
        return (self.host, self.port) if self.path is None else str(self.path)


NAMES = tuple(field.name for field in dataclasses.fields(ServerSettings))


class ServerDirectory:
    """Finds the settings of endpoints: an address stands for itself, a name is looked up.

    :param servers: parameters, or a URL, by name; or a function that returns them
    :param defaults: settings for what those do not contain
    :raises TypeError: when they have another type
    :raises ValueError: when a parameter is unknown
    """

    def __init__(self, servers: Any, defaults: ServerSettings) -> None:
        self._defaults = defaults
        if isinstance(servers, Mapping):
            servers = {name: _as_parameters(name, found) for name, found in servers.items()}
            for name, found in servers.items():
                self._settings_for(name, found)
        self._directory: Directory[Any] = Directory(servers, 'servers')

    def __str__(self) -> str:
        return str(self._directory)

    def find(self, endpoint: RedisEndpoint, deadline: float) -> Any:
        """Return the parameters of an endpoint.

        :param endpoint: the endpoint
        :param deadline: when the user's function must have returned them, on the monotonic clock
        :raises UnknownEndpointError: when it is a name that the mapping does not have
        :raises TimeoutError: when the function takes longer
        :raises TypeError: when it is not an endpoint
        :raises ValueError: when it is a URL
        """
        found = self._address(endpoint)
        return self._directory.find(str(endpoint), deadline) if found is None else found

    async def find_async(self, endpoint: RedisEndpoint) -> Any:
        """Return the parameters of an endpoint.

        :param endpoint: the endpoint
        :raises UnknownEndpointError: when it is a name that the mapping does not have
        :raises TypeError: when it is not an endpoint
        :raises ValueError: when it is a URL
        """
        found = self._address(endpoint)
        return await self._directory.find_async(str(endpoint)) if found is None else found

    def _address(self, endpoint: RedisEndpoint) -> Parameters | None:
        """Return the parameters of an endpoint that is an address; ``None`` for a name."""
        if isinstance(endpoint, Path) or (isinstance(endpoint, str) and endpoint[:1] in ('/', '\0')):
            return {'path': endpoint}
        if isinstance(endpoint, str) and '://' in endpoint:
            raise ValueError('endpoint: a name was expected; a URL, which may hold a password, belongs in servers')
        if isinstance(endpoint, str):
            return None
        if isinstance(endpoint, tuple):
            host, port = check_endpoint(endpoint)
            return {'host': host, 'port': port}
        raise TypeError(f'endpoint: a (host, port) pair, a path or a name was expected, not {endpoint!r}')

    def settings(self, endpoint: RedisEndpoint, found: Any) -> ServerSettings:
        """Return the settings of an endpoint.

        :param endpoint: the endpoint
        :param found: the result of `find`
        """
        return self._settings_for(endpoint, _as_parameters(endpoint, found))

    def _settings_for(self, endpoint: RedisEndpoint, parameters: Parameters) -> ServerSettings:
        unknown = sorted(set(parameters) - set(NAMES))
        if unknown:
            known = ', '.join(NAMES)
            raise ValueError(f'servers: for endpoint {endpoint!r}, {unknown[0]!r} is not known; known: {known}')
        settings = dataclasses.replace(self._defaults, **parameters)
        if (settings.host is None) is (settings.path is None):
            raise ValueError(f'servers: for endpoint {endpoint!r}, either host or path was expected')
        return settings


def _as_parameters(endpoint: RedisEndpoint, found: Any) -> Parameters:
    if isinstance(found, str):
        return _parse_url(endpoint, found)
    if not isinstance(found, Mapping):
        raise TypeError(
            f'servers: for endpoint {endpoint!r}, a mapping of parameters or a URL was expected, '
            f'not an instance of {type(found).__name__}',
        )
    return found


def _parse_url(endpoint: RedisEndpoint, url: str) -> Parameters:
    """Parse a URL as redis-py does. Its errors may quote the URL, so none is passed on."""
    parse: Any = redis.connection.parse_url
    parameters: dict[str, Any] | None = None
    with contextlib.suppress(ValueError):
        parameters = parse(url)
    if parameters is None:
        raise ValueError(f'servers: for endpoint {endpoint!r}, a URL of redis, rediss or unix was expected')
    kind = parameters.pop('connection_class', None)
    if kind is redis.SSLConnection:
        parameters['ssl'] = True
    if 'path' not in parameters:
        # redis-py decodes the whole host, and so takes '%eb0' for a byte
        host = urlsplit(url).hostname or 'localhost'
        parameters['host'] = decode_scope(host) if ':' in host else unquote(host)
    return parameters


class Deadline:
    """When the operation in progress must end.

    :ivar at: the time, on the monotonic clock
    """

    at = math.inf

    def left(self) -> float | None:
        """Return how many seconds are left; ``None``: no limit."""
        return None if self.at == math.inf else max(self.at - time.monotonic(), 0.0)


class Credentials(CredentialProvider):
    """Gives redis-py user name and password. They are fetched before it asks, because it calls a credential provider
    without a time limit, and, before 5.3, blocks the event loop meanwhile.

    :param settings: have the credentials, or the function or provider that returns them
    :param deadline: limits how long that function may take
    """

    def __init__(self, settings: ServerSettings, deadline: Deadline) -> None:
        self._username = settings.username
        self._password = settings.password
        self._provider = settings.credential_provider
        self._deadline = deadline
        self._fetched: tuple[str, ...] = ()

    @property
    def are_needed(self) -> bool:
        """Whether there is a user name or a password to authenticate with."""
        return not (self._username is None and self._password is None and self._provider is None)

    def fetch(self) -> None:
        """Fetch them from the settings, the user's function or the provider.

        :raises TimeoutError: when that takes longer than the deadline allows
        """
        source: Any = self._password if self._provider is None else self._provider.get_credentials
        self._store(call_user(source, deadline=self._deadline.at, what='credentials') if callable(source) else source)

    async def fetch_async(self) -> None:
        """Fetch them from the settings, the user's function or the provider."""
        source: Any = self._password
        if self._provider is not None:
            # that of the base class calls the other one, in the event loop; redis-py 5.1 has none
            own = getattr(type(self._provider), 'get_credentials_async', None)
            inherits = own is getattr(CredentialProvider, 'get_credentials_async', None)
            source = self._provider.get_credentials if inherits else self._provider.get_credentials_async
        self._store(await call_user_async(source) if callable(source) else source)

    def get_credentials(self) -> Any:
        return self._fetched

    async def get_credentials_async(self) -> Any:
        return self._fetched

    def redact(self, error: redis.RedisError) -> redis.RedisError:
        """Return an error without the password: a server that does not know `AUTH` or `HELLO` quotes their arguments.

        :param error: redis-py's error
        """
        text, secret = str(error), self._fetched[-1] if self._fetched else ''
        return type(error)(text.replace(secret, '***')) if secret and secret in text else error

    def _store(self, found: Any) -> None:
        if self._provider is None:
            # a password alone: servers before 6.0 have no users
            found = (self._username, found or '') if self._username else (found or '',)
        self._fetched = tuple(found)
