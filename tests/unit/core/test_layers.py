"""The layers of the compiled core: which file may cimport which, read from the sources in `gcp/core`.

Layers are `.pxd` modules of C structs and functions. Chapters are `.pyx` files that `gcp/_core.pyx` includes. They are
compiled as one module: the compiler accepts a chapter that relies on the cimports of another, and these tests do not.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import gcp

#: from the bottom up: a layer may cimport those before it
ORDER = [
    'platform',
    'frames',
    'clock',
    'ring',
    'heap',
    'table',
    'histogram',
    'state',
    'stripes',
    'events',
    'leaks',
    'permits',
    'reserve',
    'sharing',
    'screening',
    'scheduling',
    'connects',
    'transitions',
    'closing',
    'checks',
    'jobs',
    'steering',
    'resizing',
]

#: lines of a function, lines of a file, characters of a line
LONGEST_FUNCTION = 40
LONGEST_FILE = 500
LONGEST_LINE = 120
INDENT = ' ' * 4

CORE = Path(gcp.__file__).resolve().parent / 'core'
CONTENTS = CORE.parent / '_core.pyx'

if not CONTENTS.exists():
    pytest.skip('needs the sources of the core', allow_module_level=True)

LAYERS = sorted(path for path in CORE.glob('*.pxd') if path.stem != '__init__')
CHAPTERS = sorted(CORE.glob('*.pyx'))

each_layer = pytest.mark.parametrize('path', LAYERS, ids=lambda path: path.name)
each_chapter = pytest.mark.parametrize('path', [*CHAPTERS, CONTENTS], ids=lambda path: path.name)
each_file = pytest.mark.parametrize('path', [*LAYERS, *CHAPTERS, CONTENTS], ids=lambda path: path.name)


# --- what is in a file ---

STRING_OR_COMMENT = re.compile(r'''("""|\'\'\'|"|')(?:\\.|.)*?\1|\#[^\n]*''', re.DOTALL)
CIMPORT = re.compile(r'^from gcp\.core\.(\w+) cimport (\([^)]*\)|[^\n]*)\n', re.MULTILINE)
FUNCTION = re.compile(r'^( *)(?:async +)?(?:cdef|cpdef|def) (?!class )[^=(\n]*?(\w+)\(', re.MULTILINE)
ENUM = re.compile(r'(?:cdef |ctypedef )?enum\b *(\w*)')
MEMBER = re.compile(r'(\w+)(?: *=[^,\n]*)?(?:,|$)', re.MULTILINE)
POINTER_TO_FUNCTION = re.compile(r'ctypedef [^(]*\(\*(\w+)\)')
DECLARATION = re.compile(r'(?!from |import |cimport )\w[^(:]*?[ *](\w+) *(\(|:|$)')


def code(text: str) -> str:
    """Return source code without strings, comments and blank ends of lines."""
    return re.sub(r' +$', '', STRING_OR_COMMENT.sub('', text), flags=re.MULTILINE)


def cimports(text: str) -> dict[str, set[str]]:
    """Return the names that are cimported from each layer."""
    found: dict[str, set[str]] = {}
    for layer, names in CIMPORT.findall(code(text)):
        found.setdefault(layer, set()).update(re.findall(r'\w+', names))
    return found


def definitions(text: str) -> Iterator[tuple[str, bool]]:
    """Yield each name that a layer defines, and whether it is a function."""
    for block in re.split(r'\n(?=\S)', code(text)):
        head, _, body = block.partition('\n')
        if head.startswith('cdef extern'):
            yield from definitions(re.sub(r'^    ', '', body, flags=re.MULTILINE))
        elif match := ENUM.match(head):
            yield from ((name, False) for name in [match[1], *MEMBER.findall(body)] if name)
        elif match := POINTER_TO_FUNCTION.match(head):
            yield match[1], False
        elif match := DECLARATION.match(head):
            yield match[1], match[2] == '('


def uses(text: str, name: str, *, function: bool) -> bool:
    """Whether a chapter uses a name of a layer.

    A function is used where it is called: some variables and methods have the same name.
    """
    found = {match.start() for match in re.finditer(rf'(?<![\w.]){name}\b{"(?=[(])" if function else ""}', text)}
    return bool(found - {match.start(2) for match in FUNCTION.finditer(text)})


def cimport(layer: str, names: set[str]) -> str:
    """Return the statement that cimports names from a layer."""
    listed = ', '.join(sorted(names))
    line = f'from gcp.core.{layer} cimport {listed}'
    if len(line) <= LONGEST_LINE:
        return line
    filled = textwrap.fill(f'{listed},', LONGEST_LINE, initial_indent=INDENT, subsequent_indent=INDENT)
    return f'from gcp.core.{layer} cimport (\n{filled}\n)'


def functions(text: str) -> Iterator[tuple[str, int]]:
    """Yield each function with its number of lines."""
    lines = text.splitlines()
    for match in FUNCTION.finditer(text):
        begin = end = text.count('\n', 0, match.start())
        for i in range(begin + 1, len(lines)):
            line = lines[i]
            indent = len(line) - len(line.lstrip())
            if line and indent <= len(match[1]) and not line.lstrip().startswith(')'):
                break
            end = i if line else end
        yield match[2], end - begin + 1


DEFINED = {path.stem: dict(definitions(path.read_text())) for path in LAYERS}


# --- what must hold ---


def test_order_names_every_layer() -> None:
    assert sorted(ORDER) == [path.stem for path in LAYERS]


@each_layer
def test_layer_cimports_only_layers_below(path: Path) -> None:
    below = set(ORDER[: ORDER.index(path.stem)])
    assert set(cimports(path.read_text())) <= below


@each_file
def test_cimported_names_are_defined_there(path: Path) -> None:
    for layer, names in cimports(path.read_text()).items():
        assert names <= set(DEFINED[layer]), f'not defined in {layer}.pxd'


@each_layer
def test_layer_runs_no_python_code(path: Path) -> None:
    text = code(path.read_text())
    signatures = re.findall(r'^ *(?:cdef|cpdef|def)\b[^=(\n]*\([^:]*:', text, re.MULTILINE)
    assert not [one for one in signatures if not re.fullmatch(r'cdef inline [^:]* noexcept nogil:', one)]
    assert not re.search(r'^ *(?:cdef +)?(?:class|import|from \S+ import)\b', text, re.MULTILINE)


@each_chapter
def test_chapter_cimports_what_it_uses_of_the_layers(path: Path) -> None:
    text = path.read_text()
    body = CIMPORT.sub('', code(text))
    used = {
        layer: {name for name, function in DEFINED[layer].items() if uses(body, name, function=function)}
        for layer in ORDER
    }
    incomplete = [layer for layer in ORDER if used[layer] - cimports(text).get(layer, set())]
    assert not incomplete, '\n'.join(['it needs:', *(cimport(layer, used[layer]) for layer in incomplete)])


def test_every_chapter_is_included_once() -> None:
    included = re.findall(r'^include "core/(\w+\.pyx)"$', CONTENTS.read_text(), re.MULTILINE)
    assert sorted(included) == [path.name for path in CHAPTERS]


@each_file
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert text.count('\n') <= LONGEST_FILE
    assert not {name: lines for name, lines in functions(text) if lines > LONGEST_FUNCTION}


# --- the checks themselves ---

LAYER = '''\
cdef extern from *:
    """
    int not_declared(void);
    """
    enum:
        LIMIT
    ctypedef int (*callback_t)(PyObject*) noexcept
    ctypedef struct opaque_t:
        pass
    PyObject* quiet "loud" (object, object) noexcept
    const double* bounds

cdef enum color:
    RED, GREEN      # not BLUE
    LAST = 7

ctypedef Py_ssize_t place_t     # a comment

cdef struct node_t:
    node_t* next


cdef inline node_t* first(node_t* head, int n) noexcept nogil:
    """Return not_defined."""
    return head.next
'''


def test_finds_definitions() -> None:
    found = dict(definitions(LAYER))
    assert {name for name, function in found.items() if function} == {'first', 'quiet'}
    assert {name for name, function in found.items() if not function} == {
        'GREEN',
        'LAST',
        'LIMIT',
        'RED',
        'bounds',
        'callback_t',
        'color',
        'node_t',
        'opaque_t',
        'place_t',
    }


def test_finds_cimports() -> None:
    text = 'from gcp.core.ring cimport ring_t\nfrom gcp.core.state cimport (  # why\n    IDLE,\n    pool_t,\n)\n'
    assert cimports(text) == {'ring': {'ring_t'}, 'state': {'IDLE', 'pool_t'}}


@pytest.mark.parametrize(
    'text, name, used',
    [
        ('    first(head)', 'first', True),
        ('    cdef int n = first(head)', 'first', True),
        ('    self.first(head)', 'first', False),
        ('    cdef int first(self):', 'first', False),
        ('    first = 1', 'first', False),
        ('    cdef node_t* node', 'node_t', True),
        ('    if color == RED:', 'RED', True),
        ('    if color == INFRARED:', 'RED', False),
    ],
)
def test_finds_uses(text: str, name: str, used: bool) -> None:
    assert uses(text, name, function=name == 'first') is used


CHAPTER = """\
def long(
    a,
):
    return a


cdef class Pool(Base):
    cdef int short(self):
        cdef int i = long(1)

        return i
"""


def test_counts_lines_of_functions() -> None:
    assert list(functions(CHAPTER)) == [('long', 4), ('short', 4)]
