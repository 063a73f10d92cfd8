"""The matrix as a table: what came of each case, for the terminal and for docs/managers.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

KEPT, BROKEN, NOT_RUN = 'ok', 'FAILED', '?'

BEGIN, END = '<!-- the matrix: begin -->\n', '<!-- the matrix: end -->\n'


@dataclass
class Table:
    """Outcomes by row and column.

    :ivar rows: the managers
    :ivar columns: the cases, with what they are
    :ivar reasons: why a case does not concern a manager, by row and column
    :ivar cells: what came of the others
    """

    rows: Sequence[str] = ()
    columns: dict[str, str] = field(default_factory=dict)
    reasons: dict[tuple[str, str], str] = field(default_factory=dict)
    cells: dict[tuple[str, str], str] = field(default_factory=dict)

    def cell(self, row: str, column: str) -> str:
        return '-' if (row, column) in self.reasons else self.cells.get((row, column), NOT_RUN)

    def is_complete(self) -> bool:
        return all(self.cell(row, column) != NOT_RUN for row in self.rows for column in self.columns)

    def text(self) -> list[str]:
        """The table for a terminal: the cases as rows, since there are more words to them."""
        width = max(map(len, self.columns))
        legend = [f'{number:>3}  {row}' for number, row in enumerate(self.rows, 1)]
        head = ' ' * width + ''.join(f'{number:>7}' for number in range(1, len(self.rows) + 1))
        body = [
            f'{column:<{width}}' + ''.join(f'{self.cell(row, column):>7}' for row in self.rows)
            for column in self.columns
        ]
        return [*legend, '', head, *body]

    def markdown(self) -> str:
        """The table for the guide. A case that does not concern a manager has a letter, explained below."""
        reasons = sorted(set(self.reasons.values()))
        letters = {reason: chr(ord('a') + number) for number, reason in enumerate(reasons)}
        lines = [f'{number}. `{row}`' for number, row in enumerate(self.rows, 1)]
        lines += ['', '| |' + ''.join(f' {number} |' for number in range(1, len(self.rows) + 1))]
        lines += ['|---|' + '---|' * len(self.rows)]
        for column, words in self.columns.items():
            cells = [
                letters[self.reasons[row, column]] if (row, column) in self.reasons else self.cell(row, column)
                for row in self.rows
            ]
            lines.append(f'| **{column}**: {words} |' + ''.join(f' {cell} |' for cell in cells))
        lines += ['', *(f'{letter}: {reason}  ' for reason, letter in letters.items())]
        return '\n'.join(lines).rstrip() + '\n'


TABLE = Table()
