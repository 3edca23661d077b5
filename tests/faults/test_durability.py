"""What is acknowledged is on the disk: the order in which a process of the API writes, as the kernel saw it."""

import re
import shutil
import subprocess

import pytest

from .conftest import network

RAW = {"Content-Type": "application/octet-stream"}
CALLS = "fsync,fdatasync,rename,renameat,renameat2,pwrite64,write,send,sendto,sendmsg,writev"
_LINE = re.compile(r"(?P<pid>\d+) +(?P<rest>.*)")


@pytest.fixture
def strace(tmp_path):
    """The words before a command that have its calls written to a file, and the file."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    if subprocess.run(["strace", "-o", "/dev/null", "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("this machine lets nobody trace a process")
    log = tmp_path / "calls.txt"
    # A page of the database is told whole: which row it holds is read in it.
    return ["strace", "-f", "-y", "--seccomp-bpf", "-s", "4096", "-e", f"trace={CALLS}", "-o", log], log


def calls(log):
    """Give every call as (when it began, when it ended, process, text): numbers of lines."""
    found, open_calls = [], {}
    # Its last line may still be written.
    for number, line in enumerate(log.read_text(errors="replace").rpartition("\n")[0].splitlines()):
        pid, rest = _LINE.fullmatch(line).group("pid", "rest")
        if "resumed>" in rest:
            began, text = open_calls.pop(pid)
            found.append((began, number, pid, text))
        elif "<unfinished" in rest:
            open_calls[pid] = (number, rest)
        else:
            found.append((number, number, pid, rest))
    return sorted(found)


def test_an_upload_is_on_the_disk_before_it_is_acknowledged(system, strace):
    words, log = strace
    client = system.start_api(under=words)
    assert client.post("/v1/models", content=network(), headers=RAW).status_code == 201
    # The client has it before the kernel's words of it are written.
    system.until(lambda _: any("HTTP/1.1 201" in call[3] for call in calls(log)))
    made = calls(log)
    [placed] = [call for call in made if call[3].startswith("rename") and "/incoming/" in call[3]]
    incoming, blob = re.findall(r'"([^"]+)"', placed[3])
    folder = blob.rpartition("/")[0]
    wal = f"{system.data_dir}/onnxpress.db-wal"

    def of(kind, path):
        return [call for call in made if call[3].startswith(kind) and f"<{path}" in call[3]]

    [synced] = of("fsync", incoming)
    [folder_synced] = [call for call in of("fsync", f"{folder}>") if call[0] > placed[1]]
    [answered] = [call for call in made if "HTTP/1.1 201" in call[3]]
    assert max(call[1] for call in of("write", incoming)) < synced[0]
    assert synced[1] < placed[0]
    # Whoever finds the row after a power cut finds the bytes. Other threads write rows of their own meanwhile.
    sha256 = blob.rpartition("/")[2]
    rows = [call for call in of("pwrite64", wal) if sha256 in call[3] and call[0] < answered[0]]
    syncs = [call for call in (*of("fdatasync", wal), *of("fsync", wal)) if call[2] == rows[-1][2]]
    rows_synced = [call for call in syncs if rows[-1][1] < call[0]]
    assert folder_synced[1] < rows[0][0]
    assert rows[-1][1] < rows_synced[0][0] <= rows_synced[0][1] < answered[0]


@pytest.mark.parametrize("stack", ["production"], indirect=True)
def test_postgres_is_asked_for_no_less(system):
    from sqlalchemy import text

    with system.database.transaction() as session:
        assert session.scalar(text("SHOW synchronous_commit")) == "on"
