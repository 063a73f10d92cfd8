"""Descriptors of which nothing is known but their number."""

from __future__ import annotations

import os

import pytest
from peers import open_descriptors

from gcp.contrib._wire import peek, shut_down


def test_what_is_no_socket_any_more_is_left_alone_and_costs_no_descriptor() -> None:
    """Its number may be another file's by now."""
    reading, writing = os.pipe()
    before = open_descriptors()
    for _ in range(3):
        shut_down(reading)
        with pytest.raises(OSError):
            peek(reading)
    assert open_descriptors() == before
    os.write(writing, b'!')
    assert os.read(reading, 1) == b'!'
    os.close(reading)
    os.close(writing)
