"""`make bench-compare` tells a regression from noise. The rounds are made up here; nothing is measured."""

from __future__ import annotations

import subprocess
import sys
from math import inf, nan
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[2] / 'asv_bench'

pytest.importorskip('asv', reason='a development tool: `make dev` installs it')
pytest.importorskip('rich', reason='a development tool: `make dev` installs it')


@pytest.fixture(scope='module')
def compare() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        import compare

        return compare


@pytest.mark.parametrize(
    'head, verdict',
    [
        ([100, 100, 100, 100, 100, 100], ''),
        ([109, 109, 109, 109, 109, 109], ''),
        ([112, 112, 112, 112, 112, 112], 'slower'),
        ([190, 112, 112, 112, 112, 95], 'slower'),  # one lucky round
        ([300, 300, 300, 100, 100, 100], ''),  # something else ran for half of the time
        ([50, 60, 200, 170, 90, 130], ''),  # nothing but noise
        ([80, 80, 80, 80, 80, 150], 'faster'),
        ([nan, 100, 100, 100, 100, 100], 'broken'),
    ],
)
def test_three_quarters_of_the_rounds_decide(compare: ModuleType, head: list[float], verdict: str) -> None:
    seen = compare.Compared('seconds', more_is_better=False, base=[100.0] * 6, head=head)
    assert seen.verdict(1.1) == verdict


def test_each_round_is_judged_by_itself(compare: ModuleType) -> None:
    """The machine is slower and slower; that is no regression, though the head's times are worse in the median."""
    base = [100.0, 150.0, 220.0, 330.0, 500.0, 750.0]
    seen = compare.Compared('seconds', more_is_better=False, base=base, head=[time * 1.05 for time in base])
    assert seen.verdict(1.1) == ''
    seen.head = [time * 1.15 for time in base]
    assert seen.verdict(1.1) == 'slower'


def test_a_lower_rate_is_worse(compare: ModuleType) -> None:
    seen = compare.Compared('1/s', more_is_better=True, base=[1000.0] * 6, head=[800.0] * 6)
    assert seen.ratios == [1.25] * 6
    assert seen.verdict(1.1) == 'slower'
    assert compare.Compared('1/s', more_is_better=True, base=[800.0] * 6, head=[1000.0] * 6).verdict(1.1) == 'faster'


def test_what_failed_before_breaks_nothing(compare: ModuleType) -> None:
    seen = compare.Compared('seconds', more_is_better=False, base=[nan] * 3, head=[nan] * 3)
    assert seen.verdict(1.1) == ''


def test_counts_may_be_zero(compare: ModuleType) -> None:
    seen = compare.Compared('times', more_is_better=False, base=[0.0] * 3, head=[0.0] * 3)
    assert (seen.ratios, seen.verdict(1.1)) == ([1.0] * 3, '')
    seen.head = [1.0] * 3
    assert (seen.ratios, seen.verdict(1.1)) == ([inf] * 3, 'slower')


@pytest.mark.parametrize(
    'argument, told',
    [
        ('no-such-branch', "BASE: git knows no commit 'no-such-branch' here\n"),
        ('HEAD:README.md', "BASE: git knows no commit 'HEAD:README.md' here\n"),
    ],
)
def test_a_base_that_is_no_commit_is_told(argument: str, told: str) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPTS / 'compare.py', argument], capture_output=True, text=True, cwd=SCRIPTS.parent
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, '', told)


@pytest.mark.parametrize(
    'arguments, told',
    [
        (['HEAD', '--factor', '1'], '--factor must be more than 1, not 1'),
        (['HEAD', '--rounds', '1'], '--rounds must be at least 2, not 1'),
    ],
)
def test_bad_arguments_are_told(arguments: list[str], told: str) -> None:
    done = subprocess.run([sys.executable, SCRIPTS / 'compare.py', *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert told in done.stderr
