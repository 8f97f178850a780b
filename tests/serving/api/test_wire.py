"""Clients that are slow, endless or no clients at all, over real connections."""

import contextlib
import json
import socket
import time

import pytest

from sigma_jax.serving.api import wire

LINES = "application/x-ndjson"
MANY = 64 * 2**20  # bytes; more than any buffer between client and service


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """A service that waits for half a second at most."""
    monkeypatch.setattr(wire, "HEAD_SECONDS", 0.5)
    monkeypatch.setattr(wire, "BODY_SECONDS", 0.5)


@contextlib.contextmanager
def connected(port):
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        yield client


def answer_of(client):
    """(status, body) of an answer, after which the service has closed the connection."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while part := client.recv(2**16):
            received += part
    head, _, body = received.partition(b"\r\n\r\n")
    return (int(head.split()[1]), json.loads(body)) if head else (0, None)


def post(length):
    words = ("POST /v1/events/bulk HTTP/1.1", "Host: localhost", f"Content-Type: {LINES}", length)
    return "\r\n".join((*words, "", "")).encode()


def test_a_declared_length_is_refused_before_the_body(port):
    with connected(port) as client:
        client.sendall(post("Content-Length: 99999999999"))
        status, body = answer_of(client)
    assert status == 413 and body["error"] == "the body has more than 8388608 bytes"


def test_an_endless_body_is_not_read_whole(port):
    sent, chunk = 0, b"10000\r\n" + b"x" * 2**16 + b"\r\n"
    with connected(port) as client:
        client.sendall(post("Transfer-Encoding: chunked"))
        with contextlib.suppress(ConnectionError):
            while sent < MANY:
                client.sendall(chunk)
                sent += len(chunk)
        assert sent < MANY


def test_a_slow_body_is_refused(port):
    with connected(port) as client:
        client.sendall(post("Content-Length: 1000") + b'{"user_id"')
        began = time.monotonic()
        status, body = answer_of(client)
    assert status == 408 and body["error"] == "the body did not come within 0.5 s"
    assert time.monotonic() - began < 10


def test_a_slow_head_ends_the_connection(port):
    began = time.monotonic()
    with connected(port) as silent, connected(port) as slow:
        slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n")
        assert answer_of(slow) == answer_of(silent) == (0, None)
    assert time.monotonic() - began < 10


def test_a_connection_that_is_kept_answers_again(port):
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with connected(port) as client:
        for _ in range(3):
            client.sendall(request)
            assert b" 200 OK" in client.recv(2**16)
            time.sleep(0.3)  # the third begins later than a head may take from the first


def test_what_is_no_http_is_refused(port):
    with connected(port) as client:
        client.sendall(b"\x16\x03\x01\x02\x00 hello\r\n\r\n")
        assert b" 400 " in client.recv(2**16)
    with connected(port) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert answer_of(client)[0] == 200
