"""`python -m engine`: the same code without a service. `run` compresses or profiles a network, `inspect` says what one is."""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from engine import (
    EngineError,
    Spec,
    adapt_recipe,
    inspect_dataset,
    inspect_model,
    list_recipes,
    makes_network,
    metric_change,
    read_spec,
    recipe_name,
    rough_duration,
    run,
    size,
    speed_between,
)
from engine.errors import DatasetInvalidError
from engine.train.training_support import installed

# As the command line client has them.
_OK, _USAGE, _GATE_FAILED, _JOB_FAILED, _INCONCLUSIVE = 0, 2, 3, 4, 7
_CODES = {"pass": _OK, "none": _OK, "fail": _GATE_FAILED, "inconclusive": _INCONCLUSIVE}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; gives the exit code."""
    parsed = _parser().parse_args(arguments)
    try:
        return _inspect(parsed) if parsed.verb == "inspect" else _run(parsed)
    except EngineError as error:
        _say(error.message + (f" (node {error.node})" if error.node else ""))
        if error.hint:
            _say(error.hint)
        return _JOB_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m engine", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    job = verbs.add_parser("run", help="compress a network, or profile it, and measure it beside the original")
    job.add_argument("model", type=Path, help=".onnx file; external data lie beside it")
    named = ", ".join(recipe["name"] for recipe in list_recipes())
    job.add_argument(
        "spec",
        type=Path,
        help=f"JSON or YAML (.yaml, .yml) file: a whole job, or only its goal or recipe; or the name of a recipe: {named}",
    )
    job.add_argument("--baseline", type=Path, help=".onnx file that a profile compares with")
    job.add_argument("--student", type=Path, help=".onnx file that the recipe works on instead: `distill` teaches it")
    job.add_argument("--teacher", type=Path, help=".onnx file that `distill` learns from; by default the model")
    job.add_argument("--data", type=Path, help=".npz: one array per input, optional `label` and `part`")
    job.add_argument("--judge", type=Path, help=".npz that alone judges; by default a part of --data does")
    job.add_argument("--metric", help="what the labels are for; class numbers are top1")
    job.add_argument("--out", type=Path, required=True, help="folder for report.json, report.md and a new model.onnx")
    look = verbs.add_parser("inspect", help="say what a network or dataset is, as JSON")
    look.add_argument("file", type=Path, help=".onnx or .npz")
    return parser


def _inspect(parsed: argparse.Namespace) -> int:
    if parsed.file.suffix == ".npz":
        sys.stdout.write(inspect_dataset(parsed.file).model_dump_json(indent=2) + "\n")
        return _OK
    with tempfile.TemporaryDirectory(prefix="engine-") as folder:
        # A network is inspected in a folder without links, wherever its owner's lead.
        _copy_network(parsed.file, Path(folder) / "model")
        sys.stdout.write(inspect_model(Path(folder) / "model" / "model.onnx").model_dump_json(indent=2) + "\n")
    return _OK


def _run(parsed: argparse.Namespace) -> int:
    try:
        spec = _read_spec(parsed.spec)
    except FileNotFoundError:
        named = ", ".join(recipe["name"] for recipe in list_recipes())
        _say(f"no file {parsed.spec}, and no recipe of that name: {named}")
        return _USAGE
    except (ValidationError, ValueError, yaml.YAMLError) as error:
        _say(f"{parsed.spec} is not a job: {error}")
        return _USAGE
    if parsed.baseline is not None and makes_network(spec):
        _say("--baseline is for profiles: a compression compares with the network that it was given")
        return _USAGE
    learners = {role: path for role in ("student", "teacher") if (path := getattr(parsed, role)) is not None}
    if learners and not makes_network(spec):
        _say(f"--{next(iter(learners))} is for compressions: a profile trains nothing")
        return _USAGE
    with tempfile.TemporaryDirectory(prefix="engine-") as folder:
        workspace = Path(folder)
        _fill(workspace, parsed)
        if recipe_name(spec) is not None:
            worked_on = inspect_model(workspace / ("student" if parsed.student else "model") / "model.onnx")
            spec = adapt_recipe(spec, worked_on, has_data=parsed.data is not None, trains=installed())
        report = run(spec, workspace, _show, names={role: path.stem for role, path in learners.items()})
        parsed.out.mkdir(parents=True, exist_ok=True)
        for file in (workspace / "out").iterdir():
            shutil.copyfile(file, parsed.out / file.name)
    if makes_network(spec):
        _complete(parsed)
    sys.stdout.write(report.summary + "\n")
    for result in report.verdict.gates:
        sys.stdout.write(f"{result.outcome}: {result.reason}\n")
    return _CODES[report.verdict.outcome]


def _complete(parsed: argparse.Namespace) -> None:
    """Bring along what onnxruntime-genai reads beside a network."""
    from engine.graph.genai_folder import complete  # noqa: PLC0415  # the engine's rooms load slowly

    beside = complete(parsed.model, parsed.out / "model.onnx")
    if beside:
        _say(f"{parsed.out}: {', '.join(beside)} for onnxruntime-genai, as they lie beside {parsed.model.name}")


def _read_spec(path: Path) -> Spec:
    if not path.exists() and str(path) in {recipe["name"] for recipe in list_recipes()}:
        return read_spec({"recipe": str(path)})
    text = path.read_text(encoding="utf-8")
    body = yaml.safe_load(text) if path.suffix in {".yaml", ".yml"} else json.loads(text)
    if isinstance(body, dict) and "passes" in body:
        body = {"recipe": body}
    elif (
        isinstance(body, dict) and not {"goal", "recipe", "kind"} & set(body) and {"minimise", "subject_to"} & set(body)
    ):
        body = {"goal": body}
    if isinstance(body, dict):
        # The service's job names what it stored; here the command line names files.
        body = {
            key: value
            for key, value in body.items()
            if key not in {"model", "baseline", "student", "teacher", "dataset", "judge", "labels"}
        }
    return read_spec(body)


def _fill(workspace: Path, parsed: argparse.Namespace) -> None:
    """Copy the inputs: the engine may write beside them."""
    _copy_network(parsed.model, workspace / "model")
    for role in ("baseline", "student", "teacher"):
        network = getattr(parsed, role)
        if network is not None:
            _copy_network(network, workspace / role)
    for name in ("data", "judge"):
        file = getattr(parsed, name)
        if file is not None:
            if not file.is_file():
                raise DatasetInvalidError(
                    f"{file} is {'a folder' if file.is_dir() else 'not there'}.",
                    hint="Data are one file: .npz, .safetensors or a zip of samples; `onnxpress dataset` makes it of raw data.",
                )
            (workspace / name).mkdir()
            shutil.copyfile(file, workspace / name / "data.npz")
            declared = {} if parsed.metric is None else {"metric": parsed.metric}
            (workspace / name / "dataset.json").write_text(json.dumps(declared))


def _copy_network(model: Path, folder: Path) -> None:
    from engine.graph.owners_files import copy_with_data  # noqa: PLC0415  # onnx is slow to load

    folder.mkdir()
    copy_with_data(model, folder, "model.onnx")


def _show(event: dict[str, Any]) -> None:
    kind = event["type"]
    if kind == "step_started":
        _say(f"step {event['step'] + 1}: {event['pass']}")
    elif kind == "progress":
        _say(f"  {event['message']}")
    elif kind == "step_finished":
        _say(f"  {event['status']}" + (f": {event['reason']}" if event["reason"] else ""))
    elif kind == "estimate":
        _say(f"estimate: {event['message']}")
    elif kind == "warning":
        _say(f"warning: {event['message']}")
    elif kind == "measuring":
        _say(f"measuring {event['what']}")
    elif kind == "trial_started":
        _say(f"trial {event['number']}: {event['tried']}. {event['because']}")
    elif kind == "trial_ended":
        _say(f"  {_ended(event)}")


def _ended(event: dict[str, Any]) -> str:
    """Say what came of a trial, in a line."""
    if event["state"] != "succeeded":
        return f"{event['state']}: {event['message'] or 'no reason is known'}"
    ratio, quality = event["latency_ratio"], event["quality"]
    said = [] if ratio is None else [speed_between(ratio, event["latency_low"], event["latency_high"])]
    said.append(size(event["size_bytes"]))
    if quality is not None:
        said.append(metric_change(quality["metric"], quality["value"], quality["difference"]))
    return f"{', '.join(said)} ({rough_duration(event['seconds'])})"


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
