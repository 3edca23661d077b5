"""Who prunes what, and by how much. A new recipe of ours joins with one line."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import engine
from benchmarks.contest import HERE, Entry, recipe
from benchmarks.peers import environments

_PEERS = HERE / "peers"
SIMPLIFY: Mapping[str, Any] = {"type": "simplify"}
_IMAGE_NETWORKS = frozenset({"residual_cnn", "se_cnn", "vit"})


@dataclass(frozen=True)
class Task:
    """A network of benchmarks.cases, the share that has to go, and the loss that its bar allows."""

    case: str
    ratio: float
    allowed_loss: float

    @property
    def name(self) -> str:
        """What the results are called."""
        return f"{self.case}-{100 * self.ratio:.0f}"

    @property
    def kinds(self) -> list[str]:
        """What goes: heads and hidden neurons of transformers, channels of the others."""
        return ["ffn", "heads"] if self.case in {"vit", "minilm"} else ["channels", "ffn", "heads"]

    @property
    def gates(self) -> Sequence[Mapping[str, Any]]:
        """Ask for size, and let a pass cost what a result that is only shown may cost."""
        size = {"metric": "size_bytes", "rule": "max_ratio", "value": 1.0}
        if self.case in _IMAGE_NETWORKS | {"minilm"}:
            return (size, {"metric": "top1", "rule": "max_drop", "value": 1.0})
        return (size, {"metric": "sqnr_db", "rule": "min", "value": -20.0})


TASKS = (
    Task("residual_cnn", 0.25, 0.015),
    Task("residual_cnn", 0.50, 0.05),
    Task("se_cnn", 0.25, 0.025),
    Task("vit", 0.50, 0.045),
    Task("minilm", 0.30, 0.02),
    Task("ppocr_rec", 0.30, 0.1),
    Task("ppocr_det", 0.30, 0.1),
)

# Setting -> parameters of prune_channels beside the share.
PRUNE_CHANNELS: Mapping[str, Mapping[str, Any]] = {
    "pruned and reconstructed": {},
    "exact widths": {"round_to": 1},
    "by magnitude, reconstructed": {"importance": "magnitude"},
    "only pruned": {"reconstruct": False},
}

ONNXSIM: Mapping[str, Mapping[str, Any]] = {
    "structured": {},
    "structured, finetune": {"finetune": "closed"},
    "structured, block finetune": {"finetune": "blocks"},
    "structured wanda": {"wanda": True},
    "structured wanda, finetune": {"wanda": True, "finetune": "closed"},
}

TORCH_PRUNING: Mapping[str, Mapping[str, Any]] = {
    "magnitude": {"importance": "magnitude"},
    "taylor": {"importance": "taylor"},
}


def ours(task: Task) -> list[Entry]:
    """Give our recipes, as far as the engine has their passes."""
    if not {"simplify", "prune_channels"} <= {description["type"] for description in engine.list_passes()}:
        return []
    common = {"type": "prune_channels", "sparsity": task.ratio, "kinds": task.kinds}
    return [recipe(setting, SIMPLIFY, {**common, **how}, gates=task.gates) for setting, how in PRUNE_CHANNELS.items()]


def peers(task: Task) -> list[Entry]:
    """Give every peer's settings, and where we have the architecture itself the one that is built at that width."""
    made = [
        _peer("onnxsim", setting, "onnxsim_prune", {**how, "ratio": task.ratio}) for setting, how in ONNXSIM.items()
    ]
    if task.case in _IMAGE_NETWORKS:
        facts = {"network": task.case, "ratio": task.ratio}
        made += [
            _peer("torch-pruning", setting, "torch_prune", {**facts, **how}) for setting, how in TORCH_PRUNING.items()
        ]
        made.append(reference(facts))
    return made


def reference(facts: Mapping[str, Any]) -> Entry:
    """Give the untrained architecture, for its speed."""
    return Entry("built at", "that width", _PEERS / "torch_reference.py", facts, peer="torch-pruning", untrained=True)


def _peer(peer: str, setting: str, script: str, values: Mapping[str, Any]) -> Entry:
    return Entry(f"{peer} {environments.version(peer)}", setting, _PEERS / f"{script}.py", values, peer=peer)
