"""The compression core. This module is its front door: nothing else of the engine is public.

Importing it loads neither onnxruntime nor torch, so that a web process can validate job specs without ever being able to
open a session on a user's network. Every name is loaded when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from engine.deferred_modules import defer

if TYPE_CHECKING:
    from engine.compatibility import check_arrays, check_data, check_fit, gate_samples_of
    from engine.data.dataset import inspect_dataset
    from engine.errors import EngineError
    from engine.estimate import beyond_limits, estimate_job
    from engine.gate import Gate, TaskMetric
    from engine.gate_samples import GateSamples
    from engine.goal import settled
    from engine.graph.archive import inspect_archive
    from engine.graph.validate import inspect_model
    from engine.inspection import (
        INSPECTION_BYTES,
        DatasetInspection,
        Estimate,
        Inspection,
        Preprocessing,
        Prunability,
        TensorInfo,
    )
    from engine.job.run import run
    from engine.job.search import search_turn
    from engine.job.trial import try_candidate
    from engine.job.variants import measure_variants
    from engine.measure.fresh_process import start_probes_with
    from engine.measure.memory import answer_probe
    from engine.measure.rejudge import rejudged, work_of_gates
    from engine.outputs import OutputDeclaration, read_declarations
    from engine.passes import list_passes
    from engine.prune.prunability import prunability
    from engine.recipe_adaptation import adapt_recipe
    from engine.recipes import list_recipes
    from engine.report.card import Ancestor, model_card
    from engine.report.figures.figure import Figure
    from engine.report.figures.layers import LAYERS_CAPTION, layers
    from engine.report.figures.of_report import figures
    from engine.report.figures.search import Candidate, front_figure, story_figure
    from engine.report.files import REPORT_FORMATS, report_files
    from engine.report.heading import Heading, with_heading
    from engine.report.merge import merge_reports
    from engine.report.page import report_page, unfinished_page
    from engine.report.unfinished import Unfinished, unfinished_files
    from engine.report.unmeasured import unmeasured
    from engine.report.values import AnyReport, Interval, Loading, ProfileReport, Report, read_report
    from engine.report.wording import (
        SHARES,
        decibel,
        gate_text,
        metric_change,
        metric_value,
        milliseconds,
        place_text,
        rough_duration,
        share,
        size,
        size_or_nothing,
        speed_between,
        target_name,
    )
    from engine.runtime.discovery import targets
    from engine.runtime.host_lock import HostLock
    from engine.search.front import front_of
    from engine.search.library import LIBRARY_VERSION
    from engine.search.turn import MeasureVariants, TryProposals, read_turn
    from engine.search.values import Point, Predicted, Proposal, Told, TrialValues, measured
    from engine.spec import (
        Compress,
        LeftOut,
        Profile,
        Search,
        Spec,
        default_kind,
        first_training_step,
        makes_network,
        read_spec,
        recipe_name,
        steps_of,
        targets_of,
        trains,
    )
    from engine.target import PROVIDER_NAMES, ProviderName
    from engine.train.discovery import training
    from engine.train.training_support import TRAINING_HINT

__all__ = [
    "INSPECTION_BYTES",
    "LAYERS_CAPTION",
    "LIBRARY_VERSION",
    "PROVIDER_NAMES",
    "REPORT_FORMATS",
    "SHARES",
    "TRAINING_HINT",
    "Ancestor",
    "AnyReport",
    "Candidate",
    "Compress",
    "DatasetInspection",
    "EngineError",
    "Estimate",
    "Figure",
    "Gate",
    "GateSamples",
    "Heading",
    "HostLock",
    "Inspection",
    "Interval",
    "LeftOut",
    "Loading",
    "MeasureVariants",
    "OutputDeclaration",
    "Point",
    "Predicted",
    "Preprocessing",
    "Profile",
    "ProfileReport",
    "Proposal",
    "ProviderName",
    "Prunability",
    "Report",
    "Search",
    "Spec",
    "TaskMetric",
    "TensorInfo",
    "Told",
    "TrialValues",
    "TryProposals",
    "Unfinished",
    "adapt_recipe",
    "answer_probe",
    "beyond_limits",
    "check_arrays",
    "check_data",
    "check_fit",
    "decibel",
    "default_kind",
    "estimate_job",
    "figures",
    "first_training_step",
    "front_figure",
    "front_of",
    "gate_samples_of",
    "gate_text",
    "inspect_archive",
    "inspect_dataset",
    "inspect_model",
    "layers",
    "list_passes",
    "list_recipes",
    "makes_network",
    "measure_variants",
    "measured",
    "merge_reports",
    "metric_change",
    "metric_value",
    "milliseconds",
    "model_card",
    "place_text",
    "prunability",
    "read_declarations",
    "read_report",
    "read_spec",
    "read_turn",
    "recipe_name",
    "rejudged",
    "report_files",
    "report_page",
    "rough_duration",
    "run",
    "search_turn",
    "settled",
    "share",
    "size",
    "size_or_nothing",
    "speed_between",
    "start_probes_with",
    "steps_of",
    "story_figure",
    "target_name",
    "targets",
    "targets_of",
    "training",
    "trains",
    "try_candidate",
    "unfinished_files",
    "unfinished_page",
    "unmeasured",
    "with_heading",
    "work_of_gates",
]

_HOME = {
    "Unfinished": "engine.report.unfinished",
    "unfinished_files": "engine.report.unfinished",
    "report_page": "engine.report.page",
    "unfinished_page": "engine.report.page",
    "rejudged": "engine.measure.rejudge",
    "work_of_gates": "engine.measure.rejudge",
    "with_heading": "engine.report.heading",
    "LIBRARY_VERSION": "engine.search.library",
    "front_of": "engine.search.front",
    "read_turn": "engine.search.turn",
    "TryProposals": "engine.search.turn",
    "MeasureVariants": "engine.search.turn",
    "TrialValues": "engine.search.values",
    "Told": "engine.search.values",
    "Proposal": "engine.search.values",
    "Predicted": "engine.search.values",
    "Point": "engine.search.values",
    "Gate": "engine.gate",
    "PROVIDER_NAMES": "engine.target",
    "AnyReport": "engine.report.values",
    "Compress": "engine.spec",
    "DatasetInspection": "engine.inspection",
    "EngineError": "engine.errors",
    "Estimate": "engine.inspection",
    "GateSamples": "engine.gate_samples",
    "Heading": "engine.report.heading",
    "HostLock": "engine.runtime.host_lock",
    "Ancestor": "engine.report.card",
    "INSPECTION_BYTES": "engine.inspection",
    "Inspection": "engine.inspection",
    "Interval": "engine.report.values",
    "Loading": "engine.report.values",
    "Preprocessing": "engine.inspection",
    "TensorInfo": "engine.inspection",
    "model_card": "engine.report.card",
    "LeftOut": "engine.spec",
    "OutputDeclaration": "engine.outputs",
    "Profile": "engine.spec",
    "ProfileReport": "engine.report.values",
    "ProviderName": "engine.target",
    "Prunability": "engine.inspection",
    "Report": "engine.report.values",
    "Search": "engine.spec",
    "Spec": "engine.spec",
    "TRAINING_HINT": "engine.train.training_support",
    "TaskMetric": "engine.gate",
    "adapt_recipe": "engine.recipe_adaptation",
    "answer_probe": "engine.measure.memory",
    "beyond_limits": "engine.estimate",
    "check_arrays": "engine.compatibility",
    "check_data": "engine.compatibility",
    "check_fit": "engine.compatibility",
    "default_kind": "engine.spec",
    "estimate_job": "engine.estimate",
    "first_training_step": "engine.spec",
    "gate_samples_of": "engine.compatibility",
    "inspect_archive": "engine.graph.archive",
    "inspect_dataset": "engine.data.dataset",
    "inspect_model": "engine.graph.validate",
    "list_passes": "engine.passes",
    "list_recipes": "engine.recipes",
    "makes_network": "engine.spec",
    "merge_reports": "engine.report.merge",
    "prunability": "engine.prune.prunability",
    "read_declarations": "engine.outputs",
    "read_report": "engine.report.values",
    "read_spec": "engine.spec",
    "recipe_name": "engine.spec",
    "report_files": "engine.report.files",
    "settled": "engine.goal",
    "measured": "engine.search.values",
    "decibel": "engine.report.wording",
    "gate_text": "engine.report.wording",
    "metric_change": "engine.report.wording",
    "metric_value": "engine.report.wording",
    "place_text": "engine.report.wording",
    "rough_duration": "engine.report.wording",
    "share": "engine.report.wording",
    "size_or_nothing": "engine.report.wording",
    "speed_between": "engine.report.wording",
    "target_name": "engine.report.wording",
    "milliseconds": "engine.report.wording",
    "size": "engine.report.wording",
    "SHARES": "engine.report.wording",
    "Candidate": "engine.report.figures.search",
    "Figure": "engine.report.figures.figure",
    "figures": "engine.report.figures.of_report",
    "front_figure": "engine.report.figures.search",
    "layers": "engine.report.figures.layers",
    "LAYERS_CAPTION": "engine.report.figures.layers",
    "story_figure": "engine.report.figures.search",
    "REPORT_FORMATS": "engine.report.files",
    "run": "engine.job.run",
    "measure_variants": "engine.job.variants",
    "search_turn": "engine.job.search",
    "try_candidate": "engine.job.trial",
    "start_probes_with": "engine.measure.fresh_process",
    "steps_of": "engine.spec",
    "targets": "engine.runtime.discovery",
    "targets_of": "engine.spec",
    "training": "engine.train.discovery",
    "trains": "engine.spec",
    "unmeasured": "engine.report.unmeasured",
}

# Before anything of ours imports onnx_ir.
defer()


def __getattr__(name: str) -> Any:
    """Load a public name from its home when it is first used."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value
