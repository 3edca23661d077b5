"""What exported files are called, and what Triton is told: by what the network is, without any service."""

import hashlib
from datetime import UTC, datetime

import pytest

import engine
from models import ArtifactFile, Model
from services import export
from services.errors import InvalidError
from services.provenance import Provenance

NETWORK = {
    "inputs": [{"name": "x", "dtype": "float32", "shape": ["n", 3, None]}],
    "outputs": [{"name": "y", "dtype": "int64", "shape": ["n"]}],
    "opset": {"": 17},
    "ir_version": 9,
    "producer": "test",
    "parameters": 10,
    "size_bytes": 100,
    "nodes": 2,
    "ops": {"Gemm": 1},
    "quantized": "none",
    "float_type": "float32",
    "external_data": False,
}


def provenance(name="net", **facts):
    inspection = engine.Inspection.model_validate({**NETWORK, **facts})
    files = [
        ArtifactFile(path=path, sha256=hashlib.sha256(path.encode()).hexdigest(), size=len(path))
        for path in ("model.onnx", "weights.data")
    ]
    model = Model(id="mdl_1", name=name, created_at=datetime(2026, 1, 1, tzinfo=UTC))
    return Provenance(model, inspection, files, [], None, None, None)


@pytest.mark.parametrize(
    ("facts", "file"),
    [
        ({}, "model.onnx"),
        ({"float_type": "float16"}, "model_fp16.onnx"),
        ({"float_type": "bfloat16"}, "model_bf16.onnx"),
        ({"quantized": "fully"}, "model_int8.onnx"),
        ({"quantized": "partly", "ops": {"MatMulNBits": 1}}, "model_q4.onnx"),
        ({"quantized": "partly", "ops": {"MatMulNBits": 1}, "float_type": "float16"}, "model_q4f16.onnx"),
    ],
)
def test_hubs_names_tell_the_precision(facts, file):
    assert export.variant_file(provenance(**facts)) == file


def test_the_card_of_what_is_signed_says_how_to_verify_it():
    card = export.model_card(provenance(), signed=True).decode()
    assert "as it was uploaded" in card
    assert "model_signing verify key . --signature model.sig --public_key signing-key.pub" in card
    assert "model_signing" not in export.model_card(provenance()).decode()


def test_external_data_keep_their_names_and_a_float_result_makes_room_for_the_original():
    paths = [member.path for member in export.hub_folder(provenance(), None, provenance(quantized="fully"))]
    assert paths == [
        "README.md",
        "bom.cdx.json",
        "onnx/model_optimized.onnx",
        "onnx/weights.data",
        "original/model.onnx",
        "original/weights.data",
    ]


def test_triton_is_told_the_batch_where_there_is_one():
    (config,) = [
        each for each in export.triton_repository(provenance("My Net.onnx"), None, max_batch=4) if each.content
    ]
    assert config.path == "my-net/config.pbtxt"
    lines = config.content.decode().splitlines()
    assert '  { name: "x" data_type: TYPE_FP32 dims: [ 3, -1 ] }' in lines
    assert '  { name: "y" data_type: TYPE_INT64 dims: [ 1 ] reshape: { shape: [ ] } }' in lines
    assert "dynamic_batching { }" in lines


@pytest.mark.parametrize(
    ("facts", "batch", "said"),
    [
        ({"inputs": [{"name": "x", "dtype": "float32", "shape": [1, 3]}]}, 4, "no open first axis"),
        ({"inputs": [{"name": "x", "dtype": "float32", "shape": None}]}, 0, "how many axes"),
        ({"inputs": [{"name": "x", "dtype": "int4", "shape": [3]}]}, 0, "the type int4"),
    ],
)
def test_what_triton_does_not_serve_is_refused_with_its_name(facts, batch, said):
    with pytest.raises(InvalidError) as caught:
        export.triton_repository(provenance(**facts), None, max_batch=batch)
    (error,) = caught.value.errors
    assert "`x`" in error.message
    assert said in error.message
