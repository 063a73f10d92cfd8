"""The core's clock on machines that do not exist: the C code of `gcp/core/clock.pxd`, compiled with a counter and a
kernel of our own. So a machine sleeps for a day within a microsecond, and a counter jumps when it is told to."""

from __future__ import annotations

import ast
import ctypes
import platform
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[3] / 'gcp' / 'core' / 'clock.pxd'
NEAR = 50e-6  # seconds
FREQUENCY = 3e9  # ticks a second
DAY = 86_400.0

if not SOURCE.exists() or sys.platform != 'linux' or platform.machine() != 'x86_64':
    pytest.skip('needs the sources of the core, and x86-64 Linux', allow_module_level=True)

WORLD = r"""
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct { uint64_t ticks, cost; double seconds; long asked; const char *source; } world;
static uint64_t fake_counter(void) {
    uint64_t now = world.ticks;
    world.ticks += world.cost;
    world.seconds += (double)world.cost / 3e9;
    return now;
}
static int fake_kernel(struct timespec *t) {
    world.asked += 1;
    t->tv_sec = (time_t)world.seconds;
    t->tv_nsec = (long)((world.seconds - (double)t->tv_sec) * 1e9);
    return 0;
}
static FILE *fake_file(void) {
    return world.source == NULL ? NULL : fmemopen((void *)world.source, strlen(world.source), "r");
}
#define __builtin_ia32_rdtsc() fake_counter()
#define clock_gettime(clock, t) fake_kernel(t)
#define fopen(path, mode) fake_file()
#define getenv(name) NULL
"""

FACE = r"""
void begin(void) { gcp_clock_init(); }
double now(void) { return gcp_monotonic(); }
"""


class World(ctypes.Structure):
    _fields_ = [
        ('ticks', ctypes.c_uint64),
        ('cost', ctypes.c_uint64),
        ('seconds', ctypes.c_double),
        ('asked', ctypes.c_long),
        ('source', ctypes.c_char_p),
    ]


class Machine:
    """A machine on which the clock runs.

    :ivar slewed: by what part of itself the kernel's second is longer, as adjtimex makes it
    """

    def __init__(self, library: Path, *, source: bytes | None = b'tsc\n', ticks: int = 10**12) -> None:
        self._code = ctypes.CDLL(str(library))
        self._code.now.restype = ctypes.c_double
        self._world = World.in_dll(self._code, 'world')
        self._world.cost = 60
        self._world.source = source
        self._world.ticks = ticks
        self._world.seconds = 5000.0
        self.slewed = 0.0
        self._last = 0.0
        self._code.begin()

    def pass_time(self, seconds: float, *, ticks: float | None = None) -> None:
        """Let time pass, by the kernel's clock and by the counter."""
        if ticks is None:
            ticks = seconds * FREQUENCY * (1 + self.slewed)
        self._world.seconds += seconds
        self._world.ticks = (self._world.ticks + round(ticks)) % 2**64

    def sleep(self, seconds: float) -> None:
        """Suspend the machine: the kernel's clock stands, the counter goes on."""
        self.pass_time(0.0, ticks=seconds * FREQUENCY)

    def interrupt(self, ticks: int) -> None:
        """Have each look at the counter take so long."""
        self._world.cost = ticks

    def error(self) -> float:
        """Read the clock; return by how much it is off, seconds. It does not go back."""
        before = self._world.seconds
        now = float(self._code.now())
        assert now >= self._last, f'went back by {self._last - now:.9f} s'
        self._last = now
        return max(before - now, now - self._world.seconds, 0.0)

    def work(self, seconds: float, step: float = 1e-4) -> float:
        """Read the clock again and again for so long; return its greatest error."""
        worst = 0.0
        for _ in range(round(seconds / step)):
            self.pass_time(step)
            worst = max(worst, self.error())
        return worst

    def asks(self, seconds: float, step: float = 1e-5) -> float:
        """Return for what part of readings the kernel is asked."""
        before = self._world.asked
        self.work(seconds, step)
        return (self._world.asked - before) / round(seconds / step)


@pytest.fixture(scope='module')
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which('cc') or shutil.which('gcc')
    if compiler is None:
        pytest.skip('needs a C compiler')
    found = re.search(r'cdef extern from \*:\s*(""".*?""")', SOURCE.read_text(), re.DOTALL)
    assert found is not None
    made = tmp_path_factory.mktemp('clock') / 'clock.so'
    subprocess.run(
        [compiler, '-shared', '-fPIC', '-O1', '-Werror=implicit-function-declaration', '-x', 'c', '-', '-o', made],
        input=WORLD + ast.literal_eval(found[1]) + FACE,
        text=True,
        check=True,
    )
    return made


@pytest.fixture
def machine(library: Path, tmp_path: Path) -> Callable[..., Machine]:
    """Makes machines, each with a clock of its own."""
    made: list[Machine] = []

    def make(**arguments: object) -> Machine:
        copy = tmp_path / f'clock-{len(made)}.so'
        shutil.copy(library, copy)
        made.append(Machine(copy, **arguments))  # type: ignore[arg-type]
        return made[-1]

    return make


Make = Callable[..., Machine]


def test_the_kernel_is_asked_once_a_millisecond(machine: Make) -> None:
    one = machine()
    assert one.work(0.05) < NEAR
    assert one.asks(0.5) == pytest.approx(0.01, abs=0.002)


def test_the_counter_is_used_from_50_ms_on(machine: Make) -> None:
    one = machine()
    one.work(0.05)
    assert one.asks(0.05) < 0.02


@pytest.mark.parametrize('source', [None, b'hpet\n', b'tsc-early\n', b'kvm-clock\n'])
def test_the_kernel_is_always_asked_where_it_does_not_use_the_counter(machine: Make, source: bytes | None) -> None:
    one = machine(source=source)
    one.work(0.05)
    assert one.asks(0.01) == 1
    assert one.work(0.1) < 1e-8


@pytest.mark.parametrize('ppm', [-500, -100, 100, 500])
def test_a_slewed_clock(machine: Make, ppm: float) -> None:
    one = machine()
    worst = one.work(1.0)
    for sign in 1, -1, 0, 1:
        one.slewed = sign * ppm * 1e-6
        worst = max(worst, one.work(0.5), one.work(12.0, step=9e-4))
    assert worst < 2e-6
    assert one.asks(0.01) < 0.05


def test_a_counter_that_begins_anew_at_its_end(machine: Make) -> None:
    one = machine(ticks=2**64 - round(0.1 * FREQUENCY))
    assert one.work(0.3) < NEAR
    assert one.asks(0.05) < 0.05


@pytest.mark.parametrize('seconds', [1e-4, 9.99e-4, 1e-3, 0.01, 0.3, 9.9, 10.1, 3600.0, 30 * DAY])
def test_a_process_that_is_idle(machine: Make, seconds: float) -> None:
    one = machine()
    one.work(0.1)
    for _ in range(5):
        one.pass_time(seconds)
        assert one.error() < NEAR
        assert one.work(0.03) < NEAR
    assert one.asks(0.05) < 0.05


def test_a_process_that_is_idle_from_the_beginning(machine: Make) -> None:
    one = machine()
    one.pass_time(DAY)
    assert one.error() < NEAR
    assert one.work(0.1) < NEAR


def test_who_is_interrupted_while_it_asks_learns_nothing(machine: Make) -> None:
    one = machine()
    one.work(0.1)
    one.interrupt(50_000)
    assert one.work(0.1) < NEAR
    assert one.asks(0.01) == 1
    one.interrupt(60)
    one.work(0.01)
    assert one.asks(0.05) < 0.05


@pytest.mark.parametrize('ticks', [1e3, 1e6, 1e9, 1e12])
def test_a_counter_that_goes_back(machine: Make, ticks: float) -> None:
    one = machine()
    one.work(0.1)
    for _ in range(3):
        one.pass_time(2e-3, ticks=-ticks)
        assert one.error() < NEAR
        assert one.work(0.03) < NEAR


def test_a_counter_that_is_not_steady_is_left_alone_after_a_while(machine: Make) -> None:
    one = machine()
    for attempt in range(40):
        one.slewed = 0.5 * (-1) ** attempt
        one.work(0.05, step=1e-3)
    assert one.asks(0.05) == 1


# --- machines that sleep ---


@pytest.mark.parametrize('seconds', [0.01, 1.0, 3600.0, DAY])
def test_a_machine_that_slept(machine: Make, seconds: float) -> None:
    one = machine()
    one.work(0.1)
    for _ in range(4):
        one.pass_time(2e-3)
        one.sleep(seconds)
        one.pass_time(2e-3)
        assert one.error() < NEAR
        assert one.work(0.1) < NEAR
    assert one.asks(0.05) < 0.05


def test_a_machine_that_slept_within_a_millisecond_of_the_last_reading(machine: Make) -> None:
    one = machine()
    one.work(0.1)
    for part in 1e-5, 2e-4, 9e-4:
        one.work(0.05)
        one.sleep(60.0)
        one.pass_time(part)
        assert one.error() < NEAR
        assert one.work(0.01, step=1e-5) < NEAR


@pytest.mark.parametrize('awake', [0.02, 60.0])
@pytest.mark.parametrize('asleep', [60.0, DAY])
def test_a_machine_that_slept_before_the_first_use(machine: Make, awake: float, asleep: float) -> None:
    one = machine()
    one.pass_time(awake)
    one.sleep(asleep)
    assert one.work(0.1, step=1e-5) < NEAR
    assert one.asks(0.05) < 0.05


def test_a_machine_that_sleeps_twice_in_a_row(machine: Make) -> None:
    one = machine()
    one.work(0.1)
    worst = 0.0
    for awake in 0.003, 0.012, 0.5:
        one.sleep(DAY)
        one.pass_time(awake)
        worst = max(worst, one.error())
        one.pass_time(awake)
        one.sleep(DAY)
        worst = max(worst, one.work(0.1, step=1e-5))
    assert worst < NEAR


def test_a_kernel_clock_that_is_set_back_does_not_stop_the_core_s(machine: Make) -> None:
    """A child in another time namespace, for example. A process that waits there would wait for ever."""
    one = machine()
    one.work(0.1)
    one.pass_time(-3000.0, ticks=2e-3 * FREQUENCY)
    one._last = 0.0  # here alone it may go back
    one.error()
    assert one.work(0.1) < NEAR


@pytest.mark.parametrize('seed', range(20))
def test_anything_may_happen(machine: Make, seed: int) -> None:
    chance = random.Random(seed)
    one = machine()
    for step in range(3000):
        happens = chance.random()
        if happens < 0.002:
            one.sleep(chance.choice([0.1, 60.0, DAY]))
        elif happens < 0.01:
            one.slewed = chance.uniform(-5e-4, 5e-4)
        elif happens < 0.02:
            one.interrupt(chance.choice([20, 60, 500, 5000, 10**6]))
        one.pass_time(10 ** chance.uniform(-8, 1 if happens < 0.3 else -3))
        assert one.error() < NEAR, f'step {step} of seed {seed}'
