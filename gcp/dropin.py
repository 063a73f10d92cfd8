"""Make ``generic_connection_pool`` an alias of gcp, for code that cannot be edited: ``import gcp.dropin`` first.

Every module under ``generic_connection_pool`` is then the gcp module of the same name, the same object, so classes are
identical whichever name they were imported by. Modules are still imported one by one, on demand. It makes no difference
whether the predecessor is installed. If it has already been imported, other code may hold its classes, so importing
this module raises `ImportError`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import ClassVar

import gcp
from gcp.managers import ConnectionT, EndpointT

__all__: list[str] = []

OLD = 'generic_connection_pool'
NEW = 'gcp'

#: Packages of the predecessor that are single modules here. Their only submodule, ``pool``, is the module itself.
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
    """Loads a gcp module under the name that is being imported; the module keeps its own name and spec."""

    #: The specs of gcp modules, which the import system replaces while it imports an alias.
    _specs: ClassVar[dict[str, ModuleSpec | None]] = {}

    def __init__(self, target: str) -> None:
        self._target = target

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the gcp module itself: another thread may get what is returned here before `exec_module` has run."""
        target = importlib.import_module(self._target)
        self._specs.setdefault(self._target, target.__spec__)
        if spec.name in _FLAT:
            target.__dict__.setdefault('pool', target)
            # Without a path, the import system does not ask the finder for submodules, and raises an error of its own.
            target.__dict__.setdefault('__path__', [])
        return target

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._specs[self._target]


class _Finder(MetaPathFinder):
    """Finds every module under the predecessor's name, so that no other finder is asked."""

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

        return ModuleSpec(fullname, _Alias(counterpart))


def _refuse_if_late() -> None:
    """Check that no module of the predecessor itself is loaded.

    :raises ImportError: when one is
    """
    for name, module in list(sys.modules.items()):
        if not _is_old(name) or module is None:
            continue
        # Aliases made here keep their names under gcp; `common` has a mark.
        if _is_old(module.__name__) and not hasattr(module, '_gcp_dropin'):
            raise ImportError(
                f'gcp.dropin was imported too late: {name} is already loaded, and other code may hold its classes;'
                f' put `import gcp.dropin` before the first import of {OLD}',
                name='gcp.dropin',
            )


def _install() -> None:
    """Register the modules that are already loaded, and the finder for the others. Calling it again is harmless."""
    common = ModuleType(f'{OLD}.common', "The public names of the predecessor's module of this name.")
    common.__dict__.update(
        BaseConnectionPool=gcp.BaseConnectionPool,
        ConnectionT=ConnectionT,
        EndpointT=EndpointT,
        _gcp_dropin=True,
    )

    # A reload of this module replaces its finder.
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != __name__]
    sys.meta_path.insert(0, _Finder())

    sys.modules[OLD] = gcp
    sys.modules[f'{OLD}.common'] = common
    sys.modules[f'{OLD}.exceptions'] = gcp.exceptions
    gcp.__dict__['common'] = common


_refuse_if_late()
_install()
