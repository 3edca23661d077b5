"""A worker that knows one kind of unit more: a coordinator, as the searches of a later version will be one."""

import sys
from importlib import import_module
from pathlib import Path

from services import outcomes, unit_kinds
from services.claims import Order
from worker.__main__ import main

KIND = "study"


def order(session, unit, job, _inputs):
    """Tell the coordinator's process what it noted, and what came of its trials."""
    told = unit_kinds.told_trials(session, unit)
    crashed = sorted(unit.crashed_steps)
    return Order(
        "study",
        {"spec": job.spec, "targets": [], "crashed_steps": crashed, "state": unit.continuation, "trials": told},
    )


unit_kinds.KINDS[KIND] = unit_kinds.Kind(
    order=order,
    read=unit_kinds.KINDS["run"].read,
    keep=outcomes.keep_report,
    largest_file=2,
    may_step_back=True,
)
# The package has a function of the module's name.
import_module("sandbox.start")._CHILD = ("-I", str(Path(__file__).with_name("study_child.py")))

if __name__ == "__main__":
    sys.exit(main())
