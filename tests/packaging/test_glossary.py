"""docs/glossary.md: each word once, in alphabetical order, with one or two sentences."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = next(folder for folder in Path(__file__).resolve().parents if folder.name == 'tests')
PAGE = TESTS.parent / 'docs' / 'glossary.md'

pytestmark = pytest.mark.skipif(not PAGE.exists(), reason='no docs beside the tests: this is not a checkout')


def rows() -> list[tuple[str, str]]:
    found = re.findall(r'^\| (.+?) \| (.+) \|$', PAGE.read_text(), flags=re.MULTILINE)
    return [(word, meaning) for word, meaning in found if word != 'word']


def test_each_word_has_one_row_in_alphabetical_order() -> None:
    words = [word.casefold() for word, _ in rows()]
    assert len(words) > 50
    assert words == sorted(set(words))


def test_each_meaning_is_one_or_a_few_sentences() -> None:
    for word, meaning in rows():
        assert meaning.endswith('.'), word
        assert len(meaning) < 300, word
