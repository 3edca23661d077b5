"""The verbs of an operator: what they print, what they give, and what they leave alone."""

import os
import sqlite3
import subprocess
import sys

import pytest

from services import db, keys
from settings import Settings
from standalone.__main__ import main
from standalone.serve import lock


@pytest.fixture
def data(tmp_path, monkeypatch, capsys):
    """A data folder with a database, as `migrate` makes it."""
    for name in [name for name in os.environ if name.startswith("ONNXPRESS_")]:
        monkeypatch.delenv(name)
    assert main(["migrate", "--data", str(tmp_path / "var")]) == 0
    assert "(from nothing)" in capsys.readouterr().out
    return tmp_path / "var"


def set_revision(data, name):
    with sqlite3.connect(data / "onnxpress.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (name,))
    connection.close()


def test_migrating_again_changes_nothing(data, capsys):
    assert main(["migrate", "--data", str(data)]) == 0
    assert "as before" in capsys.readouterr().out
    assert data.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("verb", ["migrate", "serve", "backup"])
def test_no_verb_touches_a_database_of_a_newer_version(data, capsys, verb):
    set_revision(data, "later")
    words = [str(data / "b.tar")] if verb == "backup" else ["--port", "0"] if verb == "serve" else []
    assert main([verb, "--data", str(data), *words]) == 1
    assert "a newer version of onnxpress has migrated it" in capsys.readouterr().err
    assert not (data / "b.tar").exists()


@pytest.mark.parametrize(
    ("module", "revision", "sentence"),
    [
        ("api", "later", "a newer version"),
        ("worker", "0001", "onnxpress-server migrate"),
        pytest.param("api", "0001", "onnxpress-server migrate", marks=pytest.mark.soak),
        pytest.param("worker", "later", "a newer version", marks=pytest.mark.soak),
    ],
)
def test_no_process_starts_on_a_database_of_another_revision(data, module, revision, sentence):
    set_revision(data, revision)
    env = {**os.environ, "ONNXPRESS_DATA_DIR": str(data), "ONNXPRESS_PORT": "0"}
    done = subprocess.run(
        [sys.executable, "-m", module], env=env, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_keys_are_made_listed_and_revoked(data, capsys):
    words = ["--data", str(data), "--tenant", "team"]
    assert main(["keys", "create", *words, "--name", "ci", "--scope", "read", "--scope", "write", "--days", "30"]) == 0
    made = capsys.readouterr().out.strip()
    database = db.Database.from_settings(Settings(data_dir=data))
    with database.reading() as session:
        caller = keys.authenticate(session, made)
    assert (caller.tenant_id, caller.scopes) == ("team", {"read", "write"})
    assert main(["keys", "list", *words]) == 0
    told = capsys.readouterr().out
    assert caller.key_id in told
    assert "until 20" in told
    assert made not in told
    assert main(["keys", "revoke", *words, caller.key_id]) == 0
    with database.reading() as session, pytest.raises(keys.UnauthorizedError):
        keys.authenticate(session, made)
    database.dispose()
    assert main(["keys", "revoke", *words, "key_none"]) == 1


def test_tenants_are_made_limited_and_shown(data, capsys):
    words = ["--data", str(data)]
    assert main(["tenants", "create", "team", *words, "--quota-bytes", "5000", "--rate-per-s", "2.5"]) == 0
    assert main(["tenants", "create", "team", *words]) == 1
    assert "already" in capsys.readouterr().err
    assert main(["tenants", "set", "team", *words, "--quota-bytes", "default", "--quota-jobs", "3", "--suspend"]) == 0
    shown = capsys.readouterr().out
    assert "suspended since" in shown
    assert "0 of 3" in shown
    assert main(["tenants", "list", *words]) == 0
    assert capsys.readouterr().out.split() == ["team", "suspended", "quota_jobs=3", "rate_per_s=2.5"]
    assert main(["tenants", "show", "nobody", *words]) == 1
    assert "no such tenant" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["tenants", "create", "../up", *words])
    with pytest.raises(SystemExit):
        main(["tenants", "set", "team", *words, "--quota-jobs", "nan"])


@pytest.mark.parametrize("days", ["0", "-1", "nan", "inf", "1e9", "soon"])
def test_a_key_cannot_outlive_the_calendar(data, capsys, days):
    with pytest.raises(SystemExit):
        main(["keys", "create", "--data", str(data), "--scope", "read", "--days", days])
    assert "at most 36500" in capsys.readouterr().err


def test_a_backup_goes_there_and_back(data, tmp_path, capsys):
    assert main(["backup", "--data", str(data), str(tmp_path / "b.tar")]) == 0
    assert main(["restore", "--data", str(tmp_path / "other"), str(tmp_path / "b.tar")]) == 0
    told = capsys.readouterr().out
    assert "sqlite at revision" in told
    assert "digest checked" in told
    assert (tmp_path / "other" / "onnxpress.db").stat().st_mode & 0o077 == 0


def test_nothing_is_restored_under_a_service(data, tmp_path, capsys):
    assert main(["backup", "--data", str(data), str(tmp_path / "b.tar")]) == 0
    (tmp_path / "other").mkdir()
    with lock(tmp_path / "other"):
        assert main(["restore", "--data", str(tmp_path / "other"), str(tmp_path / "b.tar")]) == 1
    assert "another onnxpress serves" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["backup", "{}/b.tar"], ["prune"], ["keys", "list"]])
def test_looking_makes_no_database(tmp_path, capsys, words):
    (tmp_path / "none").mkdir()
    assert main([*(word.format(tmp_path) for word in words), "--data", str(tmp_path / "none")]) == 1
    assert "There is no database" in capsys.readouterr().err
    assert list((tmp_path / "none").iterdir()) == []


def test_a_database_that_is_away_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ONNXPRESS_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/x")
    assert main(["migrate", "--data", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert told.startswith("onnxpress-server: the database does not answer")


def test_what_would_be_removed_is_counted_and_stays(data, capsys):
    (data / "store" / "incoming").mkdir(parents=True)
    stray = data / "store" / "incoming" / "stray"
    stray.write_bytes(b"x")
    os.utime(stray, (0, 0))
    assert main(["prune", "--dry-run", "--data", str(data)]) == 0
    assert "       1 uploads would be removed" in capsys.readouterr().out
    assert stray.exists()
    assert main(["prune", "--data", str(data)]) == 0
    assert "       1 uploads removed" in capsys.readouterr().out
    assert not stray.exists()


def test_every_verb_has_help(capsys):
    for words in (
        ["--help"],
        ["worker", "--help"],
        ["keys", "create", "--help"],
        ["doctor", "--help"],
        ["api", "--help"],
    ):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 0
    assert "--concurrency" in capsys.readouterr().out
