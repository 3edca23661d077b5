"""Messages reach a real broker in Celery's form, and a broker that is away or hangs costs a client little."""

import base64
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from services.publisher import BrokerPublisher
from settings import Settings
from standalone import broker

from ..servers import TlsProxy

PATIENCE_S = 60.0


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
    made = BrokerPublisher(Settings(broker_url=broker.url(server[1])))
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
    # The next ones do not even try for a while: each would wait as long as the first.
    for _ in range(50):
        assert not publisher.publish("work", "unt_3")
    assert time.monotonic() - started < 25 * first
    server[0].send_signal(signal.SIGCONT)
    end = time.monotonic() + PATIENCE_S
    while not publisher.publish("work", "unt_4"):
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_broker_that_is_not_there_is_no_error(tmp_path):
    publisher = BrokerPublisher(Settings(broker_url=f"redis+socket://{tmp_path}/none.sock"))
    assert not publisher.publish("work", "unt_1")
    assert publisher.waiting("work") is None
    assert not publisher.answers()
    publisher.close()


def test_a_forked_child_does_not_share_the_connection(server, publisher):
    assert publisher.publish("work", "unt_1")
    pid = os.fork()
    if pid == 0:
        os._exit(0 if publisher.publish("work", "unt_2") else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert publisher.publish("work", "unt_3")
    assert publisher.waiting("work") == 3


@contextmanager
def publishing(**fields):
    publisher = BrokerPublisher(Settings(**fields))
    try:
        yield publisher
    finally:
        publisher.close()


def test_installations_with_prefixes_share_a_broker(redis_server, broker_fields):
    other = {**broker_fields, "broker_prefix": "other-" + broker_fields["broker_prefix"]}
    with publishing(**broker_fields) as first, publishing(**other) as second:
        assert first.publish("work", "unt_1")
        assert (first.waiting("work"), second.waiting("work")) == (1, 0)
        with redis_server.client() as client:
            found = [key.decode() for key in client.keys(f"*{broker_fields['broker_prefix']}*")]
        assert found == [broker_fields["broker_prefix"] + "work"]


@pytest.fixture
def tls_proxy(redis_server, tmp_path):
    made = TlsProxy(redis_server.port, tmp_path).start()
    yield made
    made.close()


def test_a_broker_with_tls_knows_us_and_we_know_it(redis_server, broker_fields, tls_proxy):
    url = f"rediss://:{redis_server.password}@localhost:{tls_proxy.port}/0"
    ours = {"broker_cert_file": tls_proxy.cert_file, "broker_key_file": tls_proxy.key_file}
    fields = {**broker_fields, "broker_url": url, "broker_ca_file": tls_proxy.ca_file}
    with publishing(**fields, **ours) as publisher:
        assert publisher.publish("work", "unt_1")
        assert publisher.waiting("work") == 1
    # Without our certificate it does not let us in, and of a stranger's we want to know nothing.
    with publishing(**fields) as publisher:
        assert not publisher.answers()
    with publishing(**{**fields, "broker_ca_file": None}, **ours) as publisher:
        assert not publisher.answers()
    with publishing(**{**fields, "broker_url": url.replace("rediss", "redis")}) as publisher:
        assert not publisher.answers()
