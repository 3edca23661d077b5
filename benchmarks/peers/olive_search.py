"""Let Olive search over pass configurations; runs in its environment, and is the user script that Olive loads.

Settings: `minimise` latency | size; `judge` top1 | mask_iou, by which it chooses; `max_drop` of that, beside the original; `seconds`
of the search; `transformer`, the network is one; `seed`. It searches its own space with its own joint TPE: which of ONNX Runtime's
quantizations with every parameter that Olive declares searchable, behind each of its graph optimizers. It evaluates by its own metrics:
latency at one thread, bytes, and accuracy or, of masks, F1 beside the original's (F1 is 2 IoU / (1 + IoU)). `request["choosing"]` is an
.npz of the samples that it may choose by, with `label` where there are any.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from feeds import feeds
from olive.data.registry import Registry
from olive.engine.footprint import FootprintNode
from olive.workflows import run
from opset import raised

TEXT_MASK = 0.3
"""A pixel is text above this probability, as in benchmarks.cases."""
_BATCH = {"top1": 32, "mask_iou": 2}
_WARM_UP, _RUNS = 10, 50
_SEARCHED = "SEARCHABLE_VALUES"
_ONE_THREAD = {"onnx": {"session_options": {"intra_op_num_threads": 1}}}
_SCORES = {"top1": "accuracy_score", "mask_iou": "f1_score"}


def work(request: dict[str, Any]) -> dict[str, Any]:
    """Search until the time is over and write what Olive ranks first; raises RuntimeError where it has nothing."""
    folder = Path(request["out"]).parent / "olive"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    source, labelled = folder / "source.onnx", folder / "choosing.npz"
    onnx.save(raised(onnx.load(request["model"])), source)
    classes = _label(request, labelled)
    FootprintNode.update = _record
    output = run(configuration({**request, "choosing": str(labelled)}, source, folder, classes))
    footprint = json.loads((folder / "out" / "footprint.json").read_text())
    tried = [node for node in footprint.values() if node.get("metrics")]
    best = output.get_best_candidate()
    if best is None:
        raise RuntimeError(f"found no network that holds the goal, of {len(tried)} that it evaluated")
    onnx.save(onnx.load(best.model_path), request["out"])
    return {
        # The original is evaluated too.
        "trials": len(tried) - 1,
        "passes": [node["from_pass"] for node in _history(footprint, best.model_id)],
        "found": {name: each["value"] for name, each in best.metrics["value"].items()},
    }


def _record(node: FootprintNode, **values: Any) -> None:
    """Let Olive record a pass that it has in its cache: by itself it sets a field by its alias, fails, and gives the candidate up."""
    for name, value in values.items():
        setattr(node, "model_config_data" if name == "model_config" else name, value)


def configuration(request: dict[str, Any], source: Path, folder: Path, classes: int) -> dict[str, Any]:
    """Give Olive's workflow: its passes with their searchable parameters, its goals, and how long it may search."""
    settings = request["settings"]
    return {
        "input_model": {"type": "ONNXModel", "model_path": str(source)},
        "data_configs": [_samples("calibration", request, 1), _samples("choosing", request, _BATCH[settings["judge"]])],
        "evaluators": {"goal": {"metrics": _metrics(settings, classes)}},
        "passes": _passes(settings),
        "engine": {
            "search_strategy": {
                "execution_order": "joint",
                "sampler": "tpe",
                "sampler_config": {"seed": settings.get("seed", 0)},
                "max_time": round(settings["seconds"]),
            },
            "evaluator": "goal",
            "cache_dir": str(folder / "cache"),
            "output_dir": str(folder / "out"),
        },
    }


def _samples(part: str, request: dict[str, Any], batch: int) -> dict[str, Any]:
    params = {"file": request[part], "layout": request.get("layout", {})}
    return {
        "name": part,
        "user_script": str(Path(__file__).resolve()),
        "load_dataset_config": {"type": "samples_of_part", "params": params},
        # Parameters of what follows a run are not passed on.
        "post_process_data_config": {"type": f"decided_by_{request['settings']['judge']}"},
        "dataloader_config": {"type": "default_dataloader", "params": {"batch_size": batch}},
    }


def _passes(settings: dict[str, Any]) -> dict[str, Any]:
    # A group of several is searched over like any other parameter.
    optimizations: list[dict[str, Any]] = [{"type": "OnnxPeepholeOptimizer"}]
    if settings.get("transformer"):
        optimizations.append({"type": "OrtTransformersOptimization", "model_type": "bert", "opt_level": _SEARCHED})
    names = ("quant_mode", "precision", "per_channel", "reduce_range", "quant_preprocess")
    static = ("calibrate_method", "quant_format", "activation_type")
    quantization = {"type": "OnnxQuantization", "data_config": "calibration"}
    return {"optimize": optimizations, "quantize": [{**quantization, **dict.fromkeys([*names, *static], _SEARCHED)}]}


def _metrics(settings: dict[str, Any], classes: int) -> list[dict[str, Any]]:
    """Put what is minimised first. A network that is smaller but slower than the original is not what is asked for."""
    fastest = settings["minimise"] == "latency"
    not_slower = {} if fastest else {"goal": {"type": "max-degradation", "value": 0.0}}
    task = {"task": "binary"} if settings["judge"] == "mask_iou" else {"task": "multiclass", "num_classes": classes}
    # F1 of the original beside itself is 1.
    most = settings["max_drop"]
    drop = most if settings["judge"] == "top1" else 1 - 2 * (1 - most) / (2 - most)
    return [
        {
            "name": "latency",
            "type": "latency",
            "data_config": "calibration",
            "sub_types": [
                {
                    "name": "p50",
                    "priority": 1 if fastest else 3,
                    "metric_config": {"warmup_num": _WARM_UP, "repeat_test_num": _RUNS},
                    **not_slower,
                }
            ],
            "user_config": {"inference_settings": _ONE_THREAD},
        },
        {"name": "size", "type": "size_on_disk", "sub_types": [{"name": "bytes", "priority": 3 if fastest else 1}]},
        {
            "name": "quality",
            "type": "accuracy",
            "data_config": "choosing",
            "sub_types": [
                {
                    "name": _SCORES[settings["judge"]],
                    "priority": 2,
                    "metric_config": task,
                    "goal": {"type": "max-degradation", "value": drop},
                }
            ],
        },
    ]


def _history(footprint: dict[str, Any], model_id: str | None) -> list[dict[str, Any]]:
    """Give what was done, the first pass first."""
    node = footprint.get(model_id) if model_id else None
    if node is None or not node.get("from_pass"):
        return []
    return [*_history(footprint, node.get("parent_model_id")), node]


# Samples and labels


def _label(request: dict[str, Any], path: Path) -> int:
    """Store what is chosen by with labels: those that there are, else what the original decides; give the number of classes."""
    with np.load(request["choosing"], allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    if "label" not in arrays:
        session = onnxruntime.InferenceSession(request["model"], providers=["CPUExecutionProvider"])
        asked = feeds({**request, "calibration": request["choosing"]})
        arrays["label"] = np.concatenate([session.run(None, feed)[0] > TEXT_MASK for feed in asked]).astype(np.int64)
    np.savez(path, allow_pickle=False, **arrays)
    return int(arrays["label"].max()) + 1


class _Samples:
    """Samples as Olive's loaders take them: the inputs of one, and its label."""

    def __init__(self, file: str, layout: dict[str, Any]) -> None:
        every = feeds({"calibration": file, "layout": layout})
        self._feeds = [{name: array[0] for name, array in feed.items()} for feed in every]

    def __len__(self) -> int:
        return len(self._feeds)

    def __getitem__(self, index: int) -> tuple[dict[str, np.ndarray], Any]:
        inputs = dict(self._feeds[index])
        return inputs, inputs.pop("label", 0)


def _register() -> None:
    @Registry.register_dataset()
    def samples_of_part(file: str, layout: dict[str, Any], **_kwargs: Any) -> _Samples:
        return _Samples(file, layout)

    @Registry.register_post_process()
    def decided_by_top1(output: Any, **_kwargs: Any) -> Any:
        return _first(output).argmax(dim=1)

    @Registry.register_post_process()
    def decided_by_mask_iou(output: Any, **_kwargs: Any) -> Any:
        return (_first(output) > TEXT_MASK).int()


def _first(output: Any) -> Any:
    return next(iter(output.values())) if isinstance(output, dict) else output


# Once: Olive loads this file a second time, under its own name.
if __name__ == "olive_search":
    _register()
