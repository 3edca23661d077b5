"""The compression core. This module is its front door: nothing else of the engine is public.

Importing it loads neither onnxruntime nor torch, so that a web process can validate job specs without ever being able to
open a session on a user's network. Every name is loaded when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.errors import EngineError
    from engine.fit import check_arrays, check_data, check_fit
    from engine.formats import report_files
    from engine.inspection import (
        DatasetInspection,
        Inspection,
        Prunability,
        inspect_archive,
        inspect_dataset,
        inspect_model,
        prunability,
    )
    from engine.job import run
    from engine.merge import merge_reports
    from engine.passes import list_passes
    from engine.report import AnyReport, ProfileReport, Report, read_report
    from engine.spec import Compress, Profile, Spec, TaskMetric, default_kind, read_spec, steps_of, targets_of
    from engine.target import PROVIDER_NAMES, targets
    from engine.unmeasured import unmeasured

__all__ = [
    "PROVIDER_NAMES",
    "AnyReport",
    "Compress",
    "DatasetInspection",
    "EngineError",
    "Inspection",
    "Profile",
    "ProfileReport",
    "Prunability",
    "Report",
    "Spec",
    "TaskMetric",
    "check_arrays",
    "check_data",
    "check_fit",
    "default_kind",
    "inspect_archive",
    "inspect_dataset",
    "inspect_model",
    "list_passes",
    "merge_reports",
    "prunability",
    "read_report",
    "read_spec",
    "report_files",
    "run",
    "steps_of",
    "targets",
    "targets_of",
    "unmeasured",
]

_HOME = {
    "PROVIDER_NAMES": "engine.target",
    "AnyReport": "engine.report",
    "Compress": "engine.spec",
    "DatasetInspection": "engine.inspection",
    "EngineError": "engine.errors",
    "Inspection": "engine.inspection",
    "Profile": "engine.spec",
    "ProfileReport": "engine.report",
    "Prunability": "engine.inspection",
    "Report": "engine.report",
    "Spec": "engine.spec",
    "TaskMetric": "engine.spec",
    "check_arrays": "engine.fit",
    "check_data": "engine.fit",
    "check_fit": "engine.fit",
    "default_kind": "engine.spec",
    "inspect_archive": "engine.inspection",
    "inspect_dataset": "engine.inspection",
    "inspect_model": "engine.inspection",
    "list_passes": "engine.passes",
    "merge_reports": "engine.merge",
    "prunability": "engine.inspection",
    "read_report": "engine.report",
    "read_spec": "engine.spec",
    "report_files": "engine.formats",
    "run": "engine.job",
    "steps_of": "engine.spec",
    "targets": "engine.target",
    "targets_of": "engine.spec",
    "unmeasured": "engine.unmeasured",
}


def __getattr__(name: str) -> Any:
    """Load a public name from its home when it is first used."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value
