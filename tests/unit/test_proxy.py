"""The proxy that breaks connections for other tests does to them what it says."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
from support.proxy import Proxy

#: Seconds in which something arrives that may, and nothing that may not.
SOON_S, SILENT_S = 10.0, 0.2


@pytest.fixture
def echo() -> Iterator[tuple[int, list[bytes]]]:
    """A server that sends back what it gets; its port, and what it got."""
    got: list[bytes] = []
    server = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(1024):
                    got.append(data)
                    connection.sendall(data)
            except OSError:
                pass

    def accept() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    with server:
        yield server.getsockname()[1], got
        server.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy(echo) -> Iterator[Proxy]:
    with Proxy(echo[0]) as one:
        yield one


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=SOON_S)


def asked(connection: socket.socket, word: bytes) -> bytes:
    connection.sendall(word)
    return connection.recv(1024)


def is_silent(connection: socket.socket) -> bool:
    connection.settimeout(SILENT_S)
    try:
        connection.recv(1024)
    except TimeoutError:
        return True
    finally:
        connection.settimeout(SOON_S)
    return False


def test_what_is_sent_arrives_and_the_end_of_a_connection_too(proxy):
    with connect(proxy) as one:
        assert asked(one, b"hello") == b"hello"
        one.shutdown(socket.SHUT_WR)
        assert one.recv(1024) == b""


def test_a_cut_connection_is_reset_and_a_new_one_works(proxy):
    with connect(proxy) as one:
        assert asked(one, b"before") == b"before"
        assert proxy.cut() == 1
        with pytest.raises(ConnectionResetError):
            one.recv(1024)
    with connect(proxy) as another:
        assert asked(another, b"after") == b"after"


def test_what_is_frozen_is_silent_and_arrives_after_the_thaw(proxy, echo):
    with connect(proxy) as one:
        assert asked(one, b"before") == b"before"
        proxy.freeze()
        one.sendall(b"during")
        assert is_silent(one)
        assert echo[1] == [b"before"]
        proxy.thaw()
        assert one.recv(1024) == b"during"


def test_an_abandoned_connection_is_silent_for_ever_and_a_new_one_works(proxy, echo):
    with connect(proxy) as one, connect(proxy) as another:
        assert asked(one, b"before") == b"before"
        assert asked(another, b"before") == b"before"
        assert proxy.abandon() == 2
        one.sendall(b"lost")
        assert is_silent(one)
        with connect(proxy) as third:
            assert asked(third, b"new") == b"new"
        assert b"lost" not in echo[1]


def test_a_lost_reply_is_to_something_that_was_done(proxy, echo):
    with connect(proxy) as one:
        proxy.lose_reply(lambda data: b"COMMIT" in data)
        assert asked(one, b"BEGIN") == b"BEGIN"
        one.sendall(b"COMMIT")
        with pytest.raises(ConnectionResetError):
            one.recv(1024)
        assert echo[1] == [b"BEGIN", b"COMMIT"]
        assert proxy.lost == 1


def test_who_comes_to_a_deaf_proxy_is_refused_until_it_listens_again(proxy):
    with connect(proxy) as one:
        assert asked(one, b"before") == b"before"
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            connect(proxy)
        assert asked(one, b"those there go on") == b"those there go on"
    proxy.accept()
    with connect(proxy) as another:
        assert asked(another, b"again") == b"again"
