"""Archives go through the child and come back as the files that were in them."""

import io
import zipfile

import numpy as np
import onnx
import pytest

from models import Artifact
from services import uploads


@pytest.fixture
def archive(network, tmp_path):
    folder = tmp_path / "export"
    folder.mkdir()
    model = onnx.load_from_string(network)
    onnx.save(model, folder / "net.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as made:
        for name in ("net.onnx", "weights.bin"):
            made.write(folder / name, name)
    return stream.getvalue()


def state(database, row):
    with database.reading() as session:
        return session.get_one(type(row), row.id)


def test_a_network_with_external_data_becomes_its_files(attempts, database, store, upload, archive):
    model = upload(uploads.register_model, archive)
    attempts.run(database.publisher.sent[0])
    found = state(database, model)
    assert found.state == "ready", found.problem
    assert found.inspection["external_data"]
    with database.reading() as session:
        stored = session.get_one(Artifact, ("default", found.artifact_digest))
        assert [file.path for file in stored.files] == ["model.onnx", "weights.bin"]
        assert all(store.exists("default", file.sha256) for file in stored.files)
        # The archive itself is not kept.
        assert session.get(Artifact, ("default", model.artifact_digest)) is None
    assert sum(path.is_file() for path in (attempts.settings.data_dir / "store").rglob("*")) == 2


def test_a_hostile_archive_is_rejected_and_leaves_nothing(attempts, database, upload):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as made:
        made.writestr("../net.onnx", b"x")
    model = upload(uploads.register_model, stream.getvalue())
    attempts.run(database.publisher.sent[0])
    found = state(database, model)
    assert (found.state, found.problem["code"]) == ("rejected", "model_invalid")
    assert not [path for path in (attempts.settings.data_dir / "store").rglob("*") if path.is_file()]


def test_samples_of_varying_size_become_ready(attempts, database, upload):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as made:
        for size in (2, 3):
            inner = io.BytesIO()
            np.savez(inner, x=np.ones(size, np.float32))
            made.writestr(f"{size}.npz", inner.getvalue())
    dataset = upload(uploads.register_dataset, stream.getvalue())
    attempts.run(database.publisher.sent[0])
    found = state(database, dataset)
    assert found.state == "ready", found.problem
    assert found.inspection["arrays"][0]["shape"] == [2, None]
