"""A headless Chromium, steered by its DevTools protocol through a pair of pipes: no driver, no port.

Debian's package is `chromium`. A test that needs it is skipped without it, and fails if `GCP_REQUIRE_SERVERS=1`."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

__all__ = ['Browser', 'Tab', 'browser_or_skip']

PROGRAMS = ('chromium', 'chromium-browser', 'google-chrome')
PATIENCE = 90.0
FLAGS = (
    '--headless=new',
    '--no-sandbox',  # it is started as root in containers
    '--disable-gpu',
    '--disable-dev-shm-usage',
    '--disable-background-networking',
    '--disable-component-update',
    '--no-first-run',
    '--hide-scrollbars',
    '--remote-debugging-pipe',
)

#: becomes Chromium, which talks by the descriptors 3 and 4
START = """
import fcntl, os, sys
high = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
os.dup2(high[0], 3)
os.dup2(high[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


def program() -> str | None:
    """Return the path of Chromium, or None."""
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


@contextlib.contextmanager
def browser_or_skip() -> Iterator[Browser]:
    """Start Chromium, or skip the test without it."""
    path = program()
    if path is None:
        reason = 'needs Chromium: apt-get install chromium'
        pytest.fail(reason) if os.environ.get('GCP_REQUIRE_SERVERS') == '1' else pytest.skip(reason)
    with Browser(path) as browser:
        yield browser


class Browser:
    """A process of Chromium with a profile of its own."""

    def __init__(self, path: str) -> None:
        self._profile = Path(tempfile.mkdtemp(prefix='gcp-chromium-'))
        to_read, self._out = os.pipe()
        self._in, to_write = os.pipe()
        start = [sys.executable, '-c', START, str(to_read), str(to_write)]
        self._process = subprocess.Popen(
            [*start, path, *FLAGS, f'--user-data-dir={self._profile}', 'about:blank'],
            pass_fds=(to_read, to_write),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, 'HOME': str(self._profile)},
        )
        os.close(to_read)
        os.close(to_write)
        self._buffer = b''
        self._number = 0
        self.events: deque[dict[str, Any]] = deque()

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):
            self._write({'id': 0, 'method': 'Browser.close'})
        os.close(self._out)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        shutil.rmtree(self._profile, ignore_errors=True)

    def call(self, method: str, session: str | None = None, **arguments: Any) -> dict[str, Any]:
        """Have something done, and return the result. Events that come meanwhile are kept."""
        self._number += 1
        number = self._number
        request = {'id': number, 'method': method, 'params': arguments}
        self._write(request if session is None else {**request, 'sessionId': session})
        while True:
            message = self.read()
            if message.get('id') == number:
                assert 'error' not in message, (method, message)
                found: dict[str, Any] = message['result']
                return found

    def read(self) -> dict[str, Any]:
        """Return the next message; an event is kept as well."""
        deadline = time.monotonic() + PATIENCE
        while b'\0' not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(self._in, 1 << 20) if ready else b''
            assert data, f'Chromium does not answer; exit status {self._process.poll()}'
            self._buffer += data
        one, _, self._buffer = self._buffer.partition(b'\0')
        message: dict[str, Any] = json.loads(one)
        if 'method' in message:
            self.events.append(message)
        return message

    def _write(self, message: dict[str, Any]) -> None:
        data = json.dumps(message).encode() + b'\0'
        while data:
            data = data[os.write(self._out, data) :]

    def open(self) -> Tab:
        """Open an empty tab."""
        target = self.call('Target.createTarget', url='about:blank')['targetId']
        session = self.call('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        return Tab(self, session)


class Tab:
    """A tab.

    :ivar width: of the window, pixels
    """

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session
        for domain in ('Page', 'Runtime', 'Log'):
            self.call(f'{domain}.enable')

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **arguments)

    def look_like(self, width: int, height: int = 900, *, dark: bool = False, scale: float = 1) -> None:
        """Set the size of the window, and whether its user likes it dark."""
        self.call(
            'Emulation.setDeviceMetricsOverride',
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )
        scheme = {'name': 'prefers-color-scheme', 'value': 'dark' if dark else 'light'}
        self.call('Emulation.setEmulatedMedia', features=[scheme])

    def go(self, url: str) -> None:
        """Load a page, and wait until it is there."""
        self._loading(lambda: self.call('Page.navigate', url=url))

    def click(self, selector: str, *, loads: bool = False) -> None:
        """Click on an element."""
        code = f'document.querySelector({json.dumps(selector)}).click()'
        self._loading(lambda: self.evaluate(code)) if loads else self.evaluate(code)

    def _loading(self, begin: Callable[[], object]) -> None:
        self._browser.events = deque(one for one in self._browser.events if one['method'] != 'Page.loadEventFired')
        begin()
        while not any(one['method'] == 'Page.loadEventFired' for one in self._browser.events):
            self._browser.read()

    def evaluate(self, code: str) -> Any:
        """Return the value of an expression in the page."""
        result = self.call('Runtime.evaluate', expression=code, returnByValue=True, awaitPromise=True)
        assert 'exceptionDetails' not in result, result
        return result['result'].get('value')

    def text(self, selector: str = 'body') -> str:
        """Return the text of an element that is to be seen."""
        return str(self.evaluate(f'document.querySelector({json.dumps(selector)}).innerText'))

    def until(self, code: str) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + PATIENCE
        while not self.evaluate(code):
            assert time.monotonic() < deadline, f'never: {code}; {self.text()}'
            time.sleep(0.05)

    def complaints(self) -> list[str]:
        """Return what the browser has complained of: errors of scripts, and what the policy forbids."""
        self.evaluate('1')
        found = []
        for event in self._browser.events:
            if event['method'] in ('Runtime.exceptionThrown', 'Page.javascriptDialogOpening'):
                found.append(str(event['params']))
            elif event['method'] == 'Log.entryAdded' and event['params']['entry']['level'] in ('error', 'warning'):
                found.append(str(event['params']['entry']['text']))
            elif event['method'] == 'Runtime.consoleAPICalled':
                found.append(str(event['params']['args']))
        return found

    def picture(self, *, whole: bool = False) -> bytes:
        """Return a picture as PNG.

        :param whole: of the whole page, not only of the window
        """
        found = self.call('Page.captureScreenshot', format='png', captureBeyondViewport=whole)
        return base64.b64decode(found['data'])
