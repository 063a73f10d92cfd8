"""What the two Redis managers share: where an endpoint is, and what a session owes and is left with. Does no I/O.

Parameters hold passwords, so nothing here puts them, or a part of them, into an error or a repr."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from ssl import SSLContext
from typing import TYPE_CHECKING, Any

import redis
from redis.credentials import CredentialProvider

from gcp.contrib._endpoints import Directory, Parameters
from gcp.contrib._tcp import TcpEndpoint, check_endpoint
from gcp.contrib._wire import within

__all__ = [
    'FINAL',
    'RESETTABLE',
    'UNDOABLE',
    'ClosedError',
    'Credentials',
    'Deadline',
    'Directions',
    'RedisEndpoint',
    'Secret',
    'Session',
    'Settings',
]

RedisEndpoint = TcpEndpoint | str | Path
Secret = str | Callable[[], str | Awaitable[str]]
Command = Sequence[Any]

#: What a session can be left with and a command can take back, in the order in which that is to be done.
UNDOABLE = {'MULTI': ('DISCARD',), 'WATCH': ('UNWATCH',), 'SELECT': ('SELECT',)}  # with the database

#: What takes it back when the user says it himself.
ENDS = {'EXEC': ('MULTI', 'WATCH'), 'DISCARD': ('MULTI', 'WATCH'), 'UNWATCH': ('WATCH',)}

#: What `RESET` takes back, a new log-in after it.
RESETTABLE = {
    *UNDOABLE,
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

#: What leaves no session that could be used for commands, or nobody knows what.
FINAL = {
    'MONITOR',
    'PSUBSCRIBE',
    'PSYNC',
    'QUIT',
    'SCRIPT DEBUG',
    'SSUBSCRIBE',
    'SUBSCRIBE',
    'SYNC',
    'words packed elsewhere',
}

LASTING = {*RESETTABLE, *FINAL}

#: Commands whose second word says what they do.
CONTAINERS = {'CLIENT', 'SCRIPT'}

#: What of `CLIENT` changes nothing in the session; `SETINFO` is but a label.
PASSING = {
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


class ClosedError(redis.ConnectionError):
    """A connection was used after its end. redis-py would connect anew, without the pool's knowing."""


# ---- what a session owes and is left with


class Packed(list[Any]):
    """Commands as they go over the wire, and their names."""

    def __init__(self, chunks: Iterable[Any], names: list[str]) -> None:
        super().__init__(chunks)
        self.names = names


class Session:
    """Keeps the books of a connection: which commands await their replies, and which outlast their reply.

    A mixin for redis-py's connections of either colour. The public methods that it overrides are those that redis-py's
    clients, pipelines and subscriptions call.

    :ivar born_in: the process that has connected it
    :ivar client: redis-py's client for it, once somebody has asked for that
    :ivar owed: how many replies are still to be read; below zero, there were more than commands
    :ivar left: names of the commands whose effect lasts
    """

    owed = 0
    left: set[str]

    if TYPE_CHECKING:  # what it is mixed into has these, without types
        def disconnect(self, *args: Any, **kwargs: Any) -> Any: ...
        def on_connect(self) -> Any: ...

    dialer: Any
    born_in: int | None = None
    client: Any = None

    def set_up(self, dialer: Any, address: TcpEndpoint | str, credentials: Credentials, deadline: Deadline) -> None:
        """Tell how to connect.

        :param dialer: manages the sockets under it
        :param address: their endpoint
        :param credentials: as whom
        :param deadline: until when
        """
        self.dialer, self.address, self.credentials, self.deadline = dialer, address, credentials, deadline
        self.settle()

    def settle(self) -> None:
        """Take the session as it is for a fresh one."""
        self.owed = 0
        self.left = set()

    def is_open(self) -> bool:
        """Tell whether it was connected, and not closed on this side since."""
        raise NotImplementedError

    def connect(self) -> Any:
        self.check_not_over()
        return super().connect()  # type: ignore[misc]

    def check_not_over(self) -> None:
        """Let a connection have but one life.

        :raises ClosedError: when it was connected, and no longer is
        """
        if self.born_in is not None and not self.is_open():
            raise ClosedError('the connection is closed; acquire another one')

    def pack_command(self, *args: Any) -> Packed:
        return Packed(super().pack_command(*args), [name_of(args)])  # type: ignore[misc]

    def pack_commands(self, commands: Iterable[Iterable[Any]]) -> Packed:
        listed = [list(command) for command in commands]
        return Packed(super().pack_commands(listed), [name_of(command) for command in listed])  # type: ignore[misc]

    def send_command(self, *args: Any, **kwargs: Any) -> Any:
        return self.send_packed_command(self.pack_command(*args), check_health=kwargs.get('check_health', True))

    def send_packed_command(self, command: Any, check_health: bool = True) -> Any:
        self.check_not_over()
        for name in command.names if isinstance(command, Packed) else ['words packed elsewhere']:
            self.owed += 1
            self._note(name)
        return super().send_packed_command(command, check_health)  # type: ignore[misc]

    def _note(self, name: str) -> None:
        if name in ENDS:
            self.left.difference_update(ENDS[name])
        elif name in LASTING or (name[:6] == 'CLIENT' and name not in PASSING):
            self.left.add(name)


def name_of(command: Command) -> str:
    """Name a command: its first word, or the first two where the second says what it does."""
    name = _word(command[0])
    if ' ' in name or name in CONTAINERS:  # redis-py takes a first word apart
        first, *others = ' '.join(map(_word, command[:2])).split()
        name = ' '.join([first, *others[:1]]) if first in CONTAINERS else first
    return name


def _word(word: Any) -> str:
    return (word if isinstance(word, str) else bytes(word).decode('latin-1')).upper()


# ---- where an endpoint is, and as whom to go there

#: What settings may be. The errors tell of what type a wrong one is, never its value: that may be a password.
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
class Settings:
    """How to reach a server, and how to begin a session there.

    :ivar host: name or address; with `port`, or `path` instead of both
    :ivar path: of a unix socket
    :ivar password: itself, or a function that returns it
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
        """The endpoint of the socket under it."""
        return (self.host, self.port) if self.path is None else str(self.path)


NAMES = tuple(field.name for field in dataclasses.fields(Settings))


class Directions:
    """What is known of endpoints: addresses speak for themselves, names are looked up.

    :param servers: parameters, or a URL, by name; or a function that returns them; or nothing
    :param usual: what holds where those say nothing
    :raises TypeError: when they are something else
    :raises ValueError: when there is a parameter that is not known
    """

    def __init__(self, servers: Any, usual: Settings) -> None:
        self._usual = usual
        if isinstance(servers, Mapping):
            servers = {name: _parameters(name, found) for name, found in servers.items()}
            for name, found in servers.items():
                self._merged(name, found)
        self._directory: Directory[Any] = Directory(servers, 'servers')

    def __str__(self) -> str:
        return str(self._directory)

    def find(self, endpoint: RedisEndpoint) -> Any:
        """Return what there is about an endpoint; it may have to be awaited.

        :param endpoint: the endpoint
        :raises UnknownEndpointError: when it is a name that the mapping has not
        :raises TypeError: when it is nothing of the kind
        :raises ValueError: when it is a URL
        """
        if isinstance(endpoint, Path) or (isinstance(endpoint, str) and endpoint[:1] in ('/', '\0')):
            return {'path': endpoint}
        if isinstance(endpoint, str) and '://' in endpoint:
            raise ValueError('endpoint: a name was expected; a URL, which may hold a password, belongs in servers')
        if isinstance(endpoint, str):
            return self._directory.find(endpoint)
        if isinstance(endpoint, tuple):
            host, port = check_endpoint(endpoint)
            return {'host': host, 'port': port}
        raise TypeError(f'endpoint: a (host, port) pair, a path or a name was expected, not {endpoint!r}')

    def settings(self, endpoint: RedisEndpoint, found: Any) -> Settings:
        """Return how to connect to an endpoint.

        :param endpoint: the endpoint
        :param found: what there is about it
        """
        return self._merged(endpoint, _parameters(endpoint, found))

    def _merged(self, endpoint: RedisEndpoint, parameters: Parameters) -> Settings:
        unknown = sorted(set(parameters) - set(NAMES))
        if unknown:
            known = ', '.join(NAMES)
            raise ValueError(f'servers: for endpoint {endpoint!r}, {unknown[0]!r} is not known; known: {known}')
        settings = dataclasses.replace(self._usual, **parameters)
        if (settings.host is None) is (settings.path is None):
            raise ValueError(f'servers: for endpoint {endpoint!r}, either host or path was expected')
        return settings


def _parameters(endpoint: RedisEndpoint, found: Any) -> Parameters:
    if isinstance(found, str):
        return _of_url(endpoint, found)
    if not isinstance(found, Mapping):
        raise TypeError(
            f'servers: for endpoint {endpoint!r}, a mapping of parameters or a URL was expected, '
            f'not an instance of {type(found).__name__}',
        )
    return found


def _of_url(endpoint: RedisEndpoint, url: str) -> Parameters:
    """Take a URL apart by redis-py's own rules. An error of theirs may quote it, so none is passed on."""
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
        parameters.setdefault('host', 'localhost')
    return parameters


class Deadline:
    """Until when the work in hand has to be done.

    :ivar at: on the monotonic clock
    """

    at = math.inf

    def left(self) -> float | None:
        """Return how long it is until then; ``None``: no limit."""
        return None if self.at == math.inf else max(self.at - time.monotonic(), 0.0)


class Credentials(CredentialProvider):
    """Answers redis-py's question for user name and password. Whoever knows them is asked before: redis-py would wait
    for him without a limit, and, before 5.3, without letting other tasks run.

    :param settings: where they, or who knows them, are
    :param deadline: until when a function of the user's has to answer
    """

    def __init__(self, settings: Settings, deadline: Deadline) -> None:
        self._username = settings.username
        self._password = settings.password
        self._provider = settings.credential_provider
        self._deadline = deadline
        self._answer: tuple[str, ...] = ()

    @property
    def are_needed(self) -> bool:
        """Whether there is somebody to log in as."""
        return not (self._username is None and self._password is None and self._provider is None)

    def prepare(self) -> None:
        """Ask whoever knows.

        :raises TimeoutError: when that takes too long
        """
        left = self._deadline.left()
        ask = self._password if self._provider is None else self._provider.get_credentials
        if callable(ask):
            self._take(ask() if left is None else within(left, ask, what='credentials'))
        else:
            self._take(ask)

    async def prepare_later(self) -> None:
        """Ask whoever knows."""
        ask: Any = self._password
        if self._provider is not None:
            ask = getattr(self._provider, 'get_credentials_async', self._provider.get_credentials)
        found = ask() if callable(ask) else ask
        self._take(await found if inspect.isawaitable(found) else found)

    def get_credentials(self) -> Any:
        return self._answer

    async def get_credentials_async(self) -> Any:
        return self._answer

    def purged(self, error: redis.RedisError) -> redis.RedisError:
        """Return an error without the password in it: a server that does not know `AUTH` or `HELLO` repeats it.

        :param error: what redis-py made of the server's words
        """
        words, secret = str(error), self._answer[-1] if self._answer else ''
        return type(error)(words.replace(secret, '***')) if secret and secret in words else error

    def _take(self, found: Any) -> None:
        if self._provider is None:
            # without a name: servers before 6.0 know no users
            found = (self._username, found or '') if self._username else (found or '',)
        self._answer = tuple(found)
