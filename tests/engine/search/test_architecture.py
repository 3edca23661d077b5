"""The space round a network: what can change under which names, and that a point's widths are those that its network gets."""

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from engine.errors import SpecInvalidError
from engine.goal import Space
from engine.graph import linear, macs
from engine.search.architecture import Architecture
from engine.search.candidate import make as make_network
from engine.search.recipe import recipe_of
from engine.search.values import Point
from engine.target import Target
from tests.engine.graph import zoo


@pytest.fixture
def cnn(residual_cnn):
    return ir.from_proto(onnx.load_from_string(residual_cnn()))


@pytest.fixture
def samples(images, feeds_of):
    return feeds_of({"image": images(32)})


def read(model, **space):
    return Architecture.of(model, Space(**space), Target())


def test_what_can_change_is_found_under_names_that_last(cnn):
    found = read(cnn)
    # `a2` and `b2` stand in branches that may go, so that the groups are named after what stays.
    assert {name: group.size for name, group in found.groups.items()} == {
        "channels:stem": 16,
        "channels:a1": 16,
        "channels:b1": 32,
        "channels:short": 32,
    }
    assert list(found.blocks) == ["add1", "add2"]
    assert list(found.layers) == ["stem", "a1", "a2", "b1", "b2", "short", "head"]
    b1 = found.layers["b1"]
    assert (b1.reads.parts, b1.makes.parts) == ((("channels:stem", 1.0),), (("channels:b1", 1.0),))
    assert b1.ranks
    assert not found.layers["stem"].ranks
    assert "dynamic" not in found.precisions  # the network has no matrix products that are worth it
    assert found.options["prune_channels.importance"][0] == "reconstruction"


def test_what_is_excluded_stays(cnn):
    found = read(cnn, exclude=("a1",))
    assert "channels:a1" not in found.groups
    assert list(found.blocks) == ["add2"]
    assert not read(cnn, drop_blocks=False).blocks
    assert set(read(cnn, drop_blocks=False).groups) == set(read(cnn).groups)


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_layers_are_as_wide_as_they_are_said_to_be(cnn, samples, context, share):
    found = read(cnn)
    point = found.uniform(share, dropped=("add1",))
    model = make_network(cnn, point, found, context(cnn, samples)).model
    widths = {
        layer.name: (layer.shape[1] if layer.is_convolution else layer.inputs, layer.outputs)
        for node in model.graph
        if isinstance(layer := linear.read(node), linear.LinearLayer)
    }
    assert widths == {at.layer.name: (at.reads, at.makes) for at in found.layers_at(point)}
    assert found.macs_at(point) == macs.total(model)


@pytest.mark.parametrize("make", [zoo.vit, zoo.bert, zoo.se_depthwise_flatten], ids=lambda make: make.__name__)
def test_transformers_and_depthwise_networks_too(make, feeds_of, context):
    proto = make()
    model = ir.from_proto(proto)
    found = Architecture.of(model, Space(), Target())
    point = found.uniform(0.5)
    assert point.widths
    feed = zoo.feed(proto, batch=4)
    samples = feeds_of(feed, dtype=next(iter(feed.values())).dtype)
    made = make_network(model, point, found, context(model, samples)).model
    told = {at.layer.name: (at.reads, at.makes) for at in found.layers_at(point)}
    for node in made.graph:
        layer = linear.read(node)
        if isinstance(layer, linear.LinearLayer):
            channels = layer.shape[1] * layer.groups if layer.is_convolution else layer.inputs
            assert told[layer.name] == (channels, layer.outputs)


def test_a_point_has_one_form(cnn):
    found = read(cnn)
    # Full widths say nothing, nor do channels inside of a branch that is gone, nor float layers where all are float.
    same = Point(dropped=("add1",), widths={"channels:stem": 16, "channels:a1": 8}, in_float=("b1",))
    assert found.normalise(same) == Point(dropped=("add1",))
    assert found.normalise(Point(dropped=("add2", "add1"))).dropped == ("add1", "add2")
    # At half of the widths this rank saves nothing any more.
    rank = found.layers["b1"].ranks[0]
    narrow = Point(widths={"channels:b1": 8, "channels:stem": 8}, ranks={"b1": rank})
    assert found.normalise(narrow).ranks == {}
    assert found.normalise(Point(ranks={"b1": rank})).ranks == {"b1": rank}
    assert found.normalise(Point(options={"prune_channels.importance": "taylor"})).options == {}


@pytest.mark.parametrize(
    ("point", "said"),
    [
        (Point(dropped=("stem",)), "No residual branch that may go is called `stem`. There is `add1`, `add2`."),
        (Point(widths={"g0": 4}), "No group of channels that may change is called `g0`. There is `channels:stem`"),
        (Point(widths={"channels:stem": 17}), "`channels:stem` has 16 and cannot keep 17. It may keep 16,"),
        (Point(ranks={"stem": 4}), "No layer that can be split is called `stem`. There is `b1`"),
        (Point(ranks={"b1": 32}), "Layer `b1` has rank 32 as it is; 32 saves nothing."),
        (Point(precision="dynamic"), "The space has no dynamic. It has float32,"),
        (Point(precision="static", in_float=("nobody",)), "No layer is called `nobody`, so it cannot stay in float."),
        (Point(options={"prune_channels.importance": "luck"}), "`prune_channels.importance` cannot be 'luck'"),
    ],
)
def test_what_is_no_point_is_told(cnn, point, said):
    with pytest.raises(SpecInvalidError) as caught:
        read(cnn).check(point)
    assert f"{caught.value.message} {caught.value.hint or ''}".startswith(said)


def test_random_points_and_neighbours_are_points_and_repeat(cnn):
    found = read(cnn)
    drawn = [found.random(np.random.default_rng(seed)) for seed in range(20)]
    assert drawn == [found.random(np.random.default_rng(seed)) for seed in range(20)]
    assert len({point.model_dump_json() for point in drawn}) > 10
    for point in drawn[:5]:
        found.check(point)
        beside = found.neighbours(point, np.random.default_rng(1))
        assert beside == found.neighbours(point, np.random.default_rng(1))
        assert 0 < len(beside) <= 8
        for other in beside:
            found.check(other)
            assert other == found.normalise(other) != point


def test_a_point_is_told_in_words(cnn):
    found = read(cnn)
    point = found.uniform(0.5, dropped=("add1",), precision="static")
    assert found.describe(point) == "1 of 2 blocks dropped, 50% of the channels, 8-bit integers with fixed ranges"
    assert found.describe(Point()) == "the network as it is"
    but = point.model_copy(update={"in_float": ("stem",), "options": {"quantize_static.ranges": "mse"}})
    assert found.describe(but).endswith("8-bit integers with fixed ranges but for 1 layer, ranges mse")


def test_a_recipe_names_groups_by_what_is_still_there(cnn):
    found = read(cnn)
    # As if the group had been named after the layer that goes with the branch.
    group = replace(found.groups["channels:short"], name="channels:b2")
    others = {name: each for name, each in found.groups.items() if name != "channels:short"}
    architecture = replace(found, groups={**others, "channels:b2": group})
    steps = recipe_of(Point(dropped=("add2",), widths={"channels:b2": 16}), architecture)
    assert [step["type"] for step in steps] == ["simplify", "fuse", "drop_blocks", "reconstruct", "prune_channels"]
    assert steps[4]["widths"] == {"channels:short": 16}
