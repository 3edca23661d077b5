"""Whether a job fits its network and data is told from stored inspections alone."""

import pytest

from engine import Compress, DatasetInspection, Inspection, OutputDeclaration, check_fit
from engine.compatibility import can_cast
from engine.errors import DatasetInvalidError, SpecInvalidError


def _network(**changes):
    values = {
        "inputs": [{"name": "image", "dtype": "float32", "shape": ["n", 3, 8, 8]}],
        "outputs": [{"name": "scores", "dtype": "float32", "shape": ["n", 5]}],
        "opset": {"": 18}, "ir_version": 10, "producer": "", "parameters": 10, "size_bytes": 100, "nodes": 1,
        "ops": {"Conv": 1}, "quantized": "none", "float_type": "float32", "external_data": False,
    }  # fmt: skip
    return Inspection.model_validate(values | changes)


def _data(name="image", dtype="uint8", shape=(700, 3, 8, 8), labelled=500, metric="top1", **more):
    return DatasetInspection.model_validate(
        {
            "arrays": [{"name": name, "dtype": dtype, "shape": shape}],
            "samples": shape[0],
            "labelled": labelled,
            "unlabelled": shape[0] - labelled,
            "metric": metric,
            **more,
        }
    )


def _spec(*passes, **more):
    return Compress.model_validate(
        {"recipe": {"passes": [{"type": name} for name in passes or ("quantize_static",)]}, **more}
    )


def test_a_job_that_fits_gives_no_warnings():
    assert check_fit(_network(), _data(), _spec()) == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (_data(name="picture"), "missing: image; not an input: picture"),
        (_data(shape=(600, 3, 9, 8)), "size 9 on axis 2"),
        (_data(shape=(600, 3, 8)), "3 axes"),
    ],
)
def test_data_that_do_not_fit_are_refused(data, message):
    with pytest.raises(DatasetInvalidError, match=message):
        check_fit(_network(), data, _spec())


@pytest.mark.parametrize(
    ("low", "high", "beyond"), [(0, 100, 100), (-101, 5, -101), (-1, 99, None), (None, None, None)]
)
def test_numbers_that_a_table_does_not_have_are_refused(low, high, beyond):
    tokens = {"name": "ids", "dtype": "int64", "shape": ["n", "s"]}
    network = _network(inputs=[tokens], tables={"ids": 100})
    described = {"name": "ids", "dtype": "int64", "shape": [700, 12], "low": low, "high": high}
    data = _data(arrays=[described])
    if beyond is None:
        assert check_fit(network, data, _spec("simplify")) == []
        return
    with pytest.raises(
        DatasetInvalidError, match=f"`ids` holds {beyond}, but the network .* 100 rows, 0 to 99"
    ) as refused:
        check_fit(network, data, _spec("simplify"))
    assert "tokenizer" in refused.value.hint
    # What is cut off is never looked up.
    lengths = {"name": "ids_length", "dtype": "int64", "shape": [700]}
    assert check_fit(network, _data(arrays=[described, lengths]), _spec("simplify")) is not None


def test_types_are_cast_only_without_loss_of_meaning():
    assert can_cast("uint8", "float32")
    assert can_cast("bool", "float16")
    assert can_cast("float64", "float32")
    assert can_cast("int32", "int64")
    assert can_cast("uint8", "int16")
    assert not can_cast("float32", "int64")
    assert not can_cast("int64", "int32")
    assert not can_cast("int8", "uint8")


@pytest.mark.parametrize(
    ("array", "wanted", "misfits", "refused"),
    [
        ("int64", "int32", {"int8": "300 in sample 4"}, None),
        ("int64", "int32", {"int32": "3000000000 in sample 7"}, "does not hold 3000000000 in sample 7"),
        ("int64", "bool", {"bool": "2 in sample 0"}, "bool, which does not hold 2 in sample 0"),
        ("float32", "int64", {}, None),
        (
            "float32",
            "int64",
            {"integers": "0.5 in sample 1"},
            "float32, the network's input is int64, .* 0.5 in sample 1",
        ),
        ("float64", "float32", {"float32": "1e+300 in sample 2"}, "does not hold 1e.300 in sample 2"),
        ("uint8", "float32", {}, None),
    ],
)
def test_arrays_of_other_types_are_taken_where_all_numbers_fit(array, wanted, misfits, refused):
    network = _network(inputs=[{"name": "image", "dtype": wanted, "shape": None}])
    described = {"name": "image", "dtype": array, "shape": (700, 3, 8, 8), "low": 0, "high": 1, "misfits": misfits}
    data = _data(arrays=[described])
    if refused is None:
        assert check_fit(network, data, _spec()) == []
        return
    with pytest.raises(DatasetInvalidError, match=refused):
        check_fit(network, data, _spec())


@pytest.mark.parametrize(
    ("network", "data", "spec", "message"),
    [
        (_network(), None, _spec(), "needs calibration data"),
        (_network(quantized="fully"), _data(), _spec(), "fully quantized already"),
        (_network(quantized="partly"), _data(), _spec("simplify", "quantize_static"), r"Step 1 .*partly"),
        (
            _network(),
            _data(labelled=0, metric=None),
            _spec(gates=[{"metric": "top1", "rule": "max_drop", "value": 0.01}]),
            "needs labels",
        ),
        (
            _network(),
            _data(metric="mse"),
            _spec(gates=[{"metric": "top1", "rule": "max_drop", "value": 0.01}]),
            "metric is mse",
        ),
        (_network(), None, _spec("simplify", gates=[{"metric": "cosine", "rule": "min", "value": 0.9}]), "needs data"),
        (_network(), _data(), _spec(target={"shapes": {"other": [1, 3, 8, 8]}}), "not an input"),
        (_network(), _data(), _spec(target={"shapes": {"image": [1, 3, 9, 8]}}), r"gives \[1, 3, 9, 8\]"),
    ],
)
def test_specs_that_do_not_fit_are_refused(network, data, spec, message):
    with pytest.raises(SpecInvalidError, match=message):
        check_fit(network, data, spec)


def test_warns_of_what_weakens_a_result():
    assert any("random inputs" in text for text in check_fit(_network(), None, _spec("simplify")))
    assert any("no labels" in text for text in check_fit(_network(), _data(labelled=0, metric=None), _spec()))
    assert any("are few" in text for text in check_fit(_network(), _data(shape=(60, 3, 8, 8), labelled=50), _spec()))
    # It is what judges that has to be many.
    assert check_fit(_network(), _data(labelled=450), _spec()) == []
    assert any(
        "298 labelled samples to judge on" in text for text in check_fit(_network(), _data(labelled=447), _spec())
    )
    assert any("200 labelled" in text for text in check_fit(_network(), _data(), _spec(), judge=_judge(200)))
    fixed = _network(inputs=[{"name": "image", "dtype": "float32", "shape": [4, 3, 8, 8]}])
    assert any("fixed batch size" in text for text in check_fit(fixed, _data(), _spec()))


def _judge(count, labelled=None, **more):
    return _data(shape=(count, 3, 8, 8), labelled=count if labelled is None else labelled, **more)


def test_says_where_steps_are_chosen_on_what_judges():
    warnings = check_fit(_network(), _data(shape=(60, 3, 8, 8), labelled=50), _spec())
    assert any("chosen and the result is judged on the same 50 samples" in text for text in warnings)
    assert not any("same" in text for text in check_fit(_network(), _data(), _spec()))
    assert not any("same" in text for text in check_fit(_network(), _data(labelled=50), _spec(), judge=_judge(300)))


def test_gates_are_answered_by_what_judges():
    gated = _spec(gates=[{"metric": "top1", "rule": "max_drop", "value": 0.01}])
    with pytest.raises(SpecInvalidError, match="data that judge have none"):
        check_fit(_network(), _data(), gated, judge=_judge(400, labelled=0, metric=None))
    assert check_fit(_network(), _data(labelled=0, metric=None), gated, judge=_judge(400)) == []
    # Its own array says that nothing labelled judges.
    declared = {"calibrate": 100, "select": 500, "judge": 100, "select_labelled": 500, "judge_labelled": 0}
    with pytest.raises(SpecInvalidError, match="data that judge have none"):
        check_fit(_network(), _data(declared=declared), gated)


def test_data_that_cannot_be_parted_are_refused():
    wrong = {"problem": "The array `part` holds 7 for sample 2; it may hold 0, 1 and 2."}
    with pytest.raises(DatasetInvalidError, match="holds 7") as caught:
        check_fit(_network(), _data(declared=wrong), _spec())
    assert "0 calibrates, 1 is for choosing, 2 judges" in caught.value.hint
    with pytest.raises(DatasetInvalidError, match="called judge has fewer than two"):
        check_fit(_network(), _data(declared={"calibrate": 500, "select": 199, "judge": 1}, labelled=0), _spec())
    with pytest.raises(SpecInvalidError, match="none to calibrate and choose with"):
        check_fit(_network(), None, _spec("simplify"), judge=_judge(400))
    with pytest.raises(DatasetInvalidError, match="missing: image"):
        check_fit(_network(), _data(), _spec(), judge=_data(name="picture"))


def test_an_array_part_is_no_input_unless_the_network_has_one():
    arrays = [
        {"name": "image", "dtype": "uint8", "shape": (700, 3, 8, 8)},
        {"name": "part", "dtype": "float32", "shape": (700, 2)},
    ]
    data = _data(arrays=arrays, declared={"problem": "The array `part` is float32 [700, 2]"})
    inputs = [
        {"name": "image", "dtype": "float32", "shape": ["n", 3, 8, 8]},
        {"name": "part", "dtype": "float32", "shape": ["n", 2]},
    ]
    assert check_fit(_network(inputs=inputs), data, _spec()) == []
    with pytest.raises(DatasetInvalidError, match=r"is float32 \[700, 2\]"):
        check_fit(_network(), data, _spec())


def _recurrent():
    shapes = {"x": [None, None], "state": [2, None, 8], "rate": []}
    inputs = [{"name": name, "dtype": "float32", "shape": shape} for name, shape in shapes.items()]
    return _network(inputs=inputs)


def _frames(**shapes):
    arrays = [{"name": name, "dtype": "float32", "shape": shape} for name, shape in shapes.items()]
    return DatasetInspection.model_validate(
        {"arrays": arrays, "samples": 20, "labelled": 0, "unlabelled": 20, "metric": None}
    )


@pytest.mark.parametrize("state", [(20, 2, 8), (20, 2, 1, 8)])
@pytest.mark.parametrize("x", [(20, 64), (20, 1, 64), (20, None)])
def test_a_state_and_a_single_number_fit_with_the_batch_axis_or_without(state, x):
    warnings = check_fit(_recurrent(), _frames(x=x, state=state, rate=(20,)), _spec("simplify"))
    assert any("one at a time" in warning and "state, rate" in warning for warning in warnings)


@pytest.mark.parametrize(
    ("state", "message"), [((20, 3, 8), "size 3 on axis 1"), ((20, 2, 1, 9), "size 9 on axis 3"), ((20, 8), "2 axes")]
)
def test_a_state_of_another_size_is_refused(state, message):
    with pytest.raises(DatasetInvalidError, match=message):
        check_fit(_recurrent(), _frames(x=(20, 64), state=state, rate=(20,)), _spec("simplify"))


def test_a_network_without_a_batch_axis_takes_whole_inputs():
    network = _network(inputs=[{"name": "image", "dtype": "float32", "shape": [3, 8, 8]}])
    warnings = check_fit(network, _data(shape=(600, 3, 8, 8)), _spec("simplify"))
    assert any("one at a time" in warning for warning in warnings)
    with pytest.raises(DatasetInvalidError, match="size 9 on axis 3"):
        check_fit(network, _data(shape=(600, 3, 8, 9)), _spec("simplify"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"outputs": {"score": {"kind": "classes"}}}, "outputs names `score`, which is not an output; the network's outputs are scores"),
        ({"outputs": {"scores": {"ignore": True}}}, "nothing is left to judge"),
        ({"gates": [{"metric": "top1@score", "rule": "min", "value": 0.5}]}, "top1@score names an output that there is not"),
        (
            {"gates": [{"metric": "sqnr_db@scores", "rule": "min", "value": 9}], "outputs": {"scores": {"kind": "boxes"}}},
            "declared as boxes, which has no sqnr_db",
        ),
    ],
)  # fmt: skip
def test_outputs_that_are_named_have_to_be_there_and_have_what_is_asked(more, message):
    with pytest.raises(SpecInvalidError, match=message):
        check_fit(_network(), _data(), _spec(**more))


def test_a_dataset_declares_outputs_of_its_own():
    declared = {"scores": OutputDeclaration(kind="boxes")}
    gates = [{"metric": "sqnr_db@scores", "rule": "min", "value": 9}]
    assert check_fit(_network(), _data(), _spec(), declared=declared) == []
    with pytest.raises(SpecInvalidError, match="declared as boxes"):
        check_fit(_network(), _data(), _spec(gates=gates), declared=declared)
    # The job knows better.
    assert (
        check_fit(_network(), _data(), _spec(gates=gates, outputs={"scores": {"kind": "values"}}), declared=declared)
        == []
    )
    with pytest.raises(SpecInvalidError, match="dataset's declaration names `other`"):
        check_fit(_network(), _data(), _spec(), declared={"other": OutputDeclaration(ignore=True)})


def test_what_too_few_samples_leave_out_is_said():
    def said(count, *passes, fixed="n"):
        network = _network(inputs=[{"name": "image", "dtype": "float32", "shape": [fixed, 3, 8, 8]}])
        data = None if count is None else _data(shape=(count, 3, 8, 8), labelled=0, metric=None)
        return [text for text in check_fit(network, data, _spec(*passes)) if text.startswith("Step ")]

    (text,) = said(6, "quantize_static")
    assert "GPTQ rounding, bias correction" in text
    assert "need 4 samples to choose by, and 3 are there" in text
    assert said(8, "quantize_static") == []
    # A batch that the network fixes has to be full.
    assert "need 16 samples to choose by, and 10 are there" in said(20, "mixed_precision", fixed=16)[0]
    skipping = said(None, "quantize_weights", "prune_channels", "prune_weights")
    assert [text.split(":")[0] for text in skipping] == [
        "Step 0 (quantize_weights)", "Step 1 (prune_channels)", "Step 2 (prune_weights)",
    ]  # fmt: skip
    assert said(200, "quantize_weights", "prune_channels", "prune_weights") == []


def test_a_limit_that_no_network_holds_is_refused_and_one_that_all_hold_is_told():
    def checked(rule, value):
        return check_fit(_network(), _data(), _spec(gates=[{"metric": "top1", "rule": rule, "value": value}]))

    with pytest.raises(SpecInvalidError, match="asks for 9500 %") as refused:
        checked("min", 95)
    assert refused.value.hint == "Shares are from 0 to 1: 95 % is 0.95."
    (told,) = checked("max_drop", 1)
    assert "a loss of 100 points, which nothing can exceed. Shares are from 0 to 1: 1 % is 0.01." in told
    assert checked("min", 0.95) == checked("max_drop", 0.05) == []


def test_gates_that_cannot_pass_on_so_few_samples_are_told_before():
    gates = [{"metric": "top1", "rule": "max_drop", "value": 0.01}]
    few = _data(shape=(300, 3, 8, 8), labelled=240)
    assert any(
        "gate on top1 (max_drop 0.01) cannot pass on the 160" in text
        for text in check_fit(_network(), few, _spec(gates=gates))
    )
    assert check_fit(_network(), _data(shape=(700, 3, 8, 8), labelled=650), _spec(gates=gates)) == []


def test_labels_that_nobody_said_the_meaning_of_are_not_left_out_in_silence():
    label = {"name": "label", "dtype": "float32", "shape": (700, 4)}
    data = _data(labelled=700, metric=None, label=label)
    assert any("labels (float32 [700, 4]), but no metric" in text for text in check_fit(_network(), data, _spec()))


# Students and teachers


@pytest.fixture
def learning():
    """A spec with a step that teaches."""
    return _spec("distill")


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": [{"name": "x", "dtype": "float32", "shape": ["n", 3, 8, 8]}]}, "inputs are x, the network's image"),
        ({"inputs": [{"name": "image", "dtype": "float32", "shape": ["n", 1, 8, 8]}]}, r"Input `image` is float32 \[n, 1, 8, 8\]"),
        ({"inputs": [{"name": "image", "dtype": "float32", "shape": [1, 3, 8, 8]}]}, "takes any number of samples"),
        ({"outputs": [{"name": "y", "dtype": "float32", "shape": ["n", 5]}]}, "outputs are y, the network's scores"),
        ({"outputs": [{"name": "scores", "dtype": "float32", "shape": ["n", 7]}]}, r"Output `scores` is float32 \[n, 7\]"),
        ({"outputs": [{"name": "scores", "dtype": "int64", "shape": ["n", 5]}]}, r"Output `scores` is int64"),
    ],
)  # fmt: skip
def test_a_student_or_teacher_of_something_else_is_refused(learning, role, changes, message):
    with pytest.raises(SpecInvalidError, match=message):
        check_fit(_network(), _data(), learning, **{role: _network(**changes)})


def test_a_student_or_teacher_may_be_built_otherwise(learning):
    other = _network(
        ops={"MatMul": 9}, outputs=[{"name": "scores", "dtype": "float16", "shape": [None, 5]}], parameters=3
    )
    assert check_fit(_network(), _data(), learning, student=other, teacher=other) == []


def test_the_recipe_is_for_the_student(learning):
    quantized = _network(quantized="fully")
    assert check_fit(quantized, _data(), learning, student=_network()) == []
    with pytest.raises(SpecInvalidError, match="fully quantized"):
        check_fit(_network(), _data(), learning, student=quantized)


def test_a_student_without_a_step_that_teaches_is_refused():
    with pytest.raises(SpecInvalidError, match="no step of its recipe teaches") as refused:
        check_fit(_network(), _data(), _spec("simplify"), student=_network())
    assert "distill" in refused.value.hint


def test_a_finished_student_needs_no_step_that_teaches():
    spec = _spec("simplify").model_copy(update={"student_as_it_is": True})
    assert check_fit(_network(), _data(), spec, student=_network(quantized="fully")) == []
    for others in ({}, {"teacher": _network()}, {"student": _network(), "teacher": _network()}):
        with pytest.raises(SpecInvalidError, match=r"names no student|no step of its recipe teaches"):
            check_fit(_network(), _data(), spec, **others)
