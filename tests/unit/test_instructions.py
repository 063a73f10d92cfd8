"""What an idle hit costs, in instructions: the same on each run, on however busy a machine."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[2] / 'asv_bench'
REQUIRED = os.environ.get('GCP_REQUIRE_SERVERS') == '1'

if not BENCH.exists():
    pytest.skip('no asv_bench beside the tests: this is not a checkout', allow_module_level=True)

sys.path.append(str(BENCH))

import callgrind  # noqa: E402
import instructions  # noqa: E402
from callgrind import Build, Cost, Seen  # noqa: E402

PAIR = 'threads: acquire, release'
CLOCK = 'clock_gettime'


def missing(reason: str) -> None:
    (pytest.fail if REQUIRED else pytest.skip)(reason)


@pytest.fixture(scope='module')
def seen() -> Seen:
    """What was counted, once for all."""
    try:
        return callgrind.count()
    except callgrind.ValgrindMissingError as error:
        missing(str(error))
        raise


def test_idle_hits_cost_what_they_did(seen: Seen) -> None:
    before = instructions.nearest(seen.build, instructions.load())
    if before is None:
        missing(f'no baseline for {seen.build.python}: {instructions.how_to_update()}')
    wrong = [said for name in seen.costs for said in instructions.judge(name, seen, before)]
    assert not wrong, '\n'.join(['', *wrong, instructions.how_to_update()])


def test_nothing_that_was_counted_is_left_out_now(seen: Seen) -> None:
    for kept in instructions.load().values():
        assert set(kept.costs) == set(seen.costs), kept.build


@pytest.mark.parametrize('name', [PAIR, 'threads: with connection', 'asyncio: acquire, release'])
def test_hit_reads_the_clock_once_each_way(seen: Seen, name: str) -> None:
    assert seen.costs[name].calls[CLOCK] == 2


@pytest.mark.parametrize('front', ['threads', 'asyncio'])
def test_hit_of_a_tuple_key_is_no_other_way(seen: Seen, front: str) -> None:
    pair = f'{front}: acquire, release'
    assert seen.costs[f'{pair}, tuple key'].calls == seen.costs[pair].calls


# --- the measure itself ---

KNOWN = Build('python 3.11, gcc 12, cython 3.3, x86_64', '3.11.7, GCC 12.2.0, glibc 2.36')
COST = Cost(core=600.0, total=1500.0, calls={CLOCK: 2.0, 'PyDict_GetItemWithError': 1.0})


def of(cost: Cost, build: Build = KNOWN) -> Seen:
    return Seen(build, {PAIR: cost})


@pytest.mark.parametrize(
    'change, said',
    [
        ({'core': 606.0, 'total': 1420.0}, []),
        ({'core': 607.0}, ['607 instructions in the core, was 600 (+1.2%), dearer']),
        ({'core': 593.0}, ['593 instructions in the core, was 600 (-1.2%), cheaper: keep it so']),
        ({'total': 1600.0}, ['1600 instructions in all, was 1500 (+6.7%), dearer']),
        (
            {'calls': {**COST.calls, CLOCK: 3.0}},
            ['4 calls out of the core, was 3 (+33.3%), dearer (clock_gettime 3, was 2)'],
        ),
        (
            {'calls': {CLOCK: 2.0}},
            ['2 calls out of the core, was 3 (-33.3%), cheaper: keep it so (PyDict_GetItemWithError 0, was 1)'],
        ),
    ],
)
def test_tells_what_became_dearer_or_cheaper(change: dict[str, Any], said: list[str]) -> None:
    assert instructions.judge(PAIR, of(replace(COST, **change)), of(COST)) == [f'{PAIR}: {one}' for one in said]


def test_allows_slow_operations_for_their_times_in_other_buckets() -> None:
    slow = replace(COST, core=3000.0, total=30_000.0)
    assert instructions.judge(PAIR, of(replace(slow, core=3055.0)), of(slow)) == []
    assert len(instructions.judge(PAIR, of(replace(slow, core=3065.0)), of(slow))) == 1


def test_tells_only_blunders_on_builds_without_a_baseline() -> None:
    other = replace(KNOWN, core='python 3.11, clang 17, cython 3.3, x86_64')
    assert instructions.judge(PAIR, of(replace(COST, core=750.0, total=9000.0), other), of(COST)) == []
    assert instructions.judge(PAIR, of(replace(COST, core=300.0), other), of(COST)) == []
    assert len(instructions.judge(PAIR, of(replace(COST, core=800.0), other), of(COST))) == 1
    assert len(instructions.judge(PAIR, of(replace(COST, calls={'_Py_Dealloc': 6.0}), other), of(COST))) == 1


def test_tells_an_operation_without_a_baseline() -> None:
    assert instructions.judge(PAIR, of(COST), Seen(KNOWN, {})) == [f'{PAIR}: not in the baseline yet']


def test_compares_with_the_same_python() -> None:
    clang, older = (
        replace(KNOWN, core=core)
        for core in ('python 3.11, clang 17, cython 3.3, x86_64', 'python 3.1, gcc 12, cython 3.3, x86_64')
    )
    kept = {build.core: of(COST, build) for build in (older, clang, KNOWN)}
    assert instructions.nearest(KNOWN, kept) is kept[KNOWN.core]
    newer = replace(KNOWN, core='python 3.11, gcc 13, cython 3.3, x86_64')
    assert instructions.nearest(newer, kept) is kept[clang.core]
    assert instructions.nearest(replace(KNOWN, core='python 3.14, gcc 12, cython 3.3, x86_64'), kept) is None


def test_update_leaves_what_was_kept_of_other_builds(tmp_path: Path) -> None:
    path = tmp_path / 'baseline.json'
    other = replace(KNOWN, core='python 3.12, gcc 12, cython 3.3, x86_64')
    instructions.save(of(COST), path)
    instructions.save(of(COST, other), path)
    instructions.save(of(replace(COST, core=500.0)), path)
    assert instructions.load(path) == {KNOWN.core: of(replace(COST, core=500.0)), other.core: of(COST, other)}


def test_update_keeps_what_did_not_change(tmp_path: Path) -> None:
    path = tmp_path / 'baseline.json'
    instructions.save(Seen(KNOWN, {PAIR: COST, 'with': COST}), path)
    instructions.save(Seen(KNOWN, {PAIR: replace(COST, core=601.0), 'with': replace(COST, core=700.0)}), path)
    assert instructions.load(path)[KNOWN.core].costs == {PAIR: COST, 'with': replace(COST, core=700.0)}


ACCOUNT = """\
part: 1
ob=/python
fn=run
0 5
part: 2
ob=/python
fl=ceval.c
fn=run
0 100
cob=/core.so
cfi=core.c
cfn=acquire
calls=10 0
0 900
0 7
ob=/core.so
fl=core.c
fn=acquire
0 300
cfn=serve
calls=10 0
0 250
cob=/libc.so
cfi=(below main)
cfn=clock_gettime@@GLIBC_2.17
calls=20 0
0 60
fn=serve
0 40
"""


def test_reads_own_costs_and_calls_out_of_the_core() -> None:
    first, second = callgrind.read(iter(ACCOUNT.splitlines(keepends=True)), '/core.so')
    assert first == Cost(core=0, total=5, calls={})
    assert second == Cost(core=340, total=447, calls={CLOCK: 20})


def test_says_that_valgrind_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('PATH', '')
    with pytest.raises(callgrind.ValgrindMissingError, match='valgrind is not installed'):
        callgrind.count()
