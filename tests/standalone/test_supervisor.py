import os
import signal
import sys
import time
from pathlib import Path

from standalone import supervisor as supervising
from standalone.supervisor import Service, Supervisor


def _service(tmp_path, name, code, **more):
    return Service(name, [sys.executable, "-c", code], dict(os.environ), tmp_path / f"{name}.log", **more)


def _until(condition, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def _gone(pid):
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True


def test_a_dead_service_starts_again_later_each_time(tmp_path):
    told = []
    supervisor = Supervisor(told.append)
    service = _service(tmp_path, "sleeper", "import time; time.sleep(60)")
    supervisor.start(service)
    first = service.pid
    os.kill(first, signal.SIGKILL)
    _until(lambda: not service.alive())
    supervisor.tend()
    assert not service.alive(), "not before the backoff is over"
    _until(lambda: supervisor.tend() or service.alive())
    assert service.pid != first
    assert "sleeper" in told[0]
    supervisor.stop()
    assert not service.alive()


def test_services_stop_in_the_opposite_order(tmp_path):
    log = tmp_path / "order"
    code = (
        "import signal, sys, time\n"
        "def end(*_):\n open({log!r}, 'a').write({name!r}); sys.exit()\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "open({ready!r}, 'w').close()\n"
        "time.sleep(60)"
    )
    supervisor = Supervisor(print)
    for name in ("a", "b", "c"):
        ready = tmp_path / f"ready-{name}"
        supervisor.start(_service(tmp_path, name, code.format(log=str(log), name=name, ready=str(ready))))
        _until(ready.exists)
    supervisor.stop()
    assert log.read_text() == "cba"


def test_one_that_ignores_the_signal_is_killed_with_its_group(tmp_path):
    ready = tmp_path / "ready"
    code = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(ready)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(60)"
    )
    service = _service(tmp_path, "deaf", code, grace_s=0.3)
    service.start()
    _until(lambda: ready.exists() and ready.read_text())
    grandchild = int(ready.read_text())
    service.stop()
    assert not service.alive()
    _until(lambda: _gone(grandchild))


def test_a_log_that_grows_is_put_aside_and_written_on(tmp_path, monkeypatch):
    monkeypatch.setattr(supervising, "LOG_BYTES", 2000)
    supervisor = Supervisor(print)
    service = Service(
        "talker",
        ["sh", "-c", "while :; do echo a line of the log; sleep 0.001; done"],
        dict(os.environ),
        tmp_path / "log",
    )
    supervisor.start(service)
    aside = [tmp_path / f"log.{number}" for number in range(1, supervising.LOGS_ASIDE + 2)]
    try:
        _until(lambda: supervisor.tend() or aside[-2].exists())
        written = service.log.stat().st_size
        _until(lambda: service.log.stat().st_size > written)
    finally:
        supervisor.stop()
    assert not aside[-1].exists()
    # Neither a hole where the file was cut nor a line that is torn.
    for path in (service.log, *aside[:-1]):
        assert set(path.read_text().splitlines()) == {"a line of the log"}, path
