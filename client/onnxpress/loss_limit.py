"""`--max-drop`: which limit it is for a network and its data. By the labels' metric, else by what the main output means."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onnxpress.documents import Dataset, Model
from onnxpress.errors import UsageError
from onnxpress.metrics import FIDELITY_OF_KIND, SHARES

# Words in the name of an output that is scores of classes, one row for a sample; the service goes by them too.
_CLASS_WORDS = frozenset({"logits", "logit", "probabilities", "probability", "probs", "prob", "scores"})
KINDS = tuple(FIDELITY_OF_KIND)


@dataclass(frozen=True)
class LossLimit:
    """A gate, and in words what was taken for it and why."""

    gate: dict[str, Any]
    words: str


def parse_outputs(texts: list[str]) -> dict[str, dict[str, Any]]:
    """Give what is declared of outputs by `NAME=KIND` or `NAME=ignore`; raises UsageError."""
    found: dict[str, dict[str, Any]] = {}
    for text in texts:
        name, _, kind = text.rpartition("=")
        if not name or kind not in {*KINDS, "state", "ignore"}:
            raise UsageError(
                f"--output {text!r} is not of the form NAME=KIND; kinds are {', '.join(KINDS)}, state, ignore"
            )
        found[name] = {"ignore": True} if kind == "ignore" else {"kind": kind}
    return found


def loss_limit(drop: float, model: Model, data: Dataset | None, declared: Mapping[str, Mapping[str, Any]]) -> LossLimit:
    """Say what it means that no more than the share `drop` may be lost.

    Args:
        drop: above 0 and below 1.
        model: the network, inspected; one that a job is still to make has no inspection.
        data: what judges.
        declared: by output, what the job says of it; it goes before what the data say.

    Raises:
        UsageError: there is nothing that it could be about, or it is not known what the network's output means.
    """
    percent = f"{100 * drop:g}"
    if data is None:
        raise UsageError(f"--max-drop {percent}% needs data to tell the loss on; give --data, labelled or not")
    inspection = data.inspection or {}
    metric = inspection.get("metric")
    if metric and inspection.get("labelled"):
        if metric not in SHARES:
            raise UsageError(
                f"--max-drop {percent}%: the labels are judged by {metric}, which is no share of samples; say the limit in its"
                f" own unit, such as --gate '{metric} max_drop 0.1'"
            )
        gate = {"metric": metric, "rule": "max_drop", "value": drop}
        return LossLimit(gate, f"{metric} may fall by at most {percent} points, by the labels of the data")
    name, kind, because = _main_output(model, {**data.document.get("outputs", {}), **declared}, percent)
    metric = FIDELITY_OF_KIND[kind]
    gate = {"metric": metric, "rule": "min", "value": 1 - drop}
    return LossLimit(
        gate,
        f"{metric} with the original of at least {100 * (1 - drop):g} %, for the data have no labels and output"
        f" `{name}` is {because}",
    )


def _main_output(model: Model, declared: Mapping[str, Mapping[str, Any]], percent: str) -> tuple[str, str, str]:
    """Give the name, kind and reason of the first output whose kind is known; raises UsageError where none is."""
    outputs = (model.inspection or {}).get("outputs") or ()
    read = [one for one in outputs if not declared.get(one["name"], {}).get("ignore")]
    for one in read:
        kind = str(declared.get(one["name"], {}).get("kind"))
        if kind in FIDELITY_OF_KIND:
            return one["name"], kind, f"declared as {kind}"
    # Beside others, scores may be those of boxes.
    for one in read if len(read) == 1 else ():
        words = {
            word.strip("0123456789") for word in one["name"].lower().replace(".", "_").replace("/", "_").split("_")
        }
        if len(one.get("shape") or ()) == 2 and words & _CLASS_WORDS:
            return one["name"], "classes", "scores of classes by its name"
    named = read[0]["name"] if read else "NAME"
    raise UsageError(
        f"--max-drop {percent}%: the data have no labels, and what the output `{named}` means is not said; add --output"
        f" {named}=classes (or {', '.join(KINDS[1:])}), or name the limit, such as --gate 'top1_agreement min 99%'"
    )
