"""The table of what gcp must show: it says what it measured, and its exit status and its JSON follow the rows."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / 'asv_bench' / 'must_show.py'

pytest.importorskip('rich')
pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    monkeypatch.setenv('GCP_BENCH', 'full')  # it sets that itself: to be undone after the test
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module('must_show')


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *args], capture_output=True, text=True, timeout=300)


def test_an_unknown_case_is_told() -> None:
    done = run('keys', 'speed', 'light')
    assert done.returncode == 2
    assert 'no such case: speed, light; there are hit, keys, ' in done.stderr
    assert done.stdout == ''


def test_a_case_is_measured_and_told_to_men_and_machines(tmp_path: Path) -> None:
    file = tmp_path / 'seen.json'
    done = run('--quick', 'imports', 'keys', '--json', str(file))
    assert done.stderr == ''
    seen = json.loads(file.read_text())
    assert {row['case'] for row in seen['rows']} == {'imports', 'keys'}
    assert seen['quick'] is True
    assert all(seen['peers'].values())
    by_what = {row['what']: row for row in seen['rows']}
    tuples = by_what['acquire+release: tuple key / str key']
    assert (tuples['target'], tuples['bound'], tuples['unit']) == ('<= 1.25 x', 1.25, 'x')
    assert tuples['value'] == tuples['medians']['tuple, ns'] / tuples['medians']['str, ns'] > 0
    assert tuples['ok'] is (tuples['value'] <= 1.25)
    assert by_what['telemetry packages in sys.modules after import gcp.threading, gcp.asyncio']['value'] == 0
    assert all(row['what'] in done.stdout for row in seen['rows'])
    assert seen['missed'] == sum(row['ok'] is False for row in seen['rows'])
    assert done.returncode == (1 if seen['missed'] else 0)


def test_the_list_tells_each_case(script: ModuleType) -> None:
    done = run('--list')
    assert done.returncode == 0
    told = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert {name: text.strip() for name, text in told.items()} == {
        name: case.__doc__ for name, case in script.CASES.items()
    }


ROWS: dict[str, dict[str, Any]] = {
    'met': {'value': 1.0, 'bound': 1.0},
    'missed': {'value': 1.01, 'bound': 1.0},
    'met from above': {'value': 0.99, 'bound': 0.99, 'is_ceiling': False},
    'missed from below': {'value': 0.98, 'bound': 0.99, 'is_ceiling': False},
    'informs': {'value': 7.0},
    'unmeasured': {'value': None, 'bound': 1.0, 'missing': 'not installed'},
}


@pytest.mark.parametrize(
    ('names', 'status', 'summary'),
    [
        (['met'], 0, '1 met, none missed'),
        (['met', 'met from above', 'informs'], 0, '2 met, none missed'),
        (['met', 'missed'], 1, '1 met, 1 missed'),
        (['missed from below', 'missed', 'unmeasured'], 1, '0 met, 2 missed, 1 not measured'),
        (['unmeasured', 'informs'], 0, '0 met, none missed, 1 not measured'),
    ],
)
def test_the_exit_status_and_the_json_follow_the_rows(
    script: ModuleType,
    names: list[str],
    status: int,
    summary: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def case(effort: float) -> Iterator[Any]:
        """rows that are known"""
        for name in names:
            yield script.Row(name, medians={'ns': 57.0}, **ROWS[name])

    monkeypatch.setattr(script, 'CASES', {'known': case})
    file = tmp_path / 'seen.json'
    assert script.main(['--json', str(file)]) == status
    assert capsys.readouterr().out.splitlines()[-1] == summary
    seen = json.loads(file.read_text())
    assert [row['what'] for row in seen['rows']] == names
    assert seen['missed'] == sum(row['ok'] is False for row in seen['rows'])
    assert all(row['medians'] == {'ns': 57.0} and row['case'] == 'known' for row in seen['rows'])


def test_less_effort_has_fewer_rounds_but_some(
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    efforts = []

    def case(effort: float) -> Iterator[Any]:
        """nothing"""
        efforts.append(effort)
        yield from ()

    monkeypatch.setattr(script, 'CASES', {'none': case})
    assert script.main([]) == script.main(['--quick']) == 0
    capsys.readouterr()
    full, quick = efforts
    contest = importlib.import_module('cases.contest')
    assert contest.repetitions(full, 7) >= 7
    assert 1 < contest.repetitions(quick, 7) < 7


def test_what_lacks_a_peer_is_told_and_neither_met_nor_missed(
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.import_module('benchmarks.adapters.peer'), 'is_installed', lambda package: False)
    rows = {row.what: row for row in script.CASES['hit'](0.01)}
    lacking = [what for what, row in rows.items() if row.value is None]
    assert lacking == [
        'acquire+release: generic-connection-pool / gcp',
        'acquire+release: psycopg_pool / gcp',
        'with pool.connection(): generic-connection-pool / gcp',
        'async with pool.connection(): generic-connection-pool / gcp',
    ]
    assert all(rows[what].ok is None and rows[what].seen.startswith('not installed: ') for what in lacking)
    assert rows['acquire+release / deque pop+append'].ok is not None


def test_a_restart_is_not_measured_without_its_driver(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module('cases.restart'), 'is_installed', lambda package: False)
    (row,) = script.CASES['restart'](0.01)
    assert row.ok is None and row.seen == 'not installed: psycopg'


def test_a_restart_is_measured_without_another_pool(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    cases: Any = importlib.import_module('cases.restart')
    contest = importlib.import_module('cases.contest')
    pools = {name: SimpleNamespace(missing='' if name == contest.GCP else 'not installed') for name in cases.THREADS}
    monkeypatch.setattr(cases, 'THREADS', pools)
    for name in ('AWAY', 'AROUND'):
        monkeypatch.setattr(cases, name, 0.1)
    rows = list(script.CASES['restart'](0.01))
    if rows[0].value is None:
        pytest.skip(rows[0].missing)
    assert [row.missing for row in rows if row.value is None] == ['not installed'] * 2
    assert len(rows) == 10


def test_all_that_wait_in_line_are_compared_round_by_round(script: ModuleType) -> None:
    contest = importlib.import_module('cases.contest')
    loads = importlib.import_module('benchmarks.loads')
    quiet, busy = [6, 6], [1, 1]
    seen = contest.Contest(
        {
            'gcp': [loads.Seen(quiet, 1.0, 0.1), loads.Seen(busy, 1.0, 0.3), loads.Seen(quiet, 2.0, 0.2)],
            'other': [loads.Seen([3, 0], 1.0), loads.Seen([1, 0], 1.0), loads.Seen([3, 0], 2.0)],
        }
    )
    assert seen.ratio('other') == 4.0
    assert seen.jain() == {'gcp': 1.0, 'other': 0.5}
    assert seen.longest_wait() == 0.2
    assert seen.rates(['other']) == {'other, 1/s': 1.5}


def test_a_connection_is_passed_over_when_it_lay_idle_for_sure(script: ModuleType) -> None:
    """From before the request asked until its own was begun; unless who has it next had asked before."""
    spike = importlib.import_module('benchmarks.spike')
    Request, Spike = spike.Request, spike.Spike  # noqa: N806

    def seen(*requests: Any, **creations: float) -> int:
        over: int = Spike(list(requests), {'old': -1.0, **creations}, start=0.0).passed_over
        return over

    first = Request(asked=1.0, got=1.1, gave=2.0, conn='old')
    late = Request(asked=3.0, got=3.5, gave=3.6, conn='new')
    assert seen(first, late, new=3.1) == 1
    assert seen(first, Request(asked=1.5, got=3.5, gave=3.6, conn='new'), new=1.6) == 0  # it was in use
    assert seen(first, Request(asked=1.5, got=3.5, gave=3.6, conn='new'), new=2.1) == 0  # it came back too late
    assert seen(first, late, Request(asked=2.9, got=3.2, gave=3.3, conn='old'), new=3.1) == 0  # promised to another
    assert seen(first, late, Request(asked=3.2, got=3.3, gave=3.4, conn='old'), new=3.1) == 1  # who came later


def test_nothing_is_measured_with_a_coarser_level_of_the_benchmarks() -> None:
    """What the environment asks of asv's benchmarks is not what the table says: 20,000 connections expire."""
    program = 'import must_show; from benchmarks import expiry, spike; print(expiry.MANY, spike.CONNECT)'
    done = subprocess.run(
        [sys.executable, '-c', program],
        cwd=SCRIPT.parent,
        env=os.environ | {'GCP_BENCH': 'once'},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert done.stdout == '20000 0.15\n'
