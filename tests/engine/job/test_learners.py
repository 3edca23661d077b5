"""A job with a student or a teacher: the recipe works on the student, everything is measured beside the original."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine import Compress, run
from engine.errors import SpecInvalidError
from engine.report.markdown import markdown
from engine.report.run_facts import Memory

pytestmark = pytest.mark.usefixtures("short_measurements")

DISTILL = {"type": "distill", "steps": 30, "learning_rate": 0.02, "batch": 16}
# So slowly that nothing is learnt.
IDLE = {"type": "distill", "steps": 1, "learning_rate": 1e-9}


def small(classes=5, size=12):
    """A network of another architecture for the same images: an average of each channel and a product."""
    weight = np.random.default_rng(5).normal(size=(3, classes)).astype(np.float32)
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, size, size])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", None])],
        [numpy_helper.from_array(weight, "weight")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


@pytest.fixture
def job(workspace, residual_cnn, images):
    """Run a job whose workspace has a student, a teacher, or both."""

    def make(*passes, **networks):
        folder = workspace(residual_cnn(), name="job", image=images(120))
        for role, serialized in networks.items():
            (folder / role).mkdir()
            (folder / role / "model.onnx").write_bytes(serialized)
        probe = Memory(peak_rss_bytes=1, load_ms=1, first_run_ms=1)
        names = {role: f"my {role}" for role in networks}
        spec = Compress.model_validate({"recipe": {"passes": list(passes or (DISTILL,))}})
        return run(spec, folder, lambda _event: None, probe=lambda *_: probe, names=names), folder / "out"

    return make


def test_the_recipe_works_on_the_student_and_the_report_says_whose_it_is(job, residual_cnn):
    report, out = job(student=small(), teacher=residual_cnn())
    made = onnx.load(out / "model.onnx")
    assert [node.op_type for node in made.graph.node] == ["GlobalAveragePool", "Flatten", "MatMul"]
    assert (report.student.name, report.teacher.name) == ("my student", "my teacher")
    assert report.student.facts.parameters == 15
    assert report.teacher.facts.sha256 == report.original.sha256 != report.student.facts.sha256
    # Beside the original, before anything was done.
    assert [step.status for step in report.steps] == ["applied"], report.steps
    assert report.steps[0].quality[0].compressed > report.student.quality[0].compressed
    assert report.size.compressed < report.size.original
    assert not report.unchanged
    text = markdown(report)
    assert f"the student (`my student`: sha256 {report.student.facts.sha256}, 15 parameters" in text
    assert f"the teacher (`my teacher`: sha256 {report.teacher.facts.sha256}" in text
    assert json.loads((out / "report.json").read_text())["student"]["name"] == "my student"


def test_a_student_that_was_taught_nothing_is_said_to_be_as_it_came(job):
    # Its layers are not the original's, whatever they are called: there is nothing to refit them to but themselves.
    report, _ = job(IDLE, {"type": "reconstruct"}, student=small())
    assert report.teacher is None
    assert [step.status for step in report.steps] == ["refused", "refused"]
    [said] = [warning for warning in report.warnings if "was not trained" in warning]
    assert report.steps[0].refusal.reason in said


def test_the_number_of_classes_is_seen_when_it_runs_where_it_is_not_declared(job):
    with pytest.raises(
        SpecInvalidError, match=r"Output `scores` is \[1, 7\] in the student and \[1, 5\] in the network"
    ):
        job(student=small(classes=7))
