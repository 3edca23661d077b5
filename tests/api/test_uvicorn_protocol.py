"""Bodies of every kind arrive as h11 alone would have them arrive."""

import hashlib
import os
import socket
import time

import pytest

HEAD = (
    "POST /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Type: application/octet-stream\r\n"
)


@pytest.fixture
def link(service):
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as made:
        yield made


def head(service, *lines):
    return (
        HEAD.format(key=service.keys["alpha"]).encode() + b"".join(line.encode() + b"\r\n" for line in lines) + b"\r\n"
    )


def answer(link):
    """Read one answer with its body."""
    got = b""
    while b"\r\n\r\n" not in got:
        got += link.recv(1 << 16)
    start, _, body = got.partition(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in start.split(b"\r\n") if line.lower().startswith(b"content-length")
    )
    while len(body) < length:
        body += link.recv(1 << 16)
    assert len(body) == length
    return int(start.split()[1]), body


@pytest.mark.parametrize("size", [1, 65_535, 65_536, 65_537, (1 << 20) + 1, (5 << 20) + 3])
@pytest.mark.parametrize("pieces", [1, 7])
def test_bodies_of_known_length_one_after_the_other(service, link, size, pieces):
    for _ in range(2):
        content = os.urandom(size)
        link.sendall(head(service, f"Content-Length: {size}"))
        step = -(-size // pieces)
        for start in range(0, size, step):
            link.sendall(content[start : start + step])
            if pieces > 1:
                time.sleep(0.005)
        status, body = answer(link)
        assert status == 201, body
        assert hashlib.sha256(content).hexdigest().encode() in body


def test_a_request_behind_a_body_in_the_same_packet(service, link):
    content = os.urandom(300_000)
    more = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    link.sendall(head(service, f"Content-Length: {len(content)}") + content + more)
    status, body = answer(link)
    assert (status, hashlib.sha256(content).hexdigest().encode() in body) == (201, True)
    assert answer(link)[0] == 200


def test_a_chunked_body(service, link):
    content = os.urandom(200_000)
    link.sendall(head(service, "Transfer-Encoding: chunked"))
    for start in range(0, len(content), 50_000):
        part = content[start : start + 50_000]
        link.sendall(f"{len(part):x}\r\n".encode() + part + b"\r\n")
    link.sendall(b"0\r\n\r\n")
    status, body = answer(link)
    assert (status, hashlib.sha256(content).hexdigest().encode() in body) == (201, True)


def test_a_client_that_waits_to_be_asked_for_the_body(service, link):
    content = os.urandom(2_000_000)
    link.sendall(head(service, f"Content-Length: {len(content)}", "Expect: 100-continue"))
    got = b""
    while b"\r\n\r\n" not in got:
        got += link.recv(1)
    assert got.startswith(b"HTTP/1.1 100")
    link.sendall(content)
    assert answer(link)[0] == 201


def test_a_body_that_nobody_wants_is_read_past(service, link):
    """The answer comes before the body has; the connection ends or is good for another request."""
    wrong = head(service, "Content-Length: 3000000").replace(service.keys["alpha"].encode(), b"opk_a_b")
    link.sendall(wrong)
    assert answer(link)[0] == 401
