"""Writes a decoder as ONNX from its weights: as onnxruntime-genai's builder does, or in standard operators of opset 23 or 24.

Both keep a cache of keys and values: inputs `past_key_values.N.key` and `.value` [batch, kv_heads, past, head_size], outputs
`present.N.key` and `.value` [batch, kv_heads, past + tokens, head_size]. `logits` are [batch, tokens, vocabulary].
"""

from abc import ABC, abstractmethod
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.networks.decoder_shape import DecoderShape, Weights

Form = Literal["genai", "opset23", "opset24"]
_IR_VERSION = {"genai": 10, "opset23": 11, "opset24": 12}
_GENAI_OPSET = 21


def decoder(weights: Weights, shape: DecoderShape, form: Form = "genai", *, packed: bool = True) -> onnx.ModelProto:
    """The network with these weights in one of the two forms.

    `genai` takes `input_ids` and `attention_mask` and lets GroupQueryAttention turn and mask; `packed` multiplies once for
    queries, keys and values, as the builder does by default. The others take `position_ids` too.
    """
    writer = _Genai(shape, packed=packed) if form == "genai" else _Standard(shape)
    return writer.write(weights, form)


class _Writer(ABC):
    def __init__(self, shape: DecoderShape) -> None:
        self.shape = shape
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def write(self, weights: Weights, form: Form) -> onnx.ModelProto:
        shape = self.shape
        self.prepare()
        hidden = self.node("Gather", [self.constant("model.embed_tokens.weight", weights["embedding"]), "input_ids"])
        skip = ""
        for layer in range(shape.layers):
            scoped = {name.removeprefix(f"layers.{layer}."): array for name, array in weights.items()}
            stem = f"model.layers.{layer}"
            normal, hidden = self.norm(hidden, skip, f"{stem}.input_layernorm", scoped["attention_norm"])
            mixed = self.attention(normal, layer, scoped)
            skip = self.linear(mixed, f"{stem}.attn.o_proj", scoped["output"])
            normal, hidden = self.norm(hidden, skip, f"{stem}.post_attention_layernorm", scoped["mlp_norm"])
            skip = self.gated(normal, f"{stem}.mlp", scoped)
        normal, _ = self.norm(hidden, skip, f"model.layers.{shape.layers}.final_norm_layernorm", weights["norm"])
        self.linear(normal, "lm_head", weights["head"], output="logits")
        graph = helper.make_graph(self.nodes, "decoder", self.inputs(), self.outputs(), self.initializers)
        return helper.make_model(
            graph,
            opset_imports=self.opsets(form),
            ir_version=_IR_VERSION[form],
            producer_name="onnxpress-benchmarks",
        )

    # What the forms differ in

    @abstractmethod
    def prepare(self) -> None:
        """Add what all layers read."""

    @abstractmethod
    def attention(self, x: str, layer: int, weights: Weights) -> str:
        """Add a layer's attention, up to what its last product multiplies."""

    @abstractmethod
    def norm(self, x: str, skip: str, name: str, weight: np.ndarray) -> tuple[str, str]:
        """Add the normalised sum of `x` and `skip`, and the sum."""

    @abstractmethod
    def opsets(self, form: Form) -> list[onnx.OperatorSetIdProto]:
        """Give the operator sets that the nodes are of."""

    @abstractmethod
    def inputs(self) -> list[onnx.ValueInfoProto]:
        """Give the network's inputs."""

    # What they share

    def gated(self, x: str, stem: str, weights: Weights) -> str:
        gate = self.linear(x, f"{stem}.gate_proj", weights["gate"])
        up = self.linear(x, f"{stem}.up_proj", weights["up"])
        swish = self.node("Mul", [gate, self.node("Sigmoid", [gate])])
        return self.linear(self.node("Mul", [swish, up]), f"{stem}.down_proj", weights["down"])

    def linear(self, x: str, name: str, weight: np.ndarray, output: str | None = None) -> str:
        matrix = self.constant(f"{name}.MatMul.weight", np.ascontiguousarray(weight.T))
        return self.node("MatMul", [x, matrix], name=f"/{name.replace('.', '/')}/MatMul", outputs=[output])

    def node(
        self,
        op_type: str,
        inputs: list[str],
        *,
        name: str | None = None,
        outputs: list[str | None] | None = None,
        domain: str = "",
        **attributes: float | list[int],
    ) -> str:
        name = name or f"/model/{op_type}_{len(self.nodes)}"
        given = outputs or [None]
        made = [f"{name}/output_{number}" if each is None else each for number, each in enumerate(given)]
        self.nodes.append(helper.make_node(op_type, inputs, made, name=name, domain=domain, **attributes))
        return made[0]

    def constant(self, name: str, value: np.ndarray) -> str:
        array = np.asarray(value)
        if array.dtype.kind == "f":
            array = array.astype(np.float32)
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def cache(self, stem: str, length: str) -> list[onnx.ValueInfoProto]:
        sizes = ["batch_size", self.shape.kv_heads, length, self.shape.head_size]
        return [
            helper.make_tensor_value_info(f"{stem}.{layer}.{kind}", TensorProto.FLOAT, sizes)
            for layer in range(self.shape.layers)
            for kind in ("key", "value")
        ]

    def outputs(self) -> list[onnx.ValueInfoProto]:
        logits = ["batch_size", "sequence_length", self.shape.vocabulary]
        made = helper.make_tensor_value_info("logits", TensorProto.FLOAT, logits)
        return [made, *self.cache("present", "total_sequence_length")]

    @staticmethod
    def whole_numbers(name: str, length: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.INT64, ["batch_size", length])


class _Genai(_Writer):
    """SimplifiedLayerNormalization (in the standard domain), SkipSimplifiedLayerNormalization and GroupQueryAttention."""

    def __init__(self, shape: DecoderShape, *, packed: bool) -> None:
        super().__init__(shape)
        self.packed = packed

    def prepare(self) -> None:
        cosines, sines = self.shape.angles()
        self.constant("cos_cache", cosines)
        self.constant("sin_cache", sines)
        one = self.constant("/model/constants/one", np.array([1], np.int64))
        scope = "/model/attn_mask_reformat/attn_mask_subgraph"
        seen = self.node("ReduceSum", ["attention_mask", one], name=f"{scope}/ReduceSum", keepdims=0)
        last = self.node("Sub", [seen, one], name=f"{scope}/Sub")
        self.last = self.node("Cast", [last], name=f"{scope}/Sub/Cast", to=TensorProto.INT32)
        sizes = self.node("Shape", ["attention_mask"], name=f"{scope}/Shape")
        axis = self.constant("/model/constants/axis", np.array(1, np.int64))
        length = self.node("Gather", [sizes, axis], name=f"{scope}/Gather", axis=0)
        self.total = self.node("Cast", [length], name=f"{scope}/Gather/Cast", to=TensorProto.INT32)

    def norm(self, x: str, skip: str, name: str, weight: np.ndarray) -> tuple[str, str]:
        scale, path = self.constant(f"{name}.weight", weight), f"/{name.replace('.', '/')}"
        if not skip:
            made = self.node(
                "SimplifiedLayerNormalization",
                [x, scale],
                name=f"{path}/LayerNorm",
                axis=-1,
                epsilon=self.shape.epsilon,
                stash_type=1,
            )
            return made, x
        total = f"{path}/output_3"
        made = self.node(
            "SkipSimplifiedLayerNormalization",
            [x, skip, scale],
            name=f"{path}/SkipLayerNorm",
            outputs=[None, "", "", total],
            domain="com.microsoft",
            epsilon=self.shape.epsilon,
        )
        return made, total

    def attention(self, x: str, layer: int, weights: Weights) -> str:
        stem, parts = f"model.layers.{layer}.attn", ("query", "key", "value")
        if self.packed:
            matrix = np.concatenate([weights[part] for part in parts])
            projected = [self.linear(x, f"{stem}.qkv_proj", matrix), "", ""]
        else:
            projected = [self.linear(x, f"{stem}.{part[0]}_proj", weights[part]) for part in parts]
        past = [f"past_key_values.{layer}.{kind}" for kind in ("key", "value")]
        return self.node(
            "GroupQueryAttention",
            [*projected, *past, self.last, self.total, "cos_cache", "sin_cache"],
            name=f"/{stem.replace('.', '/')}/GroupQueryAttention",
            outputs=[None, f"present.{layer}.key", f"present.{layer}.value"],
            domain="com.microsoft",
            num_heads=self.shape.heads,
            kv_num_heads=self.shape.kv_heads,
            scale=float(self.shape.head_size**-0.5),
            do_rotary=1,
            rotary_interleaved=0,
            local_window_size=-1,
        )

    def opsets(self, form: Form) -> list[onnx.OperatorSetIdProto]:
        del form
        return [helper.make_opsetid("", _GENAI_OPSET), helper.make_opsetid("com.microsoft", 1)]

    def inputs(self) -> list[onnx.ValueInfoProto]:
        return [
            self.whole_numbers("input_ids", "sequence_length"),
            self.whole_numbers("attention_mask", "total_sequence_length"),
            *self.cache("past_key_values", "past_sequence_length"),
        ]


class _Standard(_Writer):
    """RMSNormalization, RotaryEmbedding and Attention of the standard domain."""

    def prepare(self) -> None:
        cosines, sines = self.shape.angles()
        self.constant("cos_cache", cosines)
        self.constant("sin_cache", sines)
        # A query sees the keys that are not after it, by their positions: those of what is in the mask count up.
        axis = self.constant("axis", np.array(1, np.int64))
        count = self.node("CumSum", ["attention_mask", axis])
        position = self.node("Sub", [count, self.constant("one", np.array(1, np.int64))])
        keys = self.node("Unsqueeze", [position, self.constant("key_axes", np.array([1, 2], np.int64))])
        queries = self.node("Unsqueeze", ["position_ids", self.constant("query_axes", np.array([1, 3], np.int64))])
        before = self.node("LessOrEqual", [keys, queries])
        filled = self.node("Cast", ["attention_mask"], to=TensorProto.BOOL)
        known = self.node("Unsqueeze", [filled, "key_axes"])
        self.mask = self.node("And", [before, known])

    def norm(self, x: str, skip: str, name: str, weight: np.ndarray) -> tuple[str, str]:
        path = f"/{name.replace('.', '/')}"
        total = self.node("Add", [x, skip], name=f"{path}/Add") if skip else x
        scale = self.constant(f"{name}.weight", weight)
        return self.node(
            "RMSNormalization", [total, scale], name=f"{path}/RMSNorm", axis=-1, epsilon=self.shape.epsilon
        ), total

    def attention(self, x: str, layer: int, weights: Weights) -> str:
        stem = f"model.layers.{layer}.attn"
        query, key, value = (
            self.linear(x, f"{stem}.{part[0]}_proj", weights[part]) for part in ("query", "key", "value")
        )
        heads = {"query": self.shape.heads, "key": self.shape.kv_heads}
        query, key = (
            self.node(
                "RotaryEmbedding",
                [projected, "cos_cache", "sin_cache", "position_ids"],
                name=f"/{stem.replace('.', '/')}/{part[0]}_rotary/RotaryEmbedding",
                num_heads=heads[part],
                interleaved=0,
            )
            for part, projected in (("query", query), ("key", key))
        )
        past = [f"past_key_values.{layer}.{kind}" for kind in ("key", "value")]
        return self.node(
            "Attention",
            [query, key, value, self.mask, *past],
            name=f"/{stem.replace('.', '/')}/Attention",
            outputs=[None, f"present.{layer}.key", f"present.{layer}.value"],
            q_num_heads=self.shape.heads,
            kv_num_heads=self.shape.kv_heads,
            scale=float(self.shape.head_size**-0.5),
        )

    def opsets(self, form: Form) -> list[onnx.OperatorSetIdProto]:
        return [helper.make_opsetid("", int(form.removeprefix("opset")))]

    def inputs(self) -> list[onnx.ValueInfoProto]:
        return [
            self.whole_numbers("input_ids", "sequence_length"),
            self.whole_numbers("attention_mask", "total_sequence_length"),
            self.whole_numbers("position_ids", "sequence_length"),
            *self.cache("past_key_values", "past_sequence_length"),
        ]
