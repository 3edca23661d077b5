"""Which tests share a process when several processes run them, and in which order."""

import pytest

# Rooms whose tests measure: one at a time, whatever else runs beside them.
ALONE = ("tests/engine/measure/",)
# Rooms that go to one process each: PyTorch takes seconds to load in every one that asks for it.
WHOLE = ("tests/engine/train/",)
# Files of one process, one after the other: some share the whole service, and those that kill mostly wait, so that two
# processes with them leave room for others that work.
TOGETHER = (
    (
        "tests/e2e/test_doctor.py",
        "tests/e2e/test_readme_curl.py",
        "tests/e2e/test_searches.py",
        "tests/e2e/test_targets.py",
        "tests/e2e/test_training.py",
    ),
    (
        "tests/client/test_service.py",
        "tests/client/test_exports.py",
        "tests/client/test_mcp.py",
        "tests/client/test_documented_commands.py",
    ),
    (
        "tests/faults/test_kills.py",
        "tests/faults/test_units.py",
        "tests/faults/test_clocks.py",
        "tests/faults/test_neighbours.py",
        "tests/faults/test_durability.py",
        "tests/faults/test_training.py",
    ),
    (
        "tests/faults/test_outages.py",
        "tests/faults/test_messages.py",
        "tests/faults/test_locks.py",
        "tests/faults/test_networks.py",
        "tests/faults/test_hosts.py",
        "tests/faults/test_full_disk.py",
        "tests/faults/test_chaos.py",
    ),
)
# What takes longest begins first, so that no process is left alone with it at the end; what is short fills up.
LONG = (
    "tests/faults/",
    "tests/e2e/test_backup.py",
    "tests/e2e/",
    "tests/client/test_service.py",
    "tests/client/test_exports.py",
    "tests/client/test_mcp.py",
    "tests/client/test_examples.py",
    "tests/engine/measure/",
    "tests/engine/train/",
    "tests/engine/job/",
    "tests/services/",
    "tests/standalone/",
    "tests/api/",
    "tests/engine/graph/test_coupling_standard.py",
    "tests/engine/passes/",
    "tests/engine/test_bundled_network.py",
    "tests/test_architecture.py",
    "tests/worker/",
    "tests/sandbox/",
    "tests/models/",
    "tests/engine/graph/",
    "tests/engine/quantize/",
)


def scope_of(nodeid: str) -> str:
    """What goes to one process as a whole: a file, whose fixtures are made once, a whole room, or files together."""
    path = nodeid.partition("::")[0]
    for files in TOGETHER:
        if path in files:
            return files[0]
    return next((room for room in (*ALONE, *WHOLE) if path.startswith(room)), path)


def urgency_of(nodeid: str) -> int:
    """How soon a test begins; those of the same number keep their order."""
    return next((at for at, start in enumerate(LONG) if nodeid.startswith(start)), len(LONG))


def make_scheduler(config: pytest.Config, log: object) -> object:
    """Give pytest-xdist the scheduler of these scopes."""
    from xdist.scheduler import LoadScopeScheduling

    class RoomScheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return scope_of(nodeid)

    # Its own order is by number of tests, which says little about their length.
    config.option.loadscopereorder = False
    return RoomScheduling(config, log)
