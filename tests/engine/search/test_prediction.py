import numpy as np
import pytest

from engine.report.values import Interval, Quality, Ratio
from engine.search.library import VariantLibrary
from engine.search.prediction import Prediction
from engine.search.terms import Size, Structure, Tensor, Term, Timed, Times
from engine.search.values import Point, Proposal, Told, TrialValues
from engine.search.variants import Variant

FULL = {"a": 64, "b": 64}


def layer(name, reads, gives, block=()):
    weight = Tensor(item=4.0, axes=(gives, reads), weight=True)
    bias = Tensor(item=4.0, axes=(gives,))
    return Term(
        name=name,
        layer=name,
        blocks=block,
        signature="Conv",
        reads=reads,
        gives=gives,
        tensors=(weight, bias),
        macs=((1000, 0),),
    )


A, B = (Size(fixed=0, per_kept={name: 1}) for name in FULL)
STRUCTURE = Structure(
    full=FULL,
    terms=(layer("first", Size(fixed=3), A), layer("second", A, B, ("sum",)), layer("last", B, Size(fixed=10))),
    file_bytes=30_000,
    macs=3000,
    parameters=64 * 3 + 64 + 64 * 64 + 64 + 64 * 10 + 10,
)


def kernel(reads, gives):
    """Time of a layer whose kernels compute sixteen channels at a time."""
    return 0.02 + 1e-5 * 16 * np.ceil(reads / 16) * 16 * np.ceil(gives / 16)


def network(a, b, *, precision="float32", slower=1.0):
    terms = {
        "first": slower * kernel(3, a),
        "second": slower * kernel(a, b),
        "last": slower * kernel(b, 10),
        "": slower * 0.01,
    }
    return Timed(widths={"a": a, "b": b}, ratio=sum(terms.values()), size_bytes=1000, terms=terms)


def width(group, kept, damage):
    return Variant(kind="width", subject=group, value=kept, damage=damage)


def library(**times):
    measured = [(64, 64), (64, 16), (16, 64), (16, 16), (32, 32), (48, 32)]
    floats = Times(precision="float32", networks=tuple(network(a, b) for a, b in measured))
    variants = (width("a", 32, 0.01), width("a", 16, 0.04), width("b", 32, 0.02))
    block = Variant(kind="block", subject="sum", damage=0.1)
    return VariantLibrary(structure=STRUCTURE, variants=(*variants, block), times={"float32": floats, **times})


def told(number, point, ratio, *, kl=None):
    exact = Interval(low=ratio, high=ratio)
    quality = () if kl is None else (fidelity(kl),)
    values = TrialValues(
        size_bytes=1, macs=1, parameters=1, latency=Ratio(value=ratio, interval=exact), quality=quality, seconds=1
    )
    proposal = Proposal(point=point, because="a test")
    return Told(number=number, proposal=proposal, state="succeeded", values=values)


def fidelity(kl):
    return Quality(
        metric="kl",
        original=None,
        compressed=kl,
        difference=None,
        interval=Interval(low=kl, high=kl),
        standard_error=0.0,
        samples=100,
        output="scores",
        kind="classes",
    )


def drawn(count, seed):
    rng = np.random.default_rng(seed)
    return [Point(widths={name: int(rng.choice([16, 32, 48])) for name in FULL}) for _ in range(count)]


def median_error(prediction, points, truth):
    return np.median([abs(prediction.predict(point).latency_ratio / truth(point) - 1) for point in points])


def test_terms_add_up_to_networks_of_widths_that_were_never_timed():
    prediction = Prediction(library(), [])
    for point in drawn(8, seed=1):
        a, b = point.widths["a"], point.widths["b"]
        assert prediction.predict(point).latency_ratio == pytest.approx(network(a, b).ratio, rel=0.05)


def test_widths_that_a_kernel_does_not_like_cost_as_much_as_the_next_one_that_it_does():
    prediction = Prediction(library(), [])
    narrow, liked, wide = (prediction.predict(Point(widths={"a": a})).latency_ratio for a in (33, 48, 49))
    assert narrow == pytest.approx(liked, rel=0.02)
    assert wide > 1.05 * liked


def test_a_precision_is_predicted_from_its_own_kernels():
    # In integers this machine computes 64 channels at a time, however few there are.
    whole = network(64, 64)
    same = tuple(whole.model_copy(update={"widths": {"a": a, "b": a}}) for a in (64, 32, 16))
    prediction = Prediction(library(static=Times(precision="static", networks=same)), [])
    narrow = {
        name: prediction.predict(Point(widths={"a": 16, "b": 16}, precision=name)) for name in ("float32", "static")
    }
    assert narrow["static"].latency_ratio == pytest.approx(whole.ratio, rel=0.02)
    assert narrow["float32"].latency_ratio < 0.8 * whole.ratio


def test_layers_in_float_between_integers_pay_for_their_conversions():
    integers = tuple(network(a, a, slower=0.5) for a in (64, 32))
    floats, half = network(64, 64), network(64, 64, slower=0.5)
    # The second layer computes in float, and what it reads and makes is converted.
    mixed = sum(half.terms.values()) - half.terms["second"] + floats.terms["second"] + 0.128
    seen = half.model_copy(update={"in_float": ("second",), "ratio": mixed})
    prediction = Prediction(library(static=Times(precision="static", networks=(*integers, seen))), [])
    term = STRUCTURE.terms[1]
    whole, narrow = (
        prediction.cost(term, "static", {"a": a, "b": a}, in_float=True).latency_ratio
        - prediction.cost(term, "float32", {"a": a, "b": a}).latency_ratio
        for a in (64, 32)
    )
    assert whole == pytest.approx(0.128, rel=0.05)
    assert narrow == pytest.approx(whole / 2, rel=0.01)


def test_bytes_and_multiplications_are_those_of_the_widths():
    prediction = Prediction(library(), [])
    found = prediction.predict(Point(widths={"a": 32}))
    assert found.macs == 1000 * 32 // 64 * 2 + 1000
    whole = prediction.predict(Point())
    gone = 4 * (32 * 3 + 32 + 32 * 64)
    assert whole.size_bytes - found.size_bytes == gone


def test_a_branch_that_is_gone_takes_its_terms_and_the_damage_of_what_was_in_it():
    prediction = Prediction(library(), [])
    found = prediction.predict(Point(dropped=("sum",)))
    assert found.macs == 2000
    assert found.damage == pytest.approx(0.1)


def test_damage_adds_up_and_lies_between_what_was_measured():
    made = library()
    assert made.damage(Point(widths={"a": 32, "b": 32})) == pytest.approx(0.03)
    assert made.width_damage("a", 64) == 0
    assert made.width_damage("a", 48) < 0.01 < made.width_damage("a", 24) < 0.04 < made.width_damage("a", 8)


def test_what_was_not_measured_yet_is_taken_to_be_like_the_others():
    made = library()
    without = made.model_copy(update={"variants": tuple(each for each in made.variants if each.subject != "b")})
    assert VariantLibrary(**dict(without)).width_damage("b", 32) == pytest.approx(0.01)


def test_measured_networks_correct_later_predictions():
    # Whatever the terms say, whole networks take half as long again, and narrow ones more so.
    def truth(point):
        a, b = (point.widths.get(name, 64) for name in FULL)
        return network(a, b).ratio * (1.5 + 0.3 * (128 - a - b) / 128)

    points, later = drawn(12, seed=2), drawn(12, seed=3)
    before = Prediction(library(), [])
    after = Prediction(library(), [told(number, point, truth(point)) for number, point in enumerate(points)])
    assert median_error(before, later, truth) > 0.3
    assert median_error(after, later, truth) < 0.1


def test_one_bad_measurement_does_no_harm():
    points, later = drawn(12, seed=2), drawn(12, seed=3)

    def truth(point):
        return network(*(point.widths[name] for name in FULL)).ratio

    seen = [told(number, point, truth(point) * (4 if number == 5 else 1)) for number, point in enumerate(points)]
    assert median_error(Prediction(library(), seen), later, truth) < 0.1


def test_damage_is_corrected_by_what_composed_networks_lost():
    points = [Point(widths={"a": 32, "b": 32}), Point(widths={"a": 16})]
    seen = [told(number, point, 0.9, kl=3 * library().damage(point)) for number, point in enumerate(points)]
    point = Point(widths={"a": 16, "b": 32})
    assert Prediction(library(), seen).predict(point).damage > 2 * library().damage(point)
