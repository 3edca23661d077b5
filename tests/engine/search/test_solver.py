"""The solver on the library of a real network's structure: nothing that the space has is predicted to be better."""

from itertools import combinations, product

import pytest

from engine.report.values import Interval, Quality, Ratio
from engine.search import solver
from engine.search.prediction import Prediction
from engine.search.solver import Limits
from engine.search.values import Point, Proposal, Told, TrialValues
from tests.engine.search.made_up_library import architecture_of, library_of
from tests.engine.train.quantized_networks import parsed


@pytest.fixture
def small(residual_cnn):
    """A network of which every point can be counted out, its library, and all points with their predictions."""
    model = parsed(residual_cnn())
    architecture = architecture_of(model, widths=(1.0, 0.5), ranks=(), precisions=("float32", "static"))
    library = library_of(model, architecture, float_shares=False)
    prediction = Prediction.of(architecture, library, [])
    return architecture, library, prediction


def every_point(architecture):
    found = {}
    blocks = list(architecture.blocks)
    for widths in product(*[group.widths for group in architecture.groups.values()]):
        for gone in range(len(blocks) + 1):
            for dropped in combinations(blocks, gone):
                for precision in architecture.precisions:
                    kept = dict(zip(architecture.groups, widths, strict=True))
                    point = architecture.normalise(Point(widths=kept, dropped=dropped, precision=precision))
                    found[point.model_dump_json()] = point
    return list(found.values())


def best_of(predicted, minimise, limits):
    names = {"latency": "latency_ratio", "size": "size_bytes", "macs": "macs", "damage": "damage"}
    inside = [
        getattr(each, names[minimise])
        for each in predicted
        if all(getattr(each, names[quantity]) <= limit * (1 + 1e-9) for quantity, limit in limits.by_quantity().items())
    ]
    return min(inside, default=None)


def test_no_point_of_the_space_is_predicted_to_be_better(small):
    architecture, library, prediction = small
    points = every_point(architecture)
    predicted = [prediction.predict(point) for point in points]
    assert len(points) > 30
    whole = prediction.predict(Point())
    for minimise, limits in [
        ("latency", Limits(max_damage=0.1)),
        ("latency", Limits(max_damage=0.5, max_bytes=0.5 * whole.size_bytes)),
        ("size", Limits(max_damage=0.2, max_latency_ratio=0.8)),
        ("macs", Limits(max_damage=0.3)),
        ("damage", Limits(max_latency_ratio=0.5)),
    ]:
        found = solver.solve(
            architecture,
            library,
            prediction,
            minimise=minimise,
            max_damage=limits.max_damage,
            max_latency_ratio=limits.max_latency_ratio,
            max_bytes=limits.max_bytes,
            precisions=architecture.precisions,
        )
        best = best_of(predicted, minimise, limits)
        assert found is not None
        assert best is not None
        said = prediction.predict(found)
        assert best_of([said], minimise, limits) == pytest.approx(best, rel=2e-3), (minimise, limits)


def test_candidates_differ_get_no_better_and_have_the_uniform_one_beside_them(small):
    architecture, _, prediction = small
    limits = Limits(max_damage=0.4)
    found = solver.candidates(
        architecture, prediction, minimise="latency", limits=limits, precisions=architecture.precisions, count=5
    )
    solved = [each for each in found if each.origin == "solver"]
    assert len(solved) == 5
    assert [each.value for each in solved] == sorted(each.value for each in solved)
    for one, other in combinations(solved, 2):
        if one.point.precision == other.point.precision:
            kept = [{**dict.fromkeys(architecture.groups), **each.point.widths} for each in (one, other)]
            apart = sum(kept[0][name] != kept[1][name] for name in architecture.groups)
            assert apart + len(set(one.point.dropped) ^ set(other.point.dropped)) >= 1
            assert one.point != other.point
    uniform = found[-1]
    shares = [architecture.uniform(share, precision="static") for share in architecture.space.widths]
    assert uniform.origin == "uniform"
    assert uniform.point in shares
    inside = [prediction.predict(point) for point in shares if prediction.predict(point).damage <= 0.4]
    assert uniform.value == min(each.latency_ratio for each in inside)


def test_limits_that_exclude_each_other_are_named_with_what_can_be_had(small):
    architecture, library, prediction = small
    points = every_point(architecture)
    predicted = [prediction.predict(point) for point in points]
    least = min(each.latency_ratio for each in predicted)
    harmless = min(each.latency_ratio for each in predicted if each.damage <= 0.1)
    mildest = min(each.damage for each in predicted if each.latency_ratio <= least * 1.01)
    limits = Limits(max_damage=0.1, max_latency_ratio=least * 1.01)
    assert (
        solver.solve(
            architecture,
            library,
            prediction,
            minimise="size",
            max_damage=0.1,
            max_latency_ratio=least * 1.01,
            precisions=architecture.precisions,
        )
        is None
    )
    found = {
        each.limit: each
        for each in solver.bounds(architecture, prediction, limits=limits, precisions=architecture.precisions)
    }
    assert found["latency"].nearest == pytest.approx(harmless, rel=2e-3)
    assert found["latency"].alone == pytest.approx(least, rel=2e-3)
    assert found["damage"].nearest == pytest.approx(mildest, rel=2e-2)
    assert "with them it is" in found["latency"].words
    alone = solver.bounds(
        architecture, prediction, limits=Limits(max_latency_ratio=least / 2), precisions=architecture.precisions
    )
    assert "the least that any variant has" in alone[0].words
    assert solver.bounds(architecture, prediction, limits=Limits(max_damage=0.5), precisions=("float32",)) == ()


def test_limits_hold_by_the_prediction_that_trials_have_corrected(small):
    architecture, library, prediction = small
    # Whole networks took longer than their terms say: the limit has to be met all the same.
    told = []
    for number, share in enumerate((1.0, 0.5)):
        for precision in architecture.precisions:
            point = architecture.uniform(share, precision=precision)
            told.append(_timed(number, point, 1.1 * prediction.predict(point).latency_ratio))
    corrected = Prediction.of(architecture, library, told)
    assert corrected.predict(Point()).latency_ratio > 1.02 * prediction.predict(Point()).latency_ratio
    found = solver.solve(
        architecture,
        library,
        corrected,
        minimise="damage",
        max_latency_ratio=0.6,
        precisions=architecture.precisions,
    )
    assert found is not None
    assert corrected.predict(found).latency_ratio <= 0.6 * (1 + 1e-6)
    inside = [each for point in every_point(architecture) if (each := corrected.predict(point)).latency_ratio <= 0.6]
    assert corrected.predict(found).damage <= min(each.damage for each in inside) * 1.25 + 1e-9


def _timed(number, point, ratio):
    around = Interval(low=ratio, high=ratio)
    quality = Quality(
        metric="kl", original=None, compressed=0.0, difference=None, interval=around, standard_error=0, samples=9
    )
    values = TrialValues(
        size_bytes=1, macs=1, parameters=1, latency=Ratio(value=ratio, interval=around), quality=(quality,), seconds=1
    )
    return Told(number=number, proposal=Proposal(point=point, because="a test"), state="succeeded", values=values)


def test_layers_stay_in_float_and_are_split_where_that_is_worth_it(residual_cnn):
    model = parsed(residual_cnn())
    architecture = architecture_of(model, widths=(1.0, 0.5), ranks=(0.5,), precisions=("static",))
    library = library_of(model, architecture)
    prediction = Prediction.of(architecture, library, [])
    whole = prediction.predict(Point(precision="static"))
    half = solver.solve(
        architecture,
        library,
        prediction,
        minimise="latency",
        max_damage=0.5 * whole.damage,
        precisions=("static",),
    )
    assert half is not None
    assert half.in_float
    assert prediction.predict(half).damage <= 0.5 * whole.damage * (1 + 1e-6)
    worst = max(library.layers["static"], key=library.layers["static"].__getitem__)
    assert worst in half.in_float, "the layer that suffers most is the first to stay in float"
    layers = {name for name, layer in architecture.layers.items() if layer.ranks}
    small = solver.solve(architecture, library, prediction, minimise="macs", max_damage=10.0, precisions=("static",))
    assert small is not None
    assert not layers or small.ranks or small.dropped
