"""What passes say of their work comes back from a stored report as the type that it was."""

from typing import get_args

import pytest
from pydantic import ValidationError

from engine.passes import AnyPass
from engine.report.detail_parts import CountChange, LeftAlone
from engine.report.details import AnyDetails
from engine.report.graph_details import FuseDetails
from engine.report.quantization_details import (
    DynamicDetails,
    DynamicLstm,
    DynamicProduct,
    Float16Details,
    FrontCandidate,
    IntegerTable,
    MixedDetails,
    NotMade,
    QuantizedLayer,
    SameAs,
    StaticDetails,
)
from engine.report.quantization_markdown import quantization_lines
from engine.report.values import Change, Refusal, StepReport

LAYER = QuantizedLayer(
    node="conv", op="Conv", activation="uint8", weight="int8", reason="fits", accumulator_load=0.5,
    limited_channels=0, channels=4, weight_sqnr_db=40.0, activation_scale=0.1, output_sqnr_db=33.25,
)  # fmt: skip
STATIC = StaticDetails(
    activations="uint8", weights="int8", why="it fits", per_channel=True, processor="vnni", integer_operators=1,
    clamps_absorbed=0, channels_with_wider_scale=0, layers=(LAYER,), tables=(IntegerTable(node="words", weight_sqnr_db=41),),
    in_float=(LeftAlone(node="head", reason="it is excluded"),), races=(), candidates=(), conversions_left=None,
)  # fmt: skip
DYNAMIC = DynamicDetails(
    weights="int8", why="it fits", per_channel=True, processor="vnni",
    layers=(DynamicProduct(node="a", op="MatMul", channels=3), DynamicLstm(node="b", input=None, recurrent=None)),
    in_float=(),
)  # fmt: skip
HALF = Float16Details(
    dtype="float16", compute="half", overflow_checked=True, casts=2, weight_bytes_before=8, weight_bytes_after=4,
    in_float32=(LeftAlone(node="softmax", reason="it overflows"),),
)  # fmt: skip
FRONT = FrontCandidate(
    name="float32", what="all in float32", size_bytes=1000, relative_time=1.0, fidelity={"sqnr_db": 200.0}, quality={},
    chosen=False, on_front=True, why_not=None,
)  # fmt: skip
MIXED = MixedDetails(
    front=(FRONT, FRONT.model_copy(update={"name": "dynamic", "chosen": True})), sensitivity={"a": 0.1}, processor="vnni",
    not_made=(NotMade(what="static", reason="no layers"),), duplicates=(SameAs(name="regions", same_as="dynamic"),),
    steps=(DYNAMIC, HALF),
)  # fmt: skip
ALL = (STATIC, DYNAMIC, HALF, MIXED, FuseDetails(nodes=CountChange(before=3, after=1), fused={"GELU": 1}))


@pytest.mark.parametrize("details", ALL, ids=lambda details: details.of)
def test_details_survive_storage_as_what_they_are(details):
    for told in (Change(summary="", details=details), Refusal(code="no_gain", reason="", details=details)):
        again = type(told).model_validate_json(told.model_dump_json())
        assert again == told
        assert type(again.details) is type(details)


@pytest.mark.parametrize("written", [{}, {"layers": [{"node": "conv", "zeros": 0.5}]}, {"of": "a pass of tomorrow"}])
def test_what_another_version_wrote_is_read_as_it_is(written):
    assert Change.model_validate({"summary": "", "details": written}).details == written


def test_details_cannot_be_changed_afterwards():
    with pytest.raises(ValidationError, match="frozen"):
        LAYER.node = "other"


def _lines(details, *, applied=True):
    change = Change(summary="", details=details) if applied else None
    refusal = None if applied else Refusal(code="no_gain", reason="", details=details)
    status = "applied" if applied else "refused"
    step = StepReport(index=2, type="any", parameters={}, status=status, change=change, refusal=refusal, seconds=1)
    return "\n".join(quantization_lines(step))


def test_markdown_has_a_column_for_what_any_layer_has():
    text = _lines(STATIC)
    assert "### Layers of step 3" in text
    assert "it fits." in text
    assert "| layer | operator | activation | weight | accumulator load | weight SQNR | output SQNR |" in text
    assert "| conv | Conv | uint8 | int8 | 50.0 % | 40.0 dB | 33.2 dB |" in text
    assert "| words | Gather |  |  |  | 41.0 dB |  |" in text
    assert "`head` stays in float: it is excluded." in text


def test_markdown_of_a_choice_has_the_front_and_each_method_of_the_chosen_one():
    text = _lines(MIXED)
    assert "| **dynamic** |" in text
    assert "regions is the same network as dynamic." in text
    assert "| a | MatMul |" in text
    assert "`softmax` stays in float32: it overflows." in text
    refused = _lines(MIXED, applied=False)
    assert "| **dynamic** |" in refused
    assert "`softmax`" not in refused


def test_markdown_names_nodes_of_one_reason_together():
    left = tuple(
        LeftAlone(node=node, reason=reason)
        for node, reason in (("a", "it is small"), ("b", "no"), ("c", "it is small"))
    )
    text = _lines(STATIC.model_copy(update={"in_float": left}))
    assert "`a`, `c` stay in float, each for the same reason: it is small." in text
    assert "`b` stays in float: no." in text


def test_markdown_says_nothing_of_what_has_no_type():
    assert _lines({"layers": [{"node": "conv"}]}) == ""


def test_every_pass_has_details_of_its_own():
    passes = {kind.model_fields["type"].default for kind in get_args(get_args(AnyPass)[0])}
    details = [kind.model_fields["of"].default for kind in get_args(get_args(AnyDetails)[0])]
    assert sorted(details) == sorted(passes)
