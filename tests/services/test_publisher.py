"""Messages reach a real broker in Celery's form, and a broker that is away or hangs costs a client little."""

import base64
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
import redis

from services.publisher import BrokerPublisher
from standalone import broker


@pytest.fixture
def server():
    # Not below pytest's folders: a unix socket's path must be short.
    folder = Path(tempfile.mkdtemp(prefix="onnxpress-"))
    sock = folder / "valkey.sock"
    process = subprocess.Popen(broker.command(broker.find_binary(), sock), stdout=subprocess.DEVNULL)
    broker.wait_until_ready(sock)
    yield process, sock
    process.send_signal(signal.SIGCONT)
    process.kill()
    process.wait()
    shutil.rmtree(folder)


@pytest.fixture
def publisher(server):
    made = BrokerPublisher(broker.url(server[1]))
    yield made
    made.close()


def test_a_message_is_a_celery_task(server, publisher):
    assert publisher.publish("work", "unt_1")
    assert publisher.waiting("work") == 1
    assert publisher.waiting("inspect") == 0
    with redis.Redis(unix_socket_path=str(server[1])) as client:
        message = json.loads(client.lindex("work", 0))
    assert message["headers"]["task"] == "worker.run_unit"
    assert message["content-type"] == "application/json"
    assert json.loads(base64.b64decode(message["body"]))[0] == ["unt_1"]


def test_a_hanging_broker_is_left_soon(server, publisher):
    assert publisher.publish("work", "unt_1")
    server[0].send_signal(signal.SIGSTOP)
    started = time.monotonic()
    assert not publisher.publish("work", "unt_2")
    first = time.monotonic() - started
    # The next ones do not even try for a while.
    for _ in range(50):
        assert not publisher.publish("work", "unt_3")
    assert first < 5
    assert time.monotonic() - started < 2 * first + 1
    server[0].send_signal(signal.SIGCONT)
    time.sleep(1.1)
    assert publisher.publish("work", "unt_4")


def test_a_broker_that_is_not_there_is_no_error(tmp_path):
    publisher = BrokerPublisher(f"redis+socket://{tmp_path}/none.sock")
    started = time.monotonic()
    assert not publisher.publish("work", "unt_1")
    assert publisher.waiting("work") is None
    assert not publisher.answers()
    assert time.monotonic() - started < 3
    publisher.close()


def test_a_forked_child_does_not_share_the_connection(server, publisher):
    assert publisher.publish("work", "unt_1")
    pid = os.fork()
    if pid == 0:
        os._exit(0 if publisher.publish("work", "unt_2") else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert publisher.publish("work", "unt_3")
    assert publisher.waiting("work") == 3
