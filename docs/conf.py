"""Configure Sphinx, which builds the pages of this directory and of the docstrings. Needs no network."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import Any

import gcp

project = 'gcp'
copyright = 'gcp contributors'
release = version = gcp.__version__

extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.viewcode']
exclude_patterns = ['_build']

# single backticks in docstrings: a link where there is something to link to, else code
default_role = 'py:obj'

myst_heading_anchors = 3

autodoc_inherit_docstrings = False  # http.client's are not in reStructuredText
autodoc_member_order = 'bysource'
autodoc_default_options = {'members': True, 'show-inheritance': True}
python_use_unqualified_type_names = True
maximum_signature_line_length = 100

# A reference to a name of gcp that does not exist is an error, private names and type variables excepted. Names of
# other packages cannot be looked up without the network.
nitpicky = True
nitpick_ignore_regex = [(r'py:.*', r'(?!gcp\.).*|.*\.(_.*|[A-Z]|[A-Z]\w*T|Inspection|Operations)')]

#: methods of the pools that are public in the compiled core, but only for gcp itself
INTERNAL = {'open_acquire', 'open_release'}

html_theme = 'furo'
html_static_path = ['_static']
html_css_files = ['pages.css']
html_title = f'gcp {version}'


def setup(app: Any) -> None:
    app.connect('autodoc-process-signature', take_from_stub)
    app.connect('autodoc-skip-member', skip_what_others_define)


def skip_what_others_define(
    app: object,
    what: str,
    name: str,
    thing: Any,
    skip: bool,
    options: object,
) -> bool | None:
    """Leave out classes of drivers and aliases of built-in types that a module re-exports, and internal methods."""
    foreign = isinstance(thing, type) and not thing.__module__.startswith('gcp')
    return True if foreign or name in INTERNAL else None


def take_from_stub(
    app: object,
    what: str,
    name: str,
    thing: object,
    options: object,
    signature: str | None,
    returns: str | None,
) -> tuple[str | None, str | None]:
    """Give a compiled method the signature in its stub."""
    if type(thing).__name__ != 'cython_function_or_method':
        return signature, returns
    module, kind, method = name.rsplit('.', 2)
    bases = getattr(importlib.import_module(module), kind).__mro__
    function = next(STUB[base.__name__, method] for base in bases if (base.__name__, method) in STUB)
    arguments = ast.unparse(function.args).removeprefix('self').removeprefix(', ')
    return f'({arguments})', ast.unparse(function.returns or ast.Constant(None))


def read_stub(path: Path) -> dict[tuple[str, str], ast.FunctionDef | ast.AsyncFunctionDef]:
    """Return the methods of a stub by class and name, with type variables named as in the fronts."""
    text = path.read_text().replace('_EndpointT', 'EndpointT').replace('_ConnectionT', 'ConnectionT')
    return {
        (kind.name, method.name): method
        for kind in ast.parse(text).body
        if isinstance(kind, ast.ClassDef)
        for method in kind.body
        if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef)
    }


STUB = read_stub(Path(gcp.__file__).with_name('_core.pyi'))
