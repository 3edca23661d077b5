"""One tenant's network that never ends costs another tenant's job nothing but a wait with an end."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

import engine
from services import artifacts, jobs, keys, uploads

HOSTILE = "hostile"


def endless():
    """A network whose Loop goes round for ever: it passes every check, and never answers."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["on_again"]), helper.make_node("Add", ["sum", "one"], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["N", 2]),
        ],
        [
            helper.make_tensor_value_info("on_again", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, ["N", 2]),
        ],
        [numpy_helper.from_array(np.zeros((1, 1), np.float32), "one")],
    )
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["image", "w"], ["logits0"]),
            helper.make_node("Loop", ["", "true", "logits0"], ["logits"], body=body),
        ],
        "endless",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 2])],
        [
            numpy_helper.from_array(np.ones((3, 2), np.float32), "w"),
            numpy_helper.from_array(np.array(True), "true"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def test_a_job_ends_beside_another_tenants_that_never_does(system):
    system.start_worker(concurrency=2)
    inputs = system.inputs()
    with system.store.writer(HOSTILE, limit=1 << 30) as writer:
        writer.write(endless())
        writer.finish()
        with system.database.transaction() as session:
            keys.ensure_tenant(session, HOSTILE)
            model = uploads.register_model(session, HOSTILE, writer, name="endless")
    model = system.until(
        lambda session: (one := artifacts.get_model(session, HOSTILE, model.id)).state != "checking" and one
    )
    assert model.state == "ready", model.problem
    spec = engine.read_spec({"kind": "profile", "targets": [{"provider": "cpu"}], "limits": {"max_runtime_s": 600}})
    with system.database.transaction() as session:
        hostile = jobs.submit(session, HOSTILE, jobs.Request(model.id, None, spec, {})).job.id
    system.until(lambda session: jobs.get(session, HOSTILE, hostile).status == "running")
    job = system.wait_final(system.submit(inputs, limits={"max_runtime_s": 60}))
    assert (job.status, job.problem) == ("succeeded", None)
    kinds = [event.type for event in system.events(job.id)]
    with system.database.reading() as session:
        assert jobs.get(session, HOSTILE, hostile).status == "running"
    # The wait was told of, and was of nobody's run time.
    assert kinds.count("waiting_for_quiet") == kinds.count("quiet") >= 1
    with system.database.transaction() as session:
        jobs.cancel(session, HOSTILE, hostile)
    system.until(lambda session: jobs.get(session, HOSTILE, hostile).status == "cancelled")
    system.assert_no_child_left()
