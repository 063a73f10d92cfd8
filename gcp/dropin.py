"""Make ``generic_connection_pool`` mean gcp, for code that cannot be edited: ``import gcp.dropin``, once, first.

Every name under ``generic_connection_pool`` is then the gcp module of that name, the very same object, so classes are
identical whichever way they were imported. Modules are still imported one by one, when they are asked for. Whether the
predecessor is installed makes no difference, but code that already holds its classes cannot be helped: then importing
this module is refused."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

import gcp
from gcp.managers import ConnectionT, EndpointT

__all__: list[str] = []

OLD = 'generic_connection_pool'
NEW = 'gcp'

#: what were packages and are single modules here: their submodule ``pool`` is the module itself, others there are none
_FLAT = frozenset({f'{OLD}.threading', f'{OLD}.asyncio'})


def _is_old(name: str) -> bool:
    return name == OLD or name.startswith(OLD + '.')


def _counterpart(name: str) -> str | None:
    parent, _, child = name.rpartition('.')
    if parent in _FLAT:
        return NEW + parent.removeprefix(OLD) if child == 'pool' else None

    counterpart = NEW + name.removeprefix(OLD)
    return counterpart if importlib.util.find_spec(counterpart) is not None else None


class _Alias(Loader):
    """Puts a gcp module in the place of the one being imported, and leaves its own name and spec as they are."""

    def __init__(self, target: str) -> None:
        self._target = target

    def exec_module(self, module: ModuleType) -> None:
        alias = module.__name__
        target = importlib.import_module(self._target)
        if alias in _FLAT:
            target.__dict__.setdefault('pool', target)
            # without a path, the import system would not ask our finder for submodules, and fail in its own words
            target.__dict__.setdefault('__path__', [])
        # The import system takes what it finds here, not what it handed in. Last, for other threads see it at once.
        sys.modules[alias] = target


class _Finder(MetaPathFinder):
    """Answers for every name under the predecessor's, so that nobody else is asked."""

    def find_spec(
            self,
            fullname: str,
            path: Sequence[str] | None = None,
            target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if not _is_old(fullname):
            return None

        counterpart = _counterpart(fullname)
        if counterpart is None:
            raise ModuleNotFoundError(
                f'gcp has no counterpart of {fullname}; gcp.dropin offers the public modules of {OLD}:'
                ' common, exceptions, threading, asyncio and contrib',
                name=fullname,
            )

        # a package, or another thread that imports a submodule meanwhile would be told that there can be none
        return ModuleSpec(fullname, _Alias(counterpart), is_package=True)


def _refuse_if_late() -> None:
    """Look for modules of the predecessor itself.

    :raises ImportError: when one is loaded
    """
    for name, module in list(sys.modules.items()):
        if not _is_old(name) or module is None:
            continue
        # our aliases keep their names under gcp, and `common` is marked as ours
        if _is_old(module.__name__) and not hasattr(module, '_gcp_dropin'):
            raise ImportError(
                f'gcp.dropin comes too late: {name} itself was already imported, and code may hold its classes;'
                f' write `import gcp.dropin` before the first import of {OLD}',
                name='gcp.dropin',
            )


def _install() -> None:
    """Register what costs nothing, and the finder for the rest. Doing it again is harmless."""
    common = ModuleType(f'{OLD}.common', "The public names of the predecessor's module of this name.")
    common.__dict__.update(
        BaseConnectionPool=gcp.BaseConnectionPool,
        ConnectionT=ConnectionT,
        EndpointT=EndpointT,
        _gcp_dropin=True,
    )

    # a reload of this module replaces its finder
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != __name__]
    sys.meta_path.insert(0, _Finder())

    sys.modules[OLD] = gcp
    sys.modules[f'{OLD}.common'] = common
    sys.modules[f'{OLD}.exceptions'] = gcp.exceptions
    gcp.__dict__['common'] = common


_refuse_if_late()
_install()
