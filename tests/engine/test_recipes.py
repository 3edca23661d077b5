"""Recipes by name: written out when a spec is read, and less what a network or the workers cannot do."""

import json

import pytest
from pydantic import ValidationError

from engine import Compress, Inspection, adapt_recipe, estimate_job, list_recipes, read_spec
from engine.errors import SpecInvalidError
from engine.inspection import NetworkCost

NAMES = ["small", "fast", "fastest"]


def network(**changes):
    values = {
        "inputs": [{"name": "image", "dtype": "float32", "shape": ["n", 3, 8, 8]}],
        "outputs": [{"name": "scores", "dtype": "float32", "shape": ["n", 5]}],
        "opset": {"": 18}, "ir_version": 10, "producer": "", "parameters": 10_000, "size_bytes": 40_000, "nodes": 9,
        "ops": {"Conv": 3, "Gemm": 1}, "quantized": "none", "float_type": "float32", "external_data": False,
    }  # fmt: skip
    return Inspection.model_validate(values | changes)


def types(spec):
    return [step.type for step in spec.recipe.passes]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("written", ["word", "object"])
def test_a_name_stands_for_its_passes(name, written):
    described = next(each for each in list_recipes() if each["name"] == name)
    spec = read_spec({"recipe": name if written == "word" else {"name": name}})
    assert spec.recipe.name == name
    assert [step.model_dump(mode="json") for step in spec.recipe.passes] == described["passes"]
    # Structure goes before training, and that before precision.
    assert types(spec).index("prune_channels") < types(spec).index("distill") < len(types(spec)) - 1
    assert described["needs_data"]
    assert described["trains"]
    # As it is stored and read again.
    assert read_spec(json.loads(spec.model_dump_json())) == spec


def test_a_recipe_that_is_written_out_is_stored_as_before():
    spec = read_spec({"recipe": {"passes": [{"type": "simplify"}]}})
    assert spec.recipe.name is None
    assert spec.model_dump(mode="json")["recipe"].keys() == {"passes"}
    assert adapt_recipe(spec, None, has_data=False, trains=False) is spec


@pytest.mark.parametrize("recipe", ["smal", {"name": "smal"}, {"name": 3}, 3, {}])
def test_a_name_that_there_is_not_is_refused(recipe):
    with pytest.raises(ValidationError) as refused:
        read_spec({"recipe": recipe})
    if recipe == "smal":
        assert "there is no recipe called 'smal'; there is small, fast, fastest" in str(refused.value)


def test_where_all_can_be_done_nothing_is_left_out():
    spec = read_spec({"recipe": "fast"})
    assert adapt_recipe(spec, network(), has_data=True, trains=True) == spec


def test_without_pytorch_what_trains_is_left_out_with_the_reason():
    spec = read_spec({"recipe": "fast"})
    adapted = adapt_recipe(spec, network(), has_data=True, trains=False)
    assert isinstance(adapted, Compress)
    assert not any(step.trains for step in adapted.recipe.passes)
    assert [each.type for each in adapted.recipe.left_out] == [step.type for step in spec.recipe.passes if step.trains]
    assert "no worker for `cpu` has PyTorch" in adapted.recipe.left_out[0].reason
    # Once more changes nothing: it is what is stored.
    assert (
        adapt_recipe(read_spec(json.loads(adapted.model_dump_json())), network(), has_data=True, trains=False)
        == adapted
    )


def test_what_the_network_does_not_let_be_done_is_left_out():
    adapted = adapt_recipe(read_spec({"recipe": "small"}), network(ops={"LSTM": 1}), has_data=True, trains=True)
    assert types(adapted)
    with pytest.raises(
        SpecInvalidError, match=r"Nothing of the recipe `small` can be done that gains: prune_channels: "
    ):
        adapt_recipe(read_spec({"recipe": "small"}), network(quantized="fully"), has_data=True, trains=False)
    integers = adapt_recipe(read_spec({"recipe": "small"}), network(quantized="fully"), has_data=True, trains=True)
    assert types(integers) == ["simplify", "fuse", "quantize_aware_train"]


@pytest.mark.parametrize("name", NAMES)
def test_data_are_needed(name):
    with pytest.raises(SpecInvalidError, match="needs data"):
        adapt_recipe(read_spec({"recipe": name}), network(), has_data=False, trains=True)


def test_what_each_takes_is_told_beforehand():
    cost = NetworkCost(macs=10_000_000, live_bytes=1_000_000, input_elements=192)
    found = {name: estimate_job(network(cost=cost), None, read_spec({"recipe": name})).seconds for name in NAMES}
    # Training takes the seconds that it is given.
    assert found["fastest"] > found["fast"] > 100
