"""Draw docs/demo.svg, one frame of a real `python -m gcp demo`. Run it with `python -m tools.pictures.demo`."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from gcp.demo import main, runner, view
from gcp.demo.losses import Losses
from gcp.demo.work import Load

SECONDS, FRAME_AT = 8.0, 6.0


class Picture(view.LineView):
    """Shows nothing, and draws one frame."""

    interval = 0.5

    def __init__(self, loads: Sequence[Load], losses: Losses, seconds: float) -> None:
        super().__init__(loads, losses)
        self._seconds = seconds
        self._drawn = False

    def show(self, elapsed: float) -> None:
        samples = [sampler.sample() for sampler in self._samplers]
        if self._drawn or elapsed < FRAME_AT:
            return
        self._drawn = True
        console = Console(record=True, width=86, file=io.StringIO())
        caption = f'{view._format_losses(self._losses, samples)}; {self._seconds - elapsed:.0f} s left'
        console.print(view._table(samples, caption))
        svg = console.export_svg(title='python -m gcp demo')
        # without the web fonts, viewers need no network
        svg = re.sub(r'@font-face \{.*?\}|<!--.*?-->', '', svg, flags=re.DOTALL).replace('Fira Code, ', '')
        svg = '\n'.join(line.rstrip() for line in svg.splitlines() if line.strip()) + '\n'
        (Path(__file__).resolve().parents[2] / 'docs' / 'demo.svg').write_text(svg)


runner.open_view = Picture
raise SystemExit(main(SECONDS, 32, 200, None))
