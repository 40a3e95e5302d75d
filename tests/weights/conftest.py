"""A server that answers as a test tells it to."""

import pytest
from support.server import Server


@pytest.fixture
def server():
    server = Server()
    yield server
    server.stop()
