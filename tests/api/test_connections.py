"""Who holds connections open, sends slowly or has no key keeps nobody else from being answered."""

import asyncio
import json
import select
import socket
import threading
from contextlib import ExitStack, closing

import httpx
import pytest

from api import door, uvicorn_protocol
from api.client_address import Proxies
from api.connections import REPLACED_BURST, REPLACED_PER_S, RESERVE_OF_ONE, Connections
from settings import Settings

MOST, MOST_OF_ONE = 24, 8
RAW = {"Content-Type": "application/octet-stream"}


@pytest.fixture(scope="module")
def service(new_service, tmp_path_factory):
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("data"),
        max_connections=MOST,
        max_connections_per_address=MOST_OF_ONE,
        trusted_proxies="127.0.0.9",
        max_model_bytes=32 << 20,
    )
    with new_service(settings) as made:
        yield made


def connect(service, source="127.0.0.1", receives=0):
    host, port = service.url.removeprefix("http://").split(":")
    link = socket.socket()
    if receives:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receives)
    link.settimeout(30)
    link.bind((source, 0))
    link.connect((host, int(port)))
    return link


def whole(link):
    """Read to the end."""
    parts = []
    try:
        while part := link.recv(1 << 20):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def status_of(answer):
    return int(answer.split(b" ", 2)[1])


def requests_in(caplog):
    """The fields of the access log's lines."""
    return [record.fields for record in caplog.records if record.name == "onnxpress.access"]


def ask(service, path, source, key="", method="GET"):
    words = f"Authorization: Bearer {key}\r\n" if key else ""
    with closing(connect(service, source)) as link:
        link.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\n{words}Connection: close\r\n\r\n".encode())
        return whole(link)


@pytest.mark.parametrize("sources", [["127.0.0.1"], [f"127.0.0.{number}" for number in range(1, 9)]])
def test_idle_connections_make_room_for_those_who_ask(service, sources):
    with ExitStack() as stack:
        idle = [stack.enter_context(closing(connect(service, sources[n % len(sources)]))) for n in range(2 * MOST)]
        for _ in range(3):
            assert status_of(ask(service, "/livez", "127.0.0.1")) == 200
            assert status_of(ask(service, "/v1/models", "127.0.0.1", service.keys["alpha"])) == 200
        # The first ones had waited longest, and are closed.
        assert idle[0].recv(1) == b""
        last = idle[-1]
        last.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert status_of(whole(last)) == 200


def test_who_comes_back_at_once_without_end_keeps_nobody_out(service):
    over = threading.Event()

    def come_back():
        poll, held = select.poll(), {}
        try:
            while not over.is_set():
                while len(held) < 2 * MOST:
                    link = connect(service, "127.0.0.5")
                    held[link.fileno()] = link
                    poll.register(link, select.POLLIN)
                for descriptor, _ in poll.poll(100):
                    poll.unregister(descriptor)
                    held.pop(descriptor).close()
        finally:
            for link in held.values():
                link.close()

    stranger = threading.Thread(target=come_back)
    stranger.start()
    try:
        for _ in range(20):
            assert status_of(ask(service, "/v1/models", "127.0.0.2", service.keys["alpha"])) == 200
    finally:
        over.set()
        stranger.join(60)
    assert not stranger.is_alive()


def test_a_head_that_is_late_is_told_so(service, monkeypatch):
    with closing(connect(service)) as slow:
        slow.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert status_of(slow.recv(1 << 16)) == 200
        monkeypatch.setattr(uvicorn_protocol, "HEAD_S", 0.05)
        # From its first byte on, the next head has so long.
        slow.sendall(b"GET /livez HTTP/1.1\r\nHost: ")
        late = whole(slow)
        head, _, body = late[late.index(b"HTTP/1.1 408") :].partition(b"\r\n\r\n")
        assert b"application/problem+json" in head
        assert json.loads(body)["code"] == "request_timeout"
    with closing(connect(service)) as silent:
        assert whole(silent) == b""


def test_what_is_no_http_gets_a_problem_with_the_usual_headers(service):
    with closing(connect(service)) as link:
        link.sendall(b"\x16\x03\x01 no http\r\n\r\n")
        head, _, body = whole(link).partition(b"\r\n\r\n")
    assert status_of(head) == 400
    assert b"x-content-type-options: nosniff" in head.lower()
    assert json.loads(body)["code"] == "bad_request"


@pytest.mark.parametrize("key", ["", "opk_wrong_key", "opk_" + "0" * 26 + "_" + "0" * 48])
@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/models", "/v1/nothing"])
def test_nothing_is_read_of_a_strangers_body(service, caplog, path, key):
    caplog.set_level("INFO", logger="onnxpress.access")
    words = f"Authorization: Bearer {key}\r\n" if key else ""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\n{words}Content-Type: application/json\r\nContent-Length: 3000000\r\n"
    with closing(connect(service)) as link:
        link.sendall(f"{head}Expect: 100-continue\r\n\r\n".encode())
        answer = whole(link)
    # Not asked to send it.
    expected = 404 if path == "/v1/nothing" else 401
    assert status_of(answer) == expected
    with closing(connect(service)) as link:
        link.sendall(f"{head}\r\n".encode() + b" " * 3_000_000)
        # Whole, though it comes before the body has: the connection is not torn down under it.
        assert json.loads(whole(link).partition(b"\r\n\r\n")[2])["status"] == expected
    told = service.until(lambda: len(requests_in(caplog)) >= 2 and requests_in(caplog))
    assert [(fields["status"], fields["received"]) for fields in told] == [(expected, 0)] * 2


def test_a_body_over_the_limit_is_not_waited_for_and_told_so(service):
    with service.client() as client:
        answer = client.post("/v1/models", content=b"x" * (33 << 20), headers=RAW)
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
        assert answer.headers["Connection"] == "close"
        assert client.get("/v1/models").status_code == 200


def test_a_reader_that_takes_nothing_is_cut_off(service, monkeypatch, caplog):
    caplog.set_level("INFO", logger="onnxpress.access")
    with service.client() as client:
        content = b"x" * (24 << 20)
        model = client.post("/v1/models", content=content, headers=RAW).json()["id"]
    monkeypatch.setattr(uvicorn_protocol, "TAKEN_S", 0.05)
    with closing(connect(service, receives=4096)) as link:
        key = service.keys["alpha"]
        link.sendall(
            f"GET /v1/models/{model}/content HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\r\n".encode()
        )
        # It is logged when it is over.
        service.until(lambda: any(fields["path"].endswith("/content") for fields in requests_in(caplog)))
        assert len(whole(link)) < len(content)


def test_requests_under_way_of_one_address_are_limited_and_health_is_answered(service):
    with service.client() as client, ExitStack() as stack:
        model = service.ready_model(client)
        body = {"model": model, "recipe": {"passes": [{"type": "simplify"}]}}
        job = client.post("/v1/jobs", json=body).json()["id"]
        key = service.keys["alpha"]
        for _ in range(MOST_OF_ONE):
            link = stack.enter_context(closing(connect(service, "127.0.0.2")))
            link.sendall(
                f"GET /v1/jobs/{job}?wait=60 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\r\n".encode()
            )
        service.until_waiting(job, MOST_OF_ONE)
        refused = ask(service, "/v1/models", "127.0.0.2", key)
        assert status_of(refused) == 429
        assert json.loads(refused.partition(b"\r\n\r\n")[2])["code"] == "too_many_requests"
        assert status_of(ask(service, "/livez", "127.0.0.2")) == 200
        assert status_of(ask(service, "/readyz", "127.0.0.2")) == 200
        assert status_of(ask(service, "/v1/models", "127.0.0.3", key)) == 200
        assert client.post(f"/v1/jobs/{job}:cancel").status_code == 200


def test_a_process_that_is_full_says_so_and_answers_for_its_health(new_service, tmp_path):
    settings = Settings(data_dir=tmp_path, max_connections=10, max_connections_per_address=0)
    with new_service(settings) as service, service.client() as client, ExitStack() as stack:
        model = service.ready_model(client)
        body = {"model": model, "recipe": {"passes": [{"type": "simplify"}]}}
        job = client.post("/v1/jobs", json=body).json()["id"]
        head = (
            f"GET /v1/jobs/{job}?wait=60 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {service.keys['alpha']}\r\n\r\n"
        )
        for _ in range(10):
            stack.enter_context(closing(connect(service))).sendall(head.encode())
        service.until_waiting(job, 10)
        with httpx.Client(base_url=service.url, headers=client.headers) as late:
            refused = late.get("/v1/models")
            assert (refused.status_code, refused.json()["code"], refused.headers["Retry-After"]) == (
                503,
                "unavailable",
                "2",
            )
            assert late.get("/livez").status_code == late.get("/readyz").status_code == 200


def test_a_trusted_proxy_is_one_of_many_clients(service, caplog):
    caplog.set_level("INFO", logger="onnxpress.access")
    for source in ("127.0.0.9", "127.0.0.8"):
        with closing(connect(service, source)) as link:
            link.sendall(
                b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 192.0.2.5\r\nConnection: close\r\n\r\n"
            )
            assert status_of(whole(link)) == 401
    told = service.until(lambda: len(requests_in(caplog)) >= 2 and requests_in(caplog))
    assert [fields["client"] for fields in told] == ["192.0.2.5", "127.0.0.8"]


class Line:
    def __init__(self):
        self.closed = False

    def make_room(self):
        self.closed = True


def test_the_longest_waiting_makes_room_and_busy_ones_stay():
    connections = Connections(10, 3, Proxies(["10.0.0.0/8"]))
    mine = [Line() for _ in range(3)]
    assert all(connections.opened(line, "192.0.2.1") for line in mine)
    connections.is_busy(mine[0])
    assert connections.opened(Line(), "192.0.2.1")
    assert [line.closed for line in mine] == [False, True, False]
    # Of another address or behind a proxy, nobody has to make room before all are taken.
    assert all(connections.opened(Line(), "10.1.2.3") for _ in range(7))
    assert not mine[2].closed
    assert len(connections) == 10
    assert connections.opened(Line(), "192.0.2.9")
    assert mine[2].closed
    assert len(connections) == 10


def test_who_is_busy_on_every_connection_gets_few_more_for_a_refusal():
    connections = Connections(100, 3, Proxies([]))
    busy = [Line() for _ in range(3 + RESERVE_OF_ONE)]
    for line in busy:
        assert connections.opened(line, "192.0.2.1")
        connections.is_busy(line)
    assert not connections.opened(Line(), "192.0.2.1")
    assert connections.opened(Line(), "192.0.2.2")
    connections.closed(busy[0])
    connections.closed(busy[0])
    assert connections.opened(Line(), "192.0.2.1")


def test_who_comes_again_and_again_is_turned_away_and_others_are_not():
    now = 0.0
    connections = Connections(10, 3, Proxies([]), clock=lambda: now)
    for _ in range(3):
        assert not connections.turns_away("192.0.2.1")
        connections.opened(Line(), "192.0.2.1")
    assert [connections.turns_away("192.0.2.1") for _ in range(REPLACED_BURST + 5)] == [False] * REPLACED_BURST + [
        True
    ] * 5
    assert not connections.turns_away("192.0.2.2")
    now = 1.0
    assert [connections.turns_away("192.0.2.1") for _ in range(100)].count(False) == REPLACED_PER_S
    # Where everything is taken, it is those who wait already that are turned away.
    for number in range(3, 10):
        connections.opened(Line(), f"192.0.2.{number}")
    assert not connections.turns_away("192.0.2.2")
    assert [connections.turns_away("192.0.2.3") for _ in range(REPLACED_BURST + 1)][-1]


def test_who_is_turned_away_is_let_wait_and_the_first_goes_where_there_are_too_many(monkeypatch):
    def is_closed(link):
        try:
            return link.recv(1) == b""
        except BlockingIOError:
            return False

    async def turn_away(count):
        with ExitStack() as stack:
            pairs = [socket.socketpair() for _ in range(count)]
            for theirs, _ in pairs:
                stack.enter_context(theirs).setblocking(False)
            held = door.TurnedAway(most=3)
            for _, ours in pairs[:-1]:
                held.hold(ours)
            assert [is_closed(theirs) for theirs, _ in pairs] == [True] * (count - 4) + [False] * 4
            loop = asyncio.get_running_loop()
            assert [await loop.sock_recv(theirs, 1) for theirs, _ in pairs[:-1]] == [b""] * (count - 1)
            assert len(held) == 0
            last, ours = pairs[-1]
            held.hold(ours)
            held.close()
            assert is_closed(last)

    monkeypatch.setattr(door, "HELD_S", 0.05)
    asyncio.run(turn_away(6))


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("192.0.2.1", ["198.51.100.7"], "192.0.2.1"),
        ("10.0.0.2", ["198.51.100.7"], "198.51.100.7"),
        ("10.0.0.2", ["203.0.113.5, 198.51.100.7", "10.0.0.3"], "198.51.100.7"),
        ("::ffff:10.0.0.2", ["198.51.100.7"], "198.51.100.7"),
        ("10.0.0.2", ["198.51.100.7, made up"], "10.0.0.2"),
        ("10.0.0.2", ["10.0.0.9"], "10.0.0.9"),
        ("10.0.0.2", [], "10.0.0.2"),
        ("", ["198.51.100.7"], ""),
    ],
)
def test_a_proxys_word_is_taken_where_it_is_trusted_and_no_further(peer, forwarded, client):
    assert Proxies(["10.0.0.0/8"]).client(peer, forwarded) == client


def test_trusted_proxies_that_are_no_networks_stop_the_start():
    with pytest.raises(ValueError, match="no address and no network"):
        Settings(trusted_proxies="10.0.0.1/8")
