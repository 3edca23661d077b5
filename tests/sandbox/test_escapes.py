"""A child that runs arbitrary Python gets nowhere: not to other files, not out, not to another process, not past its end."""

import os
import signal
import socket
import struct
import textwrap
import time
from pathlib import Path

import psutil
import pytest

import sandbox
from sandbox import seccomp, syscalls
from tests.sandbox import hostile

PATIENCE_S = 60.0
# What is refused is refused by the kernel, and not for lack of the thing.
TRY = """
    import ctypes, errno, signal, socket, subprocess, threading, shutil
    found = {}
    libc = ctypes.CDLL(None, use_errno=True)

    def attempt(name, action):
        try:
            found[name] = f"done: {action()!r}"[:200]
        except PermissionError:
            found[name] = "refused"
        except OSError as error:
            found[name] = errno.errorcode.get(error.errno, "?")

    def call(number, *arguments):
        if libc.syscall(ctypes.c_long(number), *(ctypes.c_long(one) for one in arguments)) < 0:
            raise OSError(ctypes.get_errno(), "")
"""


@pytest.fixture(scope="module", params=["started", "forked"])
def server(request, tmp_path_factory):
    """A child that is forked from a prepared process is behind the same walls as one that is started."""
    if request.param == "started":
        yield None
        return
    with pytest.MonkeyPatch.context() as patch:
        found = hostile.fork_server(tmp_path_factory.mktemp("server"), patch)
        yield found
        found.close()


@pytest.fixture
def outside(tmp_path):
    """A folder as the data folder is: with a secret, and with another job's files."""
    secret = tmp_path / "admin.key"
    secret.write_text("opk_secret")
    other = tmp_path / "work" / "other"
    other.mkdir(parents=True)
    (other / "model.onnx").write_text("another tenant's")
    return tmp_path


def found_by(outside, monkeypatch, server, code):
    """Give what came of each attempt in the code, in a child that is confined as strictly as can be."""
    where = f"outside, parent = Path({str(outside)!r}), {os.getpid()}"
    parts = [where, textwrap.dedent(TRY), textwrap.dedent(code), "answer = found"]
    child = hostile.start(outside, monkeypatch, "\n".join(parts), server=server)
    outcome = child.wait(PATIENCE_S)
    assert outcome.kind == "done", outcome
    assert child.confinement == sandbox.Confinement("strict")
    return outcome.value


def all_refused(found):
    assert found
    assert {name: what for name, what in found.items() if what != "refused"} == {}


def test_files_outside(outside, monkeypatch, server):
    found = found_by(
        outside,
        monkeypatch,
        server,
        """
    attempt("a secret", lambda: (outside / "admin.key").read_text())
    attempt("another job's network", lambda: (outside / "work/other/model.onnx").read_bytes())
    attempt("another job's folder", lambda: os.listdir(outside / "work/other"))
    attempt("the folder above", lambda: os.listdir(".."))
    attempt("a secret by a way round", lambda: open("model/../../../admin.key").read() if os.mkdir("model") is None else 0)
    attempt("passwords", lambda: open("/etc/passwd").read())
    attempt("a home", lambda: os.listdir("/root"))
    attempt("a new file", lambda: (outside / "work/other/new").write_text("x"))
    attempt("a new folder", lambda: (outside / "new").mkdir())
    attempt("a change", lambda: (outside / "admin.key").write_text("mine"))
    attempt("a cut", lambda: os.truncate(outside / "admin.key", 0))
    attempt("a removal", lambda: (outside / "admin.key").unlink())
    attempt("a move out", lambda: os.rename("hostile.py", outside / "hostile.py"))
    attempt("a move in", lambda: os.rename(outside / "admin.key", "admin.key"))
    attempt("a mode", lambda: os.chmod(outside / "admin.key", 0o777))
    attempt("an owner", lambda: os.chown(outside / "admin.key", 1, 1))
    attempt("a time", lambda: os.utime(outside / "admin.key"))
    attempt("an attribute", lambda: os.setxattr(outside / "admin.key", "user.x", b"1"))
    attempt("the library's code", lambda: open(os.__file__, "a"))
    attempt("a watch", lambda: call(294, 0) if os.uname().machine == "x86_64" else call(26, 0))
    attempt("shared memory", lambda: open("/dev/shm/mine", "w"))
    attempt("temporary files of all", lambda: open("/tmp/mine", "w"))
    """,
    )
    all_refused(found)
    assert (outside / "admin.key").read_text() == "opk_secret"
    assert sorted(path.name for path in outside.iterdir()) == ["admin.key", "script.py", "work"]


def test_links_devices_and_what_is_left_behind(outside, monkeypatch, server):
    found = found_by(
        outside,
        monkeypatch,
        server,
        """
    attempt("a symbolic link", lambda: os.symlink(outside / "admin.key", "model.onnx"))
    attempt("a hard link", lambda: os.link(outside / "admin.key", "model.onnx"))
    attempt("a hard link inside", lambda: os.link("hostile.py", "model.onnx"))
    attempt("a pipe", lambda: os.mkfifo("pipe"))
    attempt("a device", lambda: os.mknod("device", 0o600 | 0o020000, 259))
    attempt("an attribute inside", lambda: os.setxattr("hostile.py", "user.x", b"1"))
    """,
    )
    all_refused(found)


def test_other_processes(outside, monkeypatch, server):
    found = found_by(
        outside,
        monkeypatch,
        server,
        """
    keeper = os.getppid()
    for name, pid in (("parent", parent), ("keeper", keeper)):
        for file in ("environ", "cmdline", "status", "maps", "mem", "fd", "cwd"):
            path = f"/proc/{pid}/{file}"
            attempt(f"{file} of the {name}", lambda: os.listdir(path) if file in {"fd", "cwd"} else open(path, "rb").read(1))
        attempt(f"a signal to the {name}", lambda: os.kill(pid, signal.SIGTERM))
        attempt(f"a signal to a thread of the {name}", lambda: call(234, pid, pid, 15))
        attempt(f"the limits of the {name}", lambda: __import__("resource").prlimit(pid, 7, (3, 3)))
        attempt(f"the cores of the {name}", lambda: os.sched_setaffinity(pid, {0}))
        attempt(f"the memory of the {name}", lambda: call(310, pid, 0, 0, 0, 0, 0))
        attempt(f"a handle of the {name}", lambda: call(434, pid, 0))
        attempt(f"tracing the {name}", lambda: call(101, 16, pid, 0, 0))
    attempt("a signal to all", lambda: os.kill(-1, signal.SIGKILL))
    attempt("a signal to the group", lambda: os.killpg(0, signal.SIGKILL))
    attempt("the list of processes", lambda: os.listdir("/proc"))
    attempt("the processes' priority", lambda: os.setpriority(os.PRIO_USER, 0, 19))
    attempt("being traced", lambda: call(101, 0, 0, 0, 0))
    attempt("living on", lambda: call(157, 1, 0, 0, 0, 0))
    attempt("hiding", lambda: call(157, 4, 0, 0, 0, 0))
    attempt("other's shared memory", lambda: call(29, 1, 4096, 0o1600))
    """,
    )
    all_refused(found)


def test_the_network(outside, monkeypatch, server):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        found = found_by(
            outside,
            monkeypatch,
            server,
            f"""
    attempt("a connection", lambda: socket.create_connection(("127.0.0.1", {port}), timeout=5))
    for family in ("AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK", "AF_PACKET"):
        attempt(family, lambda: socket.socket(getattr(socket, family), socket.SOCK_RAW if "PACK" in family else 1))
    attempt("a pair", socket.socketpair)
    """,
        )
        all_refused(found)


def test_programs_and_processes(outside, monkeypatch, server):
    found = found_by(
        outside,
        monkeypatch,
        server,
        """
    attempt("a program", lambda: subprocess.run(["/bin/true"]))
    attempt("a program in its place", lambda: os.execv(sys.executable, [sys.executable, "-c", "1"]))
    attempt("a spawned program", lambda: os.posix_spawn("/bin/true", ["true"], {}))
    attempt("a fork", os.fork)
    attempt("a double fork", lambda: os.fork() or os.setsid() or os.fork())
    attempt("a terminal", os.forkpty)
    attempt("a session", os.setsid)
    attempt("a namespace", lambda: call(272, 0x10000000))
    attempt("a root", lambda: os.chroot("."))
    attempt("a mount", lambda: call(165, 0, 0, 0, 0, 0))
    attempt("a kernel program", lambda: call(321, 0, 0, 0))
    attempt("a key", lambda: call(250, 0, -3, 0))
    attempt("counters", lambda: call(298, 0, 0, 0, 0, 0))
    attempt("page faults", lambda: call(323, 0))
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
    """,
    )
    all_refused(found)
    found = found_by(
        outside,
        monkeypatch,
        server,
        """
    attempt("a ring", lambda: call(425, 1, 0))
    attempt("a newer call", lambda: call(467, 0))
    attempt("a newer way to fork", lambda: call(435, 0, 0))
    attempt("another ABI", lambda: call(0x40000000 + 39))
    """,
    )
    assert found == {
        "a ring": "refused", "a newer call": "ENOSYS", "a newer way to fork": "ENOSYS", "another ABI": "ENOSYS"
    }  # fmt: skip


def weaker(monkeypatch, *lines):
    """Have children without some of the walls, as on an older kernel."""
    patched = "\n".join(["import sandbox.seccomp, sandbox.landlock", *lines])
    monkeypatch.setattr(hostile, "_SCRIPT", hostile._SCRIPT.replace("\nchild._VERBS", f"\n{patched}\nchild._VERBS"))


NO_SECCOMP = "def refuse(_): raise OSError(38, '')\nsandbox.seccomp.install = refuse"
NO_LANDLOCK = "def refuse_too(_): raise OSError(38, '')\nsandbox.landlock.restrict = refuse_too"


def test_it_cannot_say_how_it_is_confined(outside, monkeypatch):
    weaker(monkeypatch, NO_SECCOMP)
    code = """
        for told in ({"type": "confined", "level": "strict"}, {"type": "locked_down", "tried": {}}):
            tell(told)
    """
    child = hostile.start(outside, monkeypatch, code)
    assert child.wait(PATIENCE_S).kind == "done"
    assert child.confinement.level == "partial"
    assert any("seccomp" in reason for reason in child.confinement.missing)


@pytest.mark.parametrize(
    ("without", "level"),
    [((NO_SECCOMP,), "partial"), ((NO_LANDLOCK,), "partial"), ((NO_SECCOMP, NO_LANDLOCK), "rlimits")],
)
def test_a_child_that_is_confined_too_little_is_given_nothing(outside, monkeypatch, without, level):
    weaker(monkeypatch, *without)
    code = "(workspace / 'tmp' / 'ran').touch()"
    child = hostile.start(outside, monkeypatch, code, isolation="strict")
    outcome = child.wait(PATIENCE_S)
    assert (outcome.kind, outcome.value) == ("unconfined", None)
    assert child.confinement.level == level
    assert child.confinement.missing
    assert list((outside / "work" / "attempt" / "tmp").iterdir()) == []
    child = hostile.start(outside, monkeypatch, code, isolation=level)
    assert child.wait(PATIENCE_S).kind == "done"


@pytest.mark.parametrize("ends", ["time.sleep(100)", "os.kill(os.getpid(), signal.SIGSEGV)", "os._exit(0)"])
def test_no_process_outlives_it_where_it_may_start_some(outside, monkeypatch, ends):
    """Forked twice, in a session of its own, its parent gone: it ends with the child all the same."""
    weaker(monkeypatch, NO_SECCOMP, NO_LANDLOCK)
    code = f"""
        import signal
        if os.fork() == 0:
            os.setsid()
            for _ in range(20):
                if os.fork() == 0:
                    os.setsid()
                    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
                        signal.signal(number, signal.SIG_IGN)
                    time.sleep(1000)
            os._exit(0)
        os.wait()
        tell({{"type": "progress"}})
        time.sleep(0.2)
        {ends}
    """
    before = set(psutil.pids())
    child = hostile.start(outside, monkeypatch, code)
    end = time.monotonic() + PATIENCE_S
    while not child.events() and child.wait(0.01) is None:
        assert time.monotonic() < end
    if ends.startswith("time"):
        assert len(psutil.Process(child.pid).children(recursive=True)) == 21
        child.kill()
    outcome = child.wait(PATIENCE_S)
    assert outcome.kind == ("killed" if ends.startswith("time") else "crashed")
    if "SEGV" in ends:
        assert outcome.exit_code == -signal.SIGSEGV
    work = str(outside / "work")
    left = [pid for pid in set(psutil.pids()) - before if _works_in(pid, work)]
    assert left == []


def _works_in(pid, folder):
    try:
        return psutil.Process(pid).cwd().startswith(folder)
    except psutil.Error:
        return False


def test_libraries_work_behind_the_walls(outside, monkeypatch, server):
    found = found_by(
        outside,
        monkeypatch,
        server,
        """
    import tempfile, zipfile, concurrent.futures
    import numpy as np
    import engine
    targets = engine.targets(["cpu"])
    found["cpu"] = targets[0]["reason"]
    training = engine.training()
    found["training"] = training["reason"]
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(f"{folder}/x.zip", "w") as archive:
        archive.writestr("x", "x")
    with tempfile.TemporaryFile() as file:
        file.write(b"x")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(np.linalg.svd, [np.eye(50)] * 4))
    found["threads"] = len(os.listdir("/proc/self/task")) > 1
    """,
    )
    assert found == {"cpu": None, "training": None, "threads": True}


@pytest.mark.parametrize("name", sorted(syscalls.ARCHITECTURES))
@pytest.mark.parametrize("chosen", [seccomp.Filter(), seccomp.Filter(forks=True), seccomp.Filter(devices=True)])
def test_the_filter_for_every_architecture_denies_what_it_lists(name, chosen):
    machine = syscalls.ARCHITECTURES[name]
    run = interpreter(chosen.program(machine, 4242))
    allow, eperm, enosys = 0x7FFF0000, 0x00050001, 0x00050026
    assert run(machine.audit ^ 1, 0) == 0x80000000
    denied = set(seccomp._DENIED) | (set() if chosen.forks else set(seccomp._OF_A_WORKER))
    for call in denied & set(machine.numbers):
        assert run(machine.audit, machine.numbers[call]) == eperm, call
    assert run(machine.audit, machine.numbers["clone3"]) == enosys
    assert run(machine.audit, syscalls.NEWEST + 1) == enosys
    clone = machine.numbers["clone"]
    assert run(machine.audit, clone, 0x003D0F00) == allow
    assert run(machine.audit, clone, signal.SIGCHLD) == (allow if chosen.forks else eperm)
    if chosen.forks:
        assert run(machine.audit, clone, signal.SIGCHLD | 0x10000000) == eperm
    kill = machine.numbers["kill"]
    assert run(machine.audit, kill, 4242) == allow
    assert run(machine.audit, kill, 1) == (allow if chosen.forks else eperm)
    assert run(machine.audit, machine.numbers["sched_setaffinity"], 0) == allow
    assert run(machine.audit, machine.numbers["sched_setaffinity"], 1) == eperm
    assert run(machine.audit, machine.numbers["socket"], socket.AF_INET) == eperm
    assert run(machine.audit, machine.numbers["socket"], socket.AF_UNIX) == (allow if chosen.devices else eperm)
    assert run(machine.audit, machine.numbers["prctl"], 15) == allow
    assert run(machine.audit, machine.numbers["fcntl"], 3, 8) == eperm
    assert run(machine.audit, machine.numbers["fcntl"], 3, 4) == allow
    known = set(machine.numbers.values())
    # Reading, writing and mapping are in no table.
    assert all(run(machine.audit, number) == allow for number in range(450) if number not in known)


def interpreter(program):
    """Give what the kernel does with a filter: from the architecture, the number and arguments to the verdict."""
    code = [struct.unpack("HBBI", program[at : at + 8]) for at in range(0, len(program), 8)]

    def run(audit, number, *arguments):
        data = struct.pack("<IIQ6Q", number, audit, 0, *(list(arguments) + [0] * 6)[:6])
        at, value = 0, 0
        while True:
            operation, met, otherwise, constant = code[at]
            at += 1
            if operation == 0x20:
                value = struct.unpack_from("<I", data, constant)[0]
            elif operation == 0x06:
                return constant
            else:
                holds = {
                    0x15: value == constant, 0x25: value > constant, 0x35: value >= constant, 0x45: bool(value & constant)
                }[operation]  # fmt: skip
                at += met if holds else otherwise

    return run


def test_the_kernels_own_headers_have_the_same_numbers():
    names = {"x86_64": "x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "asm-generic/unistd.h"}
    for name, header in names.items():
        file = Path("/usr/include") / header
        if not file.exists():
            continue
        lines = [line.split() for line in file.read_text().splitlines() if line.startswith("#define __NR")]
        known = {line[1].split("_", 3)[-1]: line[2] for line in lines if len(line) > 2 and line[2].isdigit()}
        for call, number in syscalls.ARCHITECTURES[name].numbers.items():
            assert known.get(call, str(number)) == str(number), (name, call)
