"""A page that shows the pools of this process to an engineer on call: `wsgi` and `asgi` return it as an application.

    app.mount('/debug/pools', gcp.debug.asgi())

It answers at the place where it is mounted, whatever the path; with ``?format=json`` it answers with JSON, with
``?pool=NAME`` it shows the pools of one name. It serves requests of this host only, unless it is told otherwise, and
changes nothing, unless it is told otherwise."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, MutableMapping
from typing import Any

from gcp.debug.entries import AsgiApplication, WsgiApplication

__all__ = ['asgi', 'wsgi']


def wsgi(
    *, allow_actions: bool = False, allow_remote: bool = False, top: int = 50
) -> Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]:
    """Return the page as a WSGI application.

    :param allow_actions: have buttons that expire, suspend, resume and retire. Requests for that need a token, which
        the page has, and must come from the page's own origin
    :param allow_remote: answer to other hosts as well, under whatever name they ask. The page shows stacks and errors:
        have something in front that asks who they are
    :param top: how many rows a table has, at most; what is not shown is counted
    :raises TypeError: for an argument of a wrong type
    :raises ValueError: for a `top` below 1 or above 1000
    """
    return WsgiApplication(allow_actions=allow_actions, allow_remote=allow_remote, top=top)


def asgi(
    *, allow_actions: bool = False, allow_remote: bool = False, top: int = 50
) -> Callable[[MutableMapping[str, Any], Any, Any], Coroutine[Any, Any, None]]:
    """Return the page as an ASGI application. It looks at the pools in a thread, not in the event loop.

    :param allow_actions: as for `wsgi`
    :param allow_remote: as for `wsgi`
    :param top: as for `wsgi`
    :raises TypeError: for an argument of a wrong type
    :raises ValueError: for a `top` below 1 or above 1000
    """
    return AsgiApplication(allow_actions=allow_actions, allow_remote=allow_remote, top=top)
