"""docs/guarantees.md names the tests that hold each guarantee, and these name the guarantee in their docstrings."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

TESTS = next(folder for folder in Path(__file__).resolve().parents if folder.name == 'tests')
PAGE = TESTS.parent / 'docs' / 'guarantees.md'

pytestmark = pytest.mark.skipif(not PAGE.exists(), reason='no docs beside the tests: this is not a checkout')


def sections() -> dict[int, str]:
    """Return the text under each heading of the page, by number."""
    parts = re.split(r'^## Guarantee (\d+): .+$', PAGE.read_text(), flags=re.MULTILINE)
    return {int(number): text for number, text in zip(parts[1::2], parts[2::2], strict=True)}


def named_in(docstring: str) -> set[int]:
    """Return the numbers in lines such as "Guarantee 12 (...)" or "Guarantees 1, 2 and 5 (...)"."""
    found = re.findall(r'^Guarantees? (\d+(?:(?:, | and )\d+)*)', docstring, flags=re.MULTILINE)
    return {int(number) for numbers in found for number in re.findall(r'\d+', numbers)}


@functools.cache
def modules() -> dict[str, set[int]]:
    """Return the guarantees that each test module names, by the module's path."""
    named = {path: named_in(ast.get_docstring(ast.parse(path.read_text())) or '') for path in TESTS.rglob('test_*.py')}
    return {path.relative_to(TESTS.parent).as_posix(): numbers for path, numbers in named.items() if numbers}


def test_guarantees_are_numbered_without_a_gap() -> None:
    assert list(sections()) == list(range(1, len(sections()) + 1))
    assert len(sections()) >= 16


def test_each_guarantee_has_a_stable_anchor() -> None:
    anchors = re.findall(r'^\(guarantee-(\d+)\)=\n## Guarantee (\d+): ', PAGE.read_text(), flags=re.MULTILINE)
    assert anchors == [(str(number), str(number)) for number in sections()]


def test_each_guarantee_is_named_by_a_test() -> None:
    assert set(sections()) - set().union(*modules().values()) == set()


def test_no_test_names_an_unknown_guarantee() -> None:
    assert {path: numbers - set(sections()) for path, numbers in modules().items() if numbers - set(sections())} == {}


def shown(text: str) -> list[str]:
    """Return the paths of the test modules that a section of the page names."""
    return re.findall(r'`(tests/\S+\.py)`', text.partition('\nTests: ')[2])


def test_the_page_names_the_modules_that_name_it() -> None:
    for number, text in sections().items():
        named = sorted(Path(path).name for path, numbers in modules().items() if number in numbers)
        assert sorted(Path(path).name for path in shown(text)) == named, f'guarantee {number}'


@pytest.mark.skipif(not (TESTS / 'behaviour').is_dir(), reason='the tests are not in their folders yet')
def test_the_modules_are_where_the_page_says() -> None:
    for text in sections().values():
        assert [path for path in shown(text) if not (TESTS.parent / path).exists()] == []
