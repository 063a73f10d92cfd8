"""The core's clock, as it is on this machine: the monotonic one, within 50 us, whatever happens; it never goes back.

What cannot be had here (machines that sleep, counters that jump) is in `test_clock_simulated`."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gcp._core import Core

NEAR = 50e-6  # seconds
ROOT = Path(__file__).resolve().parents[3]
SOURCE = '/sys/devices/system/clocksource/clocksource0/current_clocksource'

# Told by what is read before and after it, so that who is interrupted in between learns nothing wrong.
OFF = """
import time
from gcp._core import Core

clock = Core().time

def off():
    before = time.monotonic()
    now = clock()
    after = time.monotonic()
    return max(before - now, now - after, 0.0)
"""


def off(clock: Callable[[], float]) -> float:
    """Return by how much a clock is off, at least, seconds."""
    before = time.monotonic()
    now = clock()
    after = time.monotonic()
    return max(before - now, now - after, 0.0)


def test_it_is_the_monotonic_clock_while_threads_use_it() -> None:
    clock = Core().time
    worst = []
    end = time.monotonic() + 2

    def read() -> None:
        most = last = 0.0
        while (now := clock()) < end:
            assert now >= last
            last = now
            most = max(most, off(clock))
        worst.append(most)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(worst) == 4, 'it went back'
    assert max(worst) < NEAR


def test_it_goes_back_between_no_two_threads() -> None:
    clock = Core().time
    lock = threading.Lock()
    said = [0.0]
    back = []
    end = time.monotonic() + 0.5

    def read() -> None:
        while said[0] < end:
            with lock:
                now = clock()
                if now < said[0]:
                    back.append(said[0] - now)
                said[0] = now

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not back


def test_pools_share_it() -> None:
    clocks = [Core().time for _ in range(3)]
    last = 0.0
    for _ in range(20_000):
        for clock in clocks:
            now = clock()
            assert now >= last
            last = now


@pytest.mark.parametrize('seconds', [1e-4, 5e-4, 9e-4, 1e-3, 1.1e-3, 2e-3, 1e-2, 5e-2, 0.2])
def test_it_is_right_after_a_sleep(seconds: float) -> None:
    clock = Core().time
    for _ in range(max(1, min(20, int(0.2 / seconds)))):
        clock()
        time.sleep(seconds)
        assert off(clock) < NEAR
        assert off(clock) < NEAR  # and from the counter again


def test_it_never_goes_back_where_the_kernel_is_asked_anew() -> None:
    clock = Core().time
    last = clock()
    for step in range(20_000):
        if step % 100 == 0:
            time.sleep(0.001)  # each time the counter is trusted no more
        now = clock()
        assert now >= last
        last = now


def test_it_is_right_after_a_stop_of_the_process() -> None:
    script = (
        OFF
        + """
print('began', flush=True)
most = gap = 0.0
last = began = time.monotonic()
while clock() < began + (0.8 if gap > 0.25 else 20):
    most = max(most, off())
    now = time.monotonic()
    gap, last = max(gap, now - last), now
print(gap, most)
"""
    )
    with subprocess.Popen([sys.executable, '-c', script], stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == 'began\n'
        time.sleep(0.1)
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.3)
        process.send_signal(signal.SIGCONT)
        gap, most = map(float, process.stdout.read().split())
    assert gap > 0.25, 'it was not stopped'
    assert most < NEAR


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_it_goes_on_in_a_forked_child(script: Callable[..., Any]) -> None:
    script(
        OFF
        + """
import os

for pause in 0, 0.0005, 0.02:
    for _ in range(2000):
        clock()
    before = clock()
    child = os.fork()
    time.sleep(pause)
    assert clock() >= before
    worst = max(off() for _ in range(20_000))
    assert worst < 50e-6, worst
    if child == 0:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""
    ).quietly()


# --- which clock it is ---

# Sees how often a process asks the kernel.
WITNESS = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
static long asked;
long times_asked(void) { return asked; }
int clock_gettime(clockid_t id, struct timespec *t) {
    static int (*real)(clockid_t, struct timespec *);
    if (real == 0)
        real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    asked += 1;
    return real(id, t);
}
"""

COUNT = (
    OFF
    + """
import ctypes

asked = ctypes.CDLL(None).times_asked
end = time.monotonic() + 0.1
while time.monotonic() < end:       # the counter's rate is known by then
    clock()
before = asked()
for _ in range(10_000):
    clock()
print(asked() - before)
worst = max(off() for _ in range(10_000))
assert worst < 50e-6, worst
"""
)


@pytest.fixture(scope='module')
def witness(tmp_path_factory: pytest.TempPathFactory) -> str:
    compiler = shutil.which('cc') or shutil.which('gcc')
    if compiler is None or sys.platform != 'linux':
        pytest.skip('needs Linux and a C compiler, to see who asks the kernel')
    made = tmp_path_factory.mktemp('witness') / 'witness.so'
    subprocess.run(
        [compiler, '-shared', '-fPIC', '-O1', '-x', 'c', '-', '-o', made, '-ldl'], input=WITNESS, text=True, check=True
    )
    return str(made)


def times_asked(witness: str, *before: str, clock: str | None = None) -> int:
    """Return how often 10,000 readings ask the kernel.

    :param before: the command that runs the interpreter
    :param clock: what ``GCP_CLOCK`` says
    """
    env = {key: value for key, value in os.environ.items() if key != 'GCP_CLOCK'}
    env |= {'PYTHONPATH': str(ROOT), 'LD_PRELOAD': witness}
    if clock is not None:
        env['GCP_CLOCK'] = clock
    process = subprocess.run(
        [*before, sys.executable, '-c', COUNT], capture_output=True, text=True, timeout=30, env=env
    )
    assert process.returncode == 0, process.stderr
    return int(process.stdout)


def uses_counter() -> bool:
    try:
        source = Path(SOURCE).read_text()
    except OSError:
        return False
    machine = os.uname().machine
    return source == 'tsc\n' and machine == 'x86_64' and getattr(sys, '_is_gil_enabled', lambda: True)()


@pytest.mark.parametrize('choice', [None, '', 'counter', 'KERNEL'])
def test_the_counter_is_read_where_the_kernel_reads_it(witness: str, choice: str | None) -> None:
    if not uses_counter():
        pytest.skip('the kernel does not take its time from the counter here')
    assert times_asked(witness, clock=choice) < 1000


def test_the_kernel_is_asked_where_the_environment_says_so(witness: str) -> None:
    assert times_asked(witness, clock='kernel') >= 10_000


@pytest.mark.parametrize('said', ['hpet\n', 'kvm-clock\n', 'tsc-early\n', 'acpi_pm\n', ''])
def test_the_kernel_is_asked_where_it_has_another_clocksource(witness: str, tmp_path: Path, said: str) -> None:
    other = tmp_path / 'clocksource'
    other.write_text(said)
    assert times_asked(witness, *elsewhere(f'mount --bind {other} {SOURCE}')) >= 10_000


def test_the_kernel_is_asked_where_the_clocksource_is_not_to_be_read(witness: str) -> None:
    hide = f'mount -t tmpfs none {Path(SOURCE).parent}'
    assert times_asked(witness, *elsewhere(hide)) >= 10_000


def elsewhere(mount: str) -> list[str]:
    """Return the command that runs another one in a world of other files, or skip the test."""
    command = ['unshare', '--mount', 'sh', '-c', f'{mount} && exec "$@"', 'sh']
    if not uses_counter():
        pytest.skip('the kernel does not take its time from the counter here')
    if shutil.which('unshare') is None or subprocess.run([*command, 'true'], capture_output=True).returncode:
        pytest.skip('needs root, to mount another clocksource')
    return command
