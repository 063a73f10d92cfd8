"""The shape of the core and of the two fronts, read from their sources: how long, how alike, and who calls whom."""

from __future__ import annotations

import ast
import difflib
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import gcp
from gcp._core import Event
from gcp.testing import BareFakeManager
from gcp.threading import ConnectionPool

PACKAGE = Path(gcp.__file__).resolve().parent
CORE = PACKAGE / 'core'
CONTENTS = PACKAGE / '_core.pyx'
FRONTS = PACKAGE / 'threading.py', PACKAGE / 'asyncio.py'
DISPOSER = PACKAGE / 'disposal' / 'threads.py'
DESIGN = PACKAGE.parent / 'docs' / 'design.md'

if not CONTENTS.exists():
    pytest.skip('needs the sources of the core', allow_module_level=True)

CHAPTERS = sorted(CORE.glob('*.pyx'))
FILES = [CONTENTS, *CHAPTERS, *sorted(CORE.glob('*.pxd'))]

each_front = pytest.mark.parametrize('path', FRONTS, ids=lambda path: path.name)
each_file = pytest.mark.parametrize('path', FILES, ids=lambda path: path.name)

#: lines of a front, lines in which they differ, lines of a chapter, methods of a class, lines of a function
LONGEST_FRONT = 290
MOST_DIFFERENCES = 30
LONGEST_FILE = 500
MOST_METHODS = 25
LONGEST_FUNCTION = 40

#: what says the same in both fronts, from the asyncio front's words to the threading front's
SUBSTITUTIONS = {
    'await ': '',
    'async ': '',
    '__aenter__': '__enter__',
    '__aexit__': '__exit__',
    'AsyncPool': 'SyncPool',
    'AsyncConnectionManager': 'ConnectionManager',
    'SyncConnectionManager': 'ConnectionManager',
    'async_connection_of': 'connection_of',
    'from gcp._core import AsyncLease as Lease\n': '',
    'FutureEvent': 'Event',
    'AnyEvent': 'Event',
    'gcp.disposal.tasks': 'gcp.disposal.threads',
    'gcp.background.tasks': 'gcp.background.threads',
    'gcp.disposal.deadline': 'gcp.waiting',
    'self._disposer.wait_for': 'wait_for',
    'asyncio': 'threading',
    'awaiting': 'waiting',
}

#: methods that the Python halves override, and that compiled code calls
OVERRIDES = {'_drive'}
#: what the Python halves set, and compiled code calls
SET_BY_THE_FRONTS = {'_report', '_wait', '_timeout_error', '_make_event'}

STRING_OR_COMMENT = re.compile(r'''("""|\'\'\'|"|')(?:\\.|.)*?\1|\#[^\n]*''', re.DOTALL)
FUNCTION = re.compile(r'^( *)(?:cdef|cpdef|def) (?!class |enum |struct |extern )[^=(\n]*?(\w+)\(', re.MULTILINE)
CLASS = re.compile(r'^cdef class (\w+)[^\n]*:\n((?:(?: [^\n]*)?\n)+)', re.MULTILINE)


def code(text: str) -> str:
    """Return source code without strings and comments."""
    return STRING_OR_COMMENT.sub('', text)


SOURCE = {path: path.read_text() for path in [*FILES, *FRONTS]}
COMPILED = '\n'.join(code(SOURCE[path]) for path in FILES)


# --- how long ---


def functions(text: str) -> Iterator[tuple[str, int]]:
    """Yield each function with its number of lines, docstring included."""
    lines = text.splitlines()
    for match in FUNCTION.finditer(text):
        begin = end = text.count('\n', 0, match.start())
        for i in range(begin + 1, len(lines)):
            line = lines[i]
            if line and len(line) - len(line.lstrip()) <= len(match[1]) and not line.lstrip().startswith(')'):
                break
            end = i if line else end
        yield match[2], end - begin + 1


def methods(text: str) -> dict[str, list[str]]:
    """Return the methods and properties of each class."""
    return {
        name: [match[2] for match in FUNCTION.finditer(body) if match[1] == ' ' * 4]
        for name, body in CLASS.findall(code(text))
    }


@each_front
def test_front_is_short(path: Path) -> None:
    assert SOURCE[path].count('\n') <= LONGEST_FRONT


@each_file
def test_chapter_is_short(path: Path) -> None:
    text = SOURCE[path]
    assert text.count('\n') <= LONGEST_FILE
    assert not {name: lines for name, lines in functions(text) if lines > LONGEST_FUNCTION}


@each_file
def test_class_has_few_methods(path: Path) -> None:
    assert not {name: len(found) for name, found in methods(SOURCE[path]).items() if len(found) > MOST_METHODS}


# --- how alike ---


def substituted(text: str) -> list[str]:
    """Return a front's lines in the words of the threading front."""
    for ours, theirs in SUBSTITUTIONS.items():
        text = text.replace(ours, theirs)
    return text.splitlines()


def differences(a: list[str], b: list[str]) -> list[str]:
    """Return the lines that differ; a line that was changed counts once."""
    found = []
    for kind, i, j, k, m in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if kind != 'equal':
            found += max(b[k:m], a[i:j], key=len)
    return found


def test_fronts_are_alike() -> None:
    different = differences(*(substituted(SOURCE[path]) for path in FRONTS))
    assert len(different) <= MOST_DIFFERENCES, '\n'.join([f'{len(different)} lines differ:', *different])


# --- who calls whom ---


def methods_of_fronts() -> set[str]:
    """Return the methods that the Python halves of the pools define."""
    return {
        function.name
        for path in FRONTS
        for pool in ast.parse(SOURCE[path]).body
        if isinstance(pool, ast.ClassDef)
        for function in pool.body
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
    }


def test_compiled_code_calls_no_method_of_the_python_halves() -> None:
    called = set(re.findall(r'\.(_[a-z]\w*)\(', COMPILED))
    defined = {name for _, name in FUNCTION.findall(COMPILED)}
    attributes = set(re.findall(r'^    cdef (?:public|readonly) object (_\w+)', COMPILED, re.MULTILINE))

    assert called & methods_of_fronts() == OVERRIDES
    assert called <= defined | attributes
    assert attributes >= SET_BY_THE_FRONTS
    assert defined >= OVERRIDES


# --- C: its texts are compiled in no order that Cython promises ---


@each_file
def test_a_text_in_c_decides_only_by_macros_that_it_defines(path: Path) -> None:
    texts = '\n'.join(re.findall(r'^cdef extern from \*:\n    """(.*?)"""', SOURCE[path], re.DOTALL | re.MULTILINE))
    conditions = re.findall(r'^ *# *(?:if|ifdef|ifndef|elif) (.*)', texts, re.MULTILINE)
    asked = set(re.findall(r'\bgcp_\w+', '\n'.join(conditions), re.IGNORECASE))

    assert asked <= set(re.findall(r'^ *# *define (\w+)', texts, re.MULTILINE)), 'another text may come first'


# --- hops: what docs/design.md says ---


def hops() -> str:
    """Return the section on hops."""
    return DESIGN.read_text().split('\n## Hops\n')[1].split('\n## ')[0]


@pytest.mark.skipif(not DESIGN.exists(), reason='needs the documentation')
def test_functions_of_the_section_on_hops_exist() -> None:
    named = set(re.findall(r'`((?:\w+\.)?\w+)`', hops()))
    functions_of = {name: set(found) for path in FILES for name, found in methods(SOURCE[path]).items()}
    for node in ast.parse(DISPOSER.read_text()).body:
        if isinstance(node, ast.ClassDef):
            functions_of[node.name] = {one.name for one in node.body if isinstance(one, ast.FunctionDef)}
    functions_of[''] = {name for _, name in FUNCTION.findall(COMPILED)}

    assert named
    for name in named:
        owner, _, function = name.rpartition('.')
        assert function in functions_of.get(owner, ()), f'{name}: no such function'


class Entries:
    """Sees Python frames of gcp that this thread enters from outside: from compiled code, or from a test.

    :ivar names: the names of the functions
    """

    def __init__(self) -> None:
        self.names: list[str] = []

    def __enter__(self) -> Entries:
        sys.setprofile(self.see)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(None)

    def see(self, frame: FrameType, event: str, arg: object) -> None:
        """Serve as a profile function."""
        inside = frame.f_back is not None and is_of_gcp(frame.f_back)
        if event == 'call' and is_of_gcp(frame) and not inside:
            self.names.append(frame.f_code.co_name)


def is_of_gcp(frame: FrameType) -> bool:
    """Whether a frame is the library's. Its doubles for tests are not meant: they stand for a user's manager."""
    path = Path(frame.f_code.co_filename)
    return PACKAGE in path.parents and PACKAGE / 'testing' not in path.parents


def test_release_with_an_eviction_enters_python_code_once() -> None:
    pool: ConnectionPool[str, Any] = ConnectionPool(BareFakeManager(), max_size=1, total_max_size=1)
    queued = threading.Event()

    def make_event() -> Event:
        queued.set()
        return Event()

    pool._make_event = make_event  # asked for by an acquire that is in the wait queue
    conn = pool.acquire('a')
    waiter = threading.Thread(target=lambda: pool.release(pool.acquire('b'), 'b'), daemon=True)
    waiter.start()
    assert queued.wait(30)

    with Entries() as entries:
        pool.release(conn, 'a')

    waiter.join()
    assert pool.stats().closed['evicted'] == 1
    assert entries.names == ['dispose']
    pool.close()


def test_disposer_enters_compiled_code_once_unless_a_victim_takes_long() -> None:
    [disposer] = [node for node in ast.parse(DISPOSER.read_text()).body if getattr(node, 'name', '') == 'Disposer']
    [dispose] = [node for node in disposer.body if getattr(node, 'name', '') == 'dispose']
    _, call, only_then = dispose.body
    calls = [node for node in ast.walk(call) if isinstance(node, ast.Call)]

    assert [ast.unparse(one.func) for one in calls] == ['self._worker_pool.dispose']
    assert ast.unparse(only_then.test) == 'batch is not None'
