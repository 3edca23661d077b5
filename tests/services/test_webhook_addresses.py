"""Where webhooks may lead: decided by the address that is connected to, at each attempt."""

import socket
import ssl
import threading
from ipaddress import ip_network

import pytest
import trustme

from services.errors import InvalidError
from services.webhooks.addresses import Policy
from services.webhooks.post import Sender

from ..webhook_receiver import Receiver

PUBLIC = Policy()
ONE = Policy((ip_network("127.0.0.1/32"),))


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "240.0.0.1", "192.88.99.1", "198.18.0.1", "::", "::1", "fe80::1", "fe80::1%lo", "fd00::1", "ff02::1",
        "::ffff:10.0.0.1", "::ffff:93.184.216.34", "::127.0.0.1", "2002:7f00:1::", "2002:a9fe:a9fe::1", "2001:0:4136:e378::1",
        "64:ff9b::7f00:1", "64:ff9b::5db8:d822", "64:ff9b:1::a00:1", "2001:db8::1", "fec0::1", "not an address",
    ],
)  # fmt: skip
def test_what_is_not_of_the_public_internet_is_refused(address):
    assert not PUBLIC.allows(address, encrypted=True)


def test_public_addresses_take_tls_and_named_networks_do_not():
    assert PUBLIC.allows("93.184.216.34", encrypted=True)
    assert PUBLIC.allows("2606:4700::1111", encrypted=True)
    assert not PUBLIC.allows("93.184.216.34", encrypted=False)
    assert ONE.allows("127.0.0.1", encrypted=False)
    assert not ONE.allows("127.0.0.2", encrypted=True)
    assert not ONE.allows("93.184.216.34", encrypted=False)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/", "ftp://example.com/", "https://", "https://user:secret@example.com/", "https://example.com/#x",
        "https://127.0.0.1/", "https://[::1]/", "https://[::ffff:169.254.169.254]/", "https://example.com:0/", "https://exa mple.com/",
        "https://example.com:99999/", "https://example.com/\r\nX: y", "https://b\u00fccher.example/", f"https://example.com/{'x' * 2000}",
        "//example.com", "https://[::1/",
    ],
)  # fmt: skip
def test_urls_that_could_never_be_sent_to_are_refused_at_once(url):
    with pytest.raises(InvalidError) as refused:
        PUBLIC.check_url(url)
    assert refused.value.exact_code == "webhook_url"
    assert "secret" not in str(refused.value.errors)


def test_a_name_whose_address_changes_is_looked_at_when_it_is_connected_to():
    answers = iter([["127.0.0.1"], ["127.0.0.2"], ["169.254.169.254", "127.0.0.1"]])
    asked = []

    def flips(host, port):
        asked.append((host, port))
        return next(answers)

    with Receiver() as receiver:
        sender = Sender(ONE, resolve=flips)
        outcomes = [sender.post(receiver.url, {}, b"{}") for _ in range(3)]
    # The second is reachable, and nobody is connected to; of the third only the address that may be.
    assert [one.result for one in outcomes] == ["delivered", "address_refused", "delivered"]
    assert len(receiver.messages) == 2
    assert asked == [("localhost", receiver.port)] * 3


def test_a_redirect_is_an_answer_and_not_followed():
    asked = []

    def resolve(host, port):
        asked.append(host)
        return ["127.0.0.1"]

    with Receiver(307, headers=[("Location", "http://169.254.169.254/latest/meta-data/")]) as receiver:
        outcome = Sender(ONE, resolve=resolve).post(receiver.url, {}, b"{}")
    assert (outcome.result, outcome.status) == ("redirected", 307)
    assert asked == ["localhost"]


def test_https_is_as_good_as_its_certificate():
    authority = trustme.CA()
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with Receiver(tls=authority.issue_cert("localhost")) as receiver:
        assert Sender(ONE, context).post(receiver.url, {}, b"{}").delivered
        assert Sender(ONE).post(receiver.url, {}, b"{}").result == "tls_failed"
        # The certificate is of the name, whatever its address.
        other = receiver.url.replace("localhost", "other.example")
        assert Sender(ONE, context, resolve=lambda *_: ["127.0.0.1"]).post(other, {}, b"{}").result == "tls_failed"
    assert len(receiver.messages) == 1


@pytest.mark.parametrize(
    ("said", "result"),
    [
        (b"", "not_http"),
        (b"SSH-2.0-x\r\n" * 2000, "not_http"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n", "delivered"),
    ],
)
def test_what_answers_is_read_as_far_as_the_status(said, result):
    with _talking(lambda connection: (connection.recv(65536), connection.sendall(said))) as port:
        assert Sender(ONE).post(f"http://localhost:{port}/", {}, b"{}").result == result


def test_an_answer_that_never_ends_ends_in_time():
    stopped = threading.Event()

    def drip(connection):
        while not stopped.wait(0.01):
            try:
                connection.sendall(b"HTTP/1.1 1"[:1])
            except OSError:
                return

    with _talking(drip) as port:
        assert Sender(ONE, seconds=0.2).post(f"http://localhost:{port}/", {}, b"{}").result == "timed_out"
        stopped.set()


def test_a_resolver_that_does_not_answer_holds_nobody_up():
    stopped = threading.Event()

    def waits(*_asked):
        stopped.wait(60)
        return []

    assert Sender(ONE, resolve=waits, seconds=0.1).post("http://localhost/", {}, b"{}").result == "timed_out"
    stopped.set()


class _talking:  # noqa: N801 - used as a function
    """A server for one connection that says what it likes."""

    def __init__(self, talk):
        self._talk = talk
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)

    def _serve(self):
        connection, _ = self._listening.accept()
        with connection:
            self._talk(connection)

    def __enter__(self):
        self._thread.start()
        return self._listening.getsockname()[1]

    def __exit__(self, *_exc):
        self._thread.join()
        self._listening.close()
