"""ONNX's own backend tests, run through the twin: the data that the onnx package carries and computes."""

import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import onnx
import onnx.backend.test
import onnx_ir as ir
import torch
from onnx import numpy_helper
from onnx.backend.test.case import node as onnx_nodes

from engine.errors import EngineError
from engine.runtime import sessions
from engine.target import Target
from engine.train.quantized_graph import DOMAIN
from engine.train.twin.module import Twin
from engine.train.twin.table import OPERATORS
from engine.train.twin.tensors import holds

_STORED = Path(onnx.backend.test.__file__).parent / "data"
# By the beginning of their names: cases whose stated results the twin does not give, and why.
SKIPPED = {
    "test_training_dropout": "drops values at random while it is used",
    "test_scan_sum": "is Scan of operator set 8, which scanned batches",
    "test_maxunpool_export_with_output_shape": "onnxruntime counts places in the given shape, and the twin does as it does",
    "test_resize_downsample_scales_linear_align_corners": "onnxruntime places corners by the sizes, and the twin does as it does",
    "test_resize_downsample_scales_cubic_align_corners": "onnxruntime places corners by the sizes, and the twin does as it does",
}
# By their names: cases where onnxruntime does not give the stated results, and the twin does.
NOT_AS_ONNXRUNTIME = {
    "test_attention_4d_with_past_and_present_qk_matmul_bias_3d_mask_causal": "scores that are given out",
    "test_attention_4d_with_past_and_present_qk_matmul_bias_4d_mask_causal": "scores that are given out",
}
# Rounding has no slope, and lets gradients straight through instead.
STRAIGHT_THROUGH = {"DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "QuantizeLinear"}
_CONTROL_FLOW = {("", "If"), ("", "Loop"), ("", "Scan")}
# Beyond it 64 bits say nothing of a difference: data that somebody never filled.
_LARGEST = 1e6


@dataclass
class Case:
    """A network of a few nodes, its inputs and what it must give, both by name."""

    name: str
    proto: onnx.ModelProto
    feeds: dict[str, np.ndarray]
    wanted: dict[str, np.ndarray]
    operators: frozenset[tuple[str, str]] = field(init=False)

    def __post_init__(self):
        self.operators = frozenset(_operators(self.proto.graph))

    @cached_property
    def reason(self) -> str | None:
        """Why it is left out, None where it is run."""
        return reason_against(self)

    @property
    def kinds(self):
        """Element types of everything that goes in and comes out; None where it is no tensor."""
        for port in (*self.proto.graph.input, *self.proto.graph.output):
            kind = port.type.tensor_type.elem_type if port.type.HasField("tensor_type") else 0
            yield ir.DataType(kind) if kind else None


@cache
def cases() -> tuple[Case, ...]:
    return (*_computed(), *_stored())


def _computed() -> Iterator[Case]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the arithmetic that makes the data
        found = onnx_nodes.collect_testcases()
    for case in found:
        ((inputs, outputs),) = case.data_sets
        graph = case.model.graph
        yield Case(case.name, case.model, _named(graph.input, inputs), _named(graph.output, outputs))


def _stored() -> Iterator[Case]:
    """Networks of operator set 6 that an exporter wrote: old forms of operators, with weights."""
    for folder in sorted([*(_STORED / "pytorch-operator").iterdir(), *(_STORED / "pytorch-converted").iterdir()]):
        proto = onnx.load(folder / "model.onnx")
        weights = {each.name for each in proto.graph.initializer}
        ports = [port for port in proto.graph.input if port.name not in weights]
        for data in sorted(folder.glob("test_data_set_*")):
            inputs, outputs = (
                [onnx.load_tensor(data / f"{kind}_{place}.pb") for place in range(len(list(data.glob(f"{kind}_*.pb"))))]
                for kind in ("input", "output")
            )
            yield Case(
                f"{folder.name}_{data.name[-1]}", proto, _named(ports, inputs), _named(proto.graph.output, outputs)
            )


def _named(ports, values):
    return {
        port.name: numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value
        for port, value in zip(ports, values, strict=False)
    }


def _operators(graph):
    for node in graph.node:
        yield ("" if node.domain == "ai.onnx" else node.domain), node.op_type
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _operators(attribute.g)


def twin_of(case: Case, dtype=torch.float32, device="cpu") -> Twin:
    return Twin.of(ir.from_proto(case.proto), dtype=dtype, device=device)


def outside(case: Case) -> str | None:
    """Say why a case is not for the twin: it has no type for an input or output, or not all of its operators."""
    missing = sorted(name for domain, name in case.operators - OPERATORS.keys() - _CONTROL_FLOW)
    if missing:
        return f"{', '.join(missing)}: not in the table"
    for kind in case.kinds:
        if kind is None:
            return "sequences and optional values"
        if not holds(kind):
            return f"elements of type {kind.name}"
    return None


def reason_against(case: Case) -> str | None:
    """Say why a case is left out, None where it is run."""
    reason = outside(case)
    if reason is None:
        reason = next((why for start, why in SKIPPED.items() if case.name.startswith(start)), None)
    if reason is None:
        refused = twin_of(case).unsupported()
        reason = refused[0].reason if refused else None
    return reason


def difference(found: torch.Tensor, wanted: np.ndarray, case: Case) -> str | None:
    """Say how a result differs from what is wanted, None where it does not."""
    array = found.detach().cpu().numpy()
    if array.shape != wanted.shape:
        return f"shape {array.shape} instead of {wanted.shape}"
    half = any(kind in {ir.DataType.FLOAT16, ir.DataType.BFLOAT16} for kind in case.kinds)
    coarse = any(kind == ir.DataType.BFLOAT16 for kind in case.kinds)
    if wanted.dtype.kind in "fV" or wanted.dtype.name == "bfloat16":
        rtol, atol = (2e-2, 1e-2) if coarse else (5e-3, 1e-3) if half else (1e-3, 1e-5)
        close = np.allclose(array.astype(np.float64), wanted.astype(np.float64), rtol=rtol, atol=atol, equal_nan=True)
        return None if close else f"{array.reshape(-1)[:6]} instead of {wanted.reshape(-1)[:6]}"
    same = np.array_equal(array, wanted.astype(array.dtype))
    return None if same else f"{array.reshape(-1)[:6]} instead of {wanted.reshape(-1)[:6]}"


def failure(case: Case, device="cpu") -> str | None:
    """Run a case through the twin; say what is wrong with its results, None where nothing is."""
    twin = twin_of(case, device=device)
    with torch.no_grad():
        found = twin.run(twin.feed(case.feeds), list(case.wanted))
    for name, wanted in case.wanted.items():
        problem = difference(found[name], np.asarray(wanted), case)
        if problem:
            return f"{name}: {problem}"
    return None


def by_onnxruntime(case: Case) -> dict[str, np.ndarray] | None:
    """Give what onnxruntime makes of a case, None where it has no kernel for it."""
    try:
        session = sessions.session(case.proto.SerializeToString(), Target(), optimise=False)
        return session.run(case.feeds)
    except EngineError:
        return None


def _read_as_numbers(case: Case) -> set[str]:
    return {
        name
        for node in case.proto.graph.node
        for place, name in enumerate(node.input)
        if (known := OPERATORS.get((node.domain, node.op_type))) is not None and place in known.host
    }


def has_slope(case: Case) -> bool:
    """Say whether gradients of a case tell something that others do not: functions are written in operators that have cases."""
    if {name for _, name in case.operators} & STRAIGHT_THROUGH:
        return False
    return "_expanded" not in case.name or "masked" in case.name or "nan_robustness" in case.name


def slope_failure(case: Case) -> str | None:
    """Compare gradients with central differences in 64 bits, along one direction for all inputs of floats at once."""
    twin = twin_of(case, torch.float64)
    random = torch.Generator().manual_seed(0)
    feeds = {name: value.clone() for name, value in twin.feed(case.feeds).items()}
    moved = {
        name: value
        for name, value in feeds.items()
        if value.dtype == torch.float64 and name not in _read_as_numbers(case) and value.numel()
    }
    if not moved or any(value.dtype == torch.float64 and (value.abs() > _LARGEST).any() for value in feeds.values()):
        return None
    steps = {name: torch.randn(value.shape, generator=random, dtype=torch.float64) for name, value in moved.items()}
    for name, value in moved.items():
        # Data often lie on the corners of functions.
        moved[name] = (value + 1e-3 * torch.randn(value.shape, generator=random, dtype=torch.float64)).requires_grad_()
    names = [name for name in case.wanted if name]
    weights: dict[str, torch.Tensor] = {}
    undefined = set()

    def total(values):
        found = twin.run({**feeds, **values}, names)
        parts = [torch.zeros((), dtype=torch.float64)]
        for name, result in found.items():
            if result.is_floating_point():
                if result.isnan().any():
                    undefined.add(name)
                weights.setdefault(name, torch.randn(result.shape, generator=random, dtype=torch.float64))
                parts.append((result * weights[name])[torch.isfinite(result)].sum())
        return torch.stack(parts).sum()

    result = total(moved)
    gradients = torch.autograd.grad(result, list(moved.values()), allow_unused=True) if result.requires_grad else []
    analytic = sum(
        float((gradient * step).sum())
        for gradient, step in zip(gradients, steps.values(), strict=False)
        if gradient is not None
    )
    width = 1e-6
    with torch.no_grad():
        ends = [
            float(total({name: value + sign * width * steps[name] for name, value in moved.items()}))
            for sign in (1, -1)
        ]
    if not np.isfinite([*ends, analytic]).all() and undefined:
        return None  # a root of something negative
    numeric = (ends[0] - ends[1]) / (2 * width)
    close = abs(analytic - numeric) <= 1e-3 * max(1.0, abs(analytic), abs(numeric))
    return None if close else f"gradient {analytic:.6g}, differences {numeric:.6g}"


def standard_operators() -> set[tuple[str, str]]:
    """Give the operators of the table that networks may have; the others stand in for some of them while training."""
    return {key for key in OPERATORS if key[0] != DOMAIN}


def listing() -> str:
    """Write which cases pass, by operator, and why others are left out."""
    passed: dict[str, list[str]] = defaultdict(list)
    left_out: dict[str, list[str]] = defaultdict(list)
    for case in cases():
        if case.reason is not None:
            left_out[case.reason].append(case.name)
        else:
            alone = len(case.operators) == 1 and "_expanded" not in case.name
            passed[next(iter(case.operators))[1] if alone else _SEVERAL].append(case.name)
    passing, out = (sum(map(len, names.values())) for names in (passed, left_out))
    table = sorted({_shown(key) for key in standard_operators()} | {name for _, name in _CONTROL_FLOW})
    lines = [
        "# Operators that can be trained through",
        "",
        "<!-- Made by `python -m tests.engine.train.backend_cases`; a test holds it. -->",
        "",
        f"Networks of these {len(table)} operators can be trained: {', '.join(table)}.",
        "",
        f"{_HELD} Of onnx {onnx.__version__} {passing} pass, and {out} are left out for the reasons below.",
        "",
        "## Tests that pass",
        "",
        "| operator | tests of ONNX |",
        "|---|---|",
        *(f"| {name} | {_names(passed[name])} |" for name in sorted(passed, key=lambda name: (name == _SEVERAL, name))),
        "",
        "## Tests that are left out",
        "",
        "| reason | tests of ONNX |",
        "|---|---|",
        *(f"| {reason} | {_names(left_out[reason])} |" for reason in sorted(left_out)),
        "",
    ]
    return "\n".join(lines)


_HELD = (
    "Where a network has others, the parts around them are trained between the tensors that go in and come out. Each operator is"
    " held against ONNX Runtime's kernels and against finite differences, and against the stated results of ONNX's backend tests."
)
_SEVERAL = "several operators, and operators written as functions of others"


def _shown(key: tuple[str, str]) -> str:
    domain, name = key
    return f"{domain}.{name}" if domain else name


def _names(names: list[str]) -> str:
    return f"{len(names)}: " + ", ".join(sorted(name.removeprefix("test_") for name in names))


if __name__ == "__main__":
    Path(__file__).parents[3].joinpath("docs", "training_operators.md").write_text(listing())
