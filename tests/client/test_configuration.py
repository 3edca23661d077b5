"""The service and the key are found, and a key never goes where a stranger's file points."""

import pytest

from onnxpress.configuration import Patience, find_access, find_patience
from onnxpress.errors import UsageError


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Give an empty working folder without any of our variables."""
    monkeypatch.chdir(tmp_path)
    for name in ("ONNXPRESS_URL", "ONNXPRESS_API_KEY", "ONNXPRESS_KEY_FILE", "ONNXPRESS_PATIENCE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def embedded(here, url="http://127.0.0.1:9999"):
    (here / "var").mkdir()
    (here / "var/url").write_text(url + "\n")
    (here / "var/admin.key").write_text("opk_local\n")


def test_without_anything_it_is_the_default_port_of_this_host(here):
    access = find_access()
    assert (str(access.url), access.key, access.local) == ("http://127.0.0.1:8765", None, True)


def test_an_embedded_service_is_found_with_its_key(here):
    embedded(here)
    access = find_access()
    assert (str(access.url), access.key) == ("http://127.0.0.1:9999", "opk_local")


def test_arguments_beat_the_environment_beats_files(here, monkeypatch):
    embedded(here)
    monkeypatch.setenv("ONNXPRESS_URL", "https://press.example/")
    monkeypatch.setenv("ONNXPRESS_API_KEY", "opk_env")
    access = find_access()
    assert (str(access.url), access.key, access.local) == ("https://press.example", "opk_env", False)
    access = find_access("http://localhost:1", "opk_argument")
    assert (str(access.url), access.key, access.local) == ("http://localhost:1", "opk_argument", True)


def test_the_local_key_never_leaves_this_host(here, monkeypatch):
    embedded(here)
    monkeypatch.setenv("ONNXPRESS_URL", "https://press.example")
    assert find_access().key is None


def test_a_file_cannot_lead_the_key_elsewhere(here, monkeypatch):
    embedded(here, "https://evil.example")
    monkeypatch.setenv("ONNXPRESS_API_KEY", "opk_env")
    assert str(find_access().url) == "http://127.0.0.1:8765"


def test_a_key_file_may_be_named(here, monkeypatch):
    (here / "key").write_text("opk_file\n")
    monkeypatch.setenv("ONNXPRESS_KEY_FILE", "key")
    monkeypatch.setenv("ONNXPRESS_URL", "https://press.example")
    assert find_access().key == "opk_file"
    monkeypatch.setenv("ONNXPRESS_KEY_FILE", "missing")
    with pytest.raises(UsageError, match="missing is not readable"):
        find_access()


@pytest.mark.parametrize("url", ["press.example", "ftp://press.example", "http://", "http://[::1"])
def test_a_url_that_is_none_is_refused(here, url):
    with pytest.raises(UsageError):
        find_access(url)


def test_patience_is_a_number_of_seconds(here, monkeypatch):
    assert find_patience(1.5) == Patience(1.5, 1.5)
    # Who has an answer already waits for longer than a service takes to drain and to start again.
    assert find_patience() == Patience(30.0, 120.0)
    monkeypatch.setenv("ONNXPRESS_PATIENCE", "2")
    assert find_patience() == Patience(2.0, 2.0)
    monkeypatch.setenv("ONNXPRESS_PATIENCE", "much")
    with pytest.raises(UsageError, match="much"):
        find_patience()


@pytest.mark.parametrize(
    "url", ["htp://me:hunter2@press.example", "//me:hunter2@press.example", "http://me:hunter2@h:x"]
)
def test_a_password_in_an_address_is_not_repeated(here, url):
    with pytest.raises(UsageError) as caught:
        find_access(url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "plaintext"),
    [
        ("http://press.example", True),
        ("http://10.0.0.8:8765", True),
        ("https://press.example", False),
        ("http://127.0.0.1:8765", False),
        ("http://localhost", False),
    ],
)
def test_what_others_can_read_on_the_way_is_known(here, url, plaintext):
    assert find_access(url).plaintext == plaintext
