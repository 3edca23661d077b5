"""Who quantizes: the settings of each peer, and our recipes. A new pass of ours joins with one line."""

from collections.abc import Mapping
from typing import Any

import engine
from benchmarks.cases import Case
from benchmarks.contest import HERE, Entry, recipe
from benchmarks.peers import environments

_PEERS = HERE / "peers"

SIMPLIFY: Mapping[str, Any] = {"type": "simplify"}
FUSE: Mapping[str, Any] = {"type": "fuse"}

# Setting -> passes. Those that the engine does not know yet are left out, see `ours`.
RECIPES: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "static": (SIMPLIFY, {"type": "quantize_static"}),
    "static, all layers": (SIMPLIFY, {"type": "quantize_static", "measure_layers": False}),
    "dynamic": (SIMPLIFY, {"type": "quantize_dynamic"}),
    "weights int8": (SIMPLIFY, {"type": "quantize_weights", "bits": 8}),
    "weights int4": (SIMPLIFY, {"type": "quantize_weights", "bits": 4}),
    "float16": (SIMPLIFY, {"type": "float16"}),
    "fused": (SIMPLIFY, FUSE),
    "mixed": (SIMPLIFY, FUSE, {"type": "mixed_precision"}),
}

ORT_STATIC: Mapping[str, Mapping[str, Any]] = {
    "static s8s8": {"activations": "int8", "weights": "int8"},
    "static s8s8 per channel": {"activations": "int8", "weights": "int8", "per_channel": True},
    "static u8s8": {"activations": "uint8", "weights": "int8"},
    "static u8s8 7-bit": {"activations": "uint8", "weights": "int8", "reduce_range": True},
    "static u8s8 7-bit per channel": {
        "activations": "uint8", "weights": "int8", "reduce_range": True, "per_channel": True,
    },
    "static u8u8": {"activations": "uint8", "weights": "uint8"},
}  # fmt: skip

ORT_TRANSFORMER: Mapping[str, Mapping[str, Any]] = {
    "static u8s8 7-bit per channel, MatMul only": {
        "activations": "uint8", "weights": "int8", "reduce_range": True, "per_channel": True, "operators": ["MatMul", "Gemm"],
    },
}  # fmt: skip

ORT_DYNAMIC: Mapping[str, Mapping[str, Any]] = {
    "dynamic": {},
    "dynamic 7-bit per channel": {"reduce_range": True, "per_channel": True},
}

NNCF: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "mixed preset": {"preset": "mixed"},
    "7-bit": {"overflow_fix": True},
}

ONNXSIM: Mapping[str, Mapping[str, Any]] = {
    "static": {"kind": "static"},
    "static, full graph": {"kind": "static", "full_graph": True},
    "dynamic": {"kind": "dynamic"},
}


def ours(case: Case) -> list[Entry]:
    """Give our recipes, as far as the engine has their passes, with the gates of the network's case."""
    known = {description["type"] for description in engine.list_passes()}
    return [
        recipe(setting, *passes, gates=case.gates)
        for setting, passes in RECIPES.items()
        if all(step["type"] in known for step in passes)
    ]


def peers(case: Case) -> list[Entry]:
    """Give every peer's settings for a network."""
    static = {**ORT_STATIC, **(ORT_TRANSFORMER if case.transformer else {})}
    made = [_ort(setting, {"kind": "static", **values}) for setting, values in static.items()]
    made += [_ort(setting, {"kind": "dynamic", **values}) for setting, values in ORT_DYNAMIC.items()]
    made += [_peer("nncf", setting, {**values, "transformer": case.transformer}) for setting, values in NNCF.items()]
    made += [_peer("onnxsim", setting, values) for setting, values in ONNXSIM.items()]
    return made


def _ort(setting: str, values: Mapping[str, Any]) -> Entry:
    return _peer("onnxruntime", setting, values)


def _peer(peer: str, setting: str, values: Mapping[str, Any]) -> Entry:
    maker = f"{peer} {environments.version(peer)}"
    return Entry(maker, setting, _PEERS / f"{peer}_quantize.py", values, peer=peer)
