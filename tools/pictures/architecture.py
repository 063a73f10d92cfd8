"""Draw docs/architecture.svg from docs/architecture.dot. Needs Graphviz: `apt-get install graphviz` or the like."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / 'docs' / 'architecture.dot'


def draw(source: Path) -> str:
    """Return a graph as SVG, without what differs between versions of Graphviz: comments and the fixed size.

    :param source: the graph in the DOT language
    """
    done = subprocess.run(['dot', '-Tsvg', source], capture_output=True, text=True, check=True)
    svg = re.sub(r'<!--.*?-->\n?', '', done.stdout, flags=re.DOTALL)
    svg = re.sub(r'<!DOCTYPE.*?>\n', '', svg, flags=re.DOTALL)
    svg = re.sub(r'<svg width="\d+pt" height="\d+pt"', '<svg', svg)
    return svg.replace('Helvetica,sans-Serif', 'Helvetica,Arial,sans-serif')


if __name__ == '__main__':
    if shutil.which('dot') is None:
        sys.exit('Graphviz is not installed: there is no program `dot` on PATH')
    SOURCE.with_suffix('.svg').write_text(draw(SOURCE))
