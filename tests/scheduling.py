"""Which tests share a process when several processes run them, and in which order."""

import pytest

# Rooms whose tests kill or measure: one at a time, whatever else runs beside them.
ALONE = ("tests/faults/", "tests/engine/measure/")
# What takes longest begins first, so that no process is left alone with it at the end.
LONG = (
    "tests/faults/",
    "tests/api/test_schemathesis.py",
    "tests/e2e/",
    "tests/services/",
    "tests/engine/test_pipeline.py",
    "tests/engine/test_profiling.py",
    "tests/engine/passes/",
    "tests/worker/",
)


def scope_of(nodeid: str) -> str:
    """What of the tests goes to one process as a whole: a file, whose fixtures are made once, or a room that is alone."""
    path = nodeid.partition("::")[0]
    return next((room for room in ALONE if path.startswith(room)), path)


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
