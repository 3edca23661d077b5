"""Operators that ONNX Runtime has in the standard domain beside onnx's own, made known to onnx.

Decoders as onnxruntime-genai writes them hold SimplifiedLayerNormalization there, and what onnxruntime's optimizer makes of an
encoder of an old operator set LayerNormalization; converters of the time of operator set 7 left others. ONNX Runtime has
these under version 1; onnx's checker, shape inference and version converter refuse what they do not know.
"""

from collections.abc import Sequence
from functools import cache

import onnx
from onnx.defs import OpSchema

_FLOATS = ["tensor(float16)", "tensor(float)", "tensor(double)", "tensor(bfloat16)"]
_REAL, _WHOLE, _TEXT = OpSchema.AttrType.FLOAT, OpSchema.AttrType.INT, OpSchema.AttrType.STRING
_REALS, _WHOLES = OpSchema.AttrType.FLOATS, OpSchema.AttrType.INTS
_NORM = {"axis": _WHOLE, "epsilon": _REAL, "stash_type": _WHOLE}

# By name: inputs, of which those in brackets may be left out, outputs likewise, and attributes. The first output is like the
# first input, save of _CUTS.
_OPERATORS: dict[str, tuple[str, str, dict[str, OpSchema.AttrType]]] = {
    "LayerNormalization": ("X Scale [B]", "Y [Mean] [InvStdDev]", _NORM),
    "SimplifiedLayerNormalization": ("X scale", "Y [inv_std_var]", _NORM),
    "MeanVarianceNormalization": ("input", "output", {"across_channels": _WHOLE, "normalize_variance": _WHOLE}),
    "ThresholdedRelu": ("X", "Y", {"alpha": _REAL}),
    "ParametricSoftplus": ("X", "Y", {"alpha": _REAL, "beta": _REAL}),
    "ScaledTanh": ("input", "output", {"alpha": _REAL, "beta": _REAL}),
    "Affine": ("X", "Y", {"alpha": _REAL, "beta": _REAL}),
    "Scale": ("input", "output", {"scale": _REAL}),
    "ImageScaler": ("input", "output", {"bias": _REALS, "scale": _REAL}),
    "Crop": ("input", "output", {"border": _WHOLES, "scale": _WHOLES}),
    "DynamicSlice": ("data starts ends [axes]", "output", {}),
}
_CUTS = frozenset({"Crop", "DynamicSlice"})
NAMES = frozenset(_OPERATORS)


@cache
def register() -> None:
    """Tell this process's onnx of them; once is enough."""
    for name, (inputs, outputs, attributes) in _OPERATORS.items():
        if onnx.defs.has(name, 1, ""):
            continue
        schema = OpSchema(
            name,
            "",
            1,
            inputs=_parameters(inputs),
            outputs=_parameters(outputs),
            type_constraints=[("T", _FLOATS, ""), ("I", ["tensor(int32)", "tensor(int64)"], "")],
            attributes=[OpSchema.Attribute(each, kind, required=False) for each, kind in attributes.items()],
        )
        if name not in _CUTS:
            schema.set_type_and_shape_inference_function(_as_first)
        onnx.defs.register_schema(schema)


def _parameters(text: str) -> Sequence[OpSchema.FormalParameter]:
    option = OpSchema.FormalParameterOption
    return [
        OpSchema.FormalParameter(
            each.strip("[]"),
            "I" if each.strip("[]") in {"starts", "ends", "axes"} else "T",
            param_option=option.Optional if each.startswith("[") else option.Single,
        )
        for each in text.split()
    ]


def _as_first(context: onnx.shape_inference.InferenceContext) -> None:
    kind = context.get_input_type(0)
    if kind is not None:
        context.set_output_type(0, kind)
