"""One worker's work in this process: real database, real store, real children."""

import io

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from services import db, keys
from services.storage import Folder
from settings import Settings
from worker.attempt import Attempts


class Queue:
    """A publisher that keeps its messages."""

    def __init__(self):
        self.sent = []

    def publish(self, queue, unit_id):
        self.sent.append(unit_id)
        return True


@pytest.fixture
def settings(tmp_path):
    return Settings(data_dir=tmp_path, lease_s=30, renew_s=0.2)


@pytest.fixture
def database(settings, migrate):
    migrate(settings)
    made = db.Database.from_settings(settings, Queue())
    with made.transaction() as session:
        keys.ensure_tenant(session, "default")
    yield made
    made.dispose()


@pytest.fixture
def store(settings):
    return Folder(settings.data_dir / "store")


@pytest.fixture
def attempts(database, store, settings):
    workspaces = settings.data_dir / "work"
    workspaces.mkdir()
    return Attempts(
        database,
        store,
        settings,
        workspaces,
        worker_id="wrk_1",
        queues=frozenset({"inspect", "run.cpu"}),
        draining=lambda: False,
    )


@pytest.fixture
def upload(database, store):
    def upload(register, content, **fields):
        with store.writer("default", limit=1 << 20) as writer:
            writer.write(content)
            writer.finish()
            with database.transaction() as session:
                return register(session, "default", writer, name="x", **fields)

    return upload


@pytest.fixture
def network():
    weights = numpy_helper.from_array(np.ones((3, 2), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["image", "w"], ["logits"])],
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 2])],
        [weights],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


@pytest.fixture
def data():
    stream = io.BytesIO()
    np.savez(stream, image=np.zeros((8, 3), np.float32))
    return stream.getvalue()
