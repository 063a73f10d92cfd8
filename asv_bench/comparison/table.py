"""The comparison as a table: in the terminal, and between two marks on a page of the documentation."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich import box
from rich.table import Table

from . import figures, machine
from .measure import TASK_CASES, THREAD_CASES, Case, Comparison, Line

BEGIN = '<!-- made by `make bench-peers ARGS=--write`: begin -->'
END = '<!-- made by `make bench-peers ARGS=--write`: end -->'
OURS = 'gcp'
WIDTH = 130
UNIT_NAME = 'deque.pop + append'

THREAD_HEAD = ('threads', 'acquire + release', '`with`', *(case.title for case in THREAD_CASES))
TASK_HEAD = ('asyncio', '`await` acquire + release', '`async with`', *(case.title for case in TASK_CASES))


def rows(lines: Sequence[Line], cases: Sequence[Case], unit: float) -> Iterator[list[str]]:
    """Make a row of each line. The first figure of one that was not measured is the reason."""
    for line in lines:
        if line.reason:
            yield [line.peer.name, line.reason, *[''] * (1 + len(cases))]
        else:
            yield [
                line.peer.name,
                figures.hit(line.pair, unit),
                figures.hit(line.context, unit),
                *(figures.load(line.loads[case.title]) for case in cases),
            ]


def parts(seen: Comparison) -> list[tuple[Sequence[str], list[list[str]]]]:
    """Return the heads and the rows of both tables."""
    unit_row = [UNIT_NAME, figures.hit(seen.unit, seen.unit), *[''] * (1 + len(THREAD_CASES))]
    return [
        (THREAD_HEAD, [*rows(seen.threads, THREAD_CASES, seen.unit), unit_row]),
        (TASK_HEAD, list(rows(seen.tasks, TASK_CASES, seen.unit))),
    ]


def for_terminal(seen: Comparison) -> Iterator[Table]:
    for head, body in parts(seen):
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
        for number, title in enumerate(head):
            table.add_column(
                title.replace('`', '').replace(', ', '\n'), justify='right' if number else 'left', overflow='fold'
            )
        for row in body:
            table.add_row(*row, style='bold' if row[0] == OURS else None)
        yield table


def for_page(seen: Comparison) -> str:
    """Write both tables, the machine, the versions, and how the peers were set up."""
    told = []
    for head, body in parts(seen):
        lines = [head, ['---', *['--:'] * (len(head) - 1)], *(embolden(row) for row in body)]
        told.append('\n'.join('| ' + ' | '.join(cell.replace('|', '\\|') for cell in line) + ' |' for line in lines))
    told.append(
        textwrap.fill(
            f'Measured on {machine.describe()}, by `make bench-peers ARGS=--write`, with '
            f'{machine.versions([line.peer for line in seen.lines])}. Set up: {"; ".join(notes(seen))}.',
            width=WIDTH,
            break_long_words=False,
            break_on_hyphens=False,
        )
    )
    return '\n\n'.join(told)


def embolden(row: Sequence[str]) -> list[str]:
    return [f'**{cell}**' if cell and row[0] == OURS else cell for cell in row]


def notes(seen: Comparison) -> Iterator[str]:
    """Describe how peers were set up, where not by default."""
    said: set[str] = set()
    for line in seen.lines:
        note = f'{line.peer.name}: {line.peer.note}'
        if line.peer.note and note not in said:
            said.add(note)
            yield note


def write(page: Path, text: str) -> None:
    """Write a text between the marks.

    :raises ValueError: when they are not there
    """
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f'{page.name} must have the marks {BEGIN!r} and {END!r}, in this order')
    page.write_text(f'{before}{BEGIN}\n\n{text}\n\n{END}{after}')
