"""What is stored is for the service's own user, and secrets are nowhere but where they belong."""

import os
import stat
import subprocess
import sys

import pytest

from settings.private_folder import private_folder
from standalone.demo import make_folder

SECRETS = {
    "ONNXPRESS_DATABASE_URL": "postgresql+psycopg://user:planted-database@127.0.0.1:1/x?connect_timeout=2",
    "ONNXPRESS_BROKER_URL": "redis://user:planted-broker@127.0.0.1:1/0",
    "ONNXPRESS_STORE_URL": "s3://bucket",
    "ONNXPRESS_STORE_ENDPOINT": "http://127.0.0.1:1",
    "ONNXPRESS_STORE_ACCESS_KEY": "planted-access",
    "ONNXPRESS_STORE_SECRET_KEY": "planted-secret",
}


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_folder_of_ours_that_others_can_look_into_is_closed(tmp_path):
    wide = tmp_path / "wide"
    wide.mkdir()
    wide.chmod(0o775)
    assert mode(private_folder(wide)) == 0o700
    assert mode(private_folder(tmp_path / "new" / "below")) == 0o700


def test_the_demo_leaves_no_open_data_folder(tmp_path):
    data = tmp_path / "var"
    data.mkdir()
    data.chmod(0o755)
    make_folder(data / "demo", data)
    assert (mode(data), (data / "demo").is_dir()) == (0o700, True)
    # A folder of the user's own choice stays as it is.
    own = tmp_path / "own"
    own.mkdir()
    own.chmod(0o755)
    make_folder(own / "demo", data)
    assert mode(own) == 0o755


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to somebody else")
def test_a_folder_of_somebody_else_stays_as_it_is(tmp_path):
    volume = tmp_path / "volume"
    volume.mkdir()
    volume.chmod(0o770)
    os.chown(volume, 65534, 65534)
    assert mode(private_folder(volume)) == 0o770


def test_everything_that_a_service_makes_is_for_its_user_only(tmp_path):
    data = tmp_path / "var"
    data.mkdir(mode=0o755)
    command = [sys.executable, "-m", "standalone"]
    for words in (["migrate"], ["backup", str(tmp_path / "backup.tar")]):
        subprocess.run([*command, *words, "--data", str(data)], check=True, capture_output=True, umask=0o022)
    made = [data, *data.rglob("*"), tmp_path / "backup.tar"]
    assert len(made) > 3
    assert {path: oct(mode(path)) for path in made if mode(path) & 0o077} == {}


def test_no_password_is_printed_where_nothing_answers(tmp_path):
    env = {**os.environ, **SECRETS, "ONNXPRESS_DATA_DIR": str(tmp_path), "ONNXPRESS_PORT": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "standalone", "migrate"],
        env=env,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    said = done.stdout + done.stderr
    assert said
    assert "planted-" not in said
    for path in filter(lambda path: path.is_file(), tmp_path.rglob("*")):
        assert b"planted-" not in path.read_bytes()
