"""What goes in is a copy, what comes out is checked."""

import json
import os

import pytest

from services.claims import Claim, Input, Order
from worker.workspace import OutputInvalidError, Outputs, Workspace

LIMIT = 1000


def beat():
    return None


REPORTS = ["report.json", "report.junit.xml", "report.md", "report.prom"]


@pytest.fixture
def prepare(tmp_path, store):
    def prepare(attempt, inputs=(), verb="run", **more):
        about = {"unit_id": "unt_1", "job_id": "job_1", **more}
        claim = Claim(
            **about,
            tenant_id="default",
            kind=verb,
            token="t",
            attempt=attempt,
            order=Order(verb),
            declarations={"data": {"metric": "top1"}, "judge": {"outputs": {"logits": {"ignore": True}}}},
            inputs=tuple(inputs),
            runtime_s=1,
            memory_mb=1,
        )
        return Workspace.prepare(tmp_path / "work", claim, store, beat)

    return prepare


@pytest.fixture
def filled(prepare):
    workspace = prepare(1)
    for name in ("model.onnx", *REPORTS):
        (workspace.path / "out" / name).write_text(name)
    return workspace


def test_inputs_are_copies(prepare, store):
    stored = store.put("default", [b"net"], limit=10)
    workspace = prepare(1, [Input("model/model.onnx", stored.sha256, 3)])
    path = workspace.path / "model" / "model.onnx"
    assert path.read_bytes() == b"net"
    assert path.stat().st_nlink == 1
    path.write_bytes(b"changed")
    assert b"".join(store.read("default", stored.sha256)) == b"net"


def test_what_was_declared_lies_beside_the_data(prepare):
    workspace = prepare(1)
    read = {name: json.loads((workspace.path / name / "dataset.json").read_text()) for name in ("data", "judge")}
    assert read == {"data": {"metric": "top1"}, "judge": {"outputs": {"logits": {"ignore": True}}}}


def test_what_a_unit_of_a_search_prepared_is_there_for_the_others_of_that_search_alone(prepare, tmp_path):
    first = prepare(1, verb="variants")
    cache = first.path / "cache"
    cache.mkdir()
    (cache / "prepared.onnx").write_text("net")
    (tmp_path / "secret").write_text("secret")
    (cache / "linked.onnx").symlink_to(tmp_path / "secret")
    first.keep_cache(beat)
    for verb in ("search", "variants", "trial"):
        found = prepare(1, verb=verb, unit_id="unt_2").path / "cache"
        assert {path.name: path.read_text() for path in found.iterdir()} == {"prepared.onnx": "net"}
    for others in ({"job_id": "job_2"}, {"verb": "run"}, {"job_id": None}):
        assert not (prepare(1, **{"verb": "trial", "unit_id": "unt_3", **others}).path / "cache").exists()


def test_checkpoints_go_on_to_the_next_attempt(prepare, tmp_path):
    first = prepare(1)
    (first.path / "steps" / "00.onnx").write_text("net")
    (first.path / "steps" / "00.json").write_text("{}")
    (first.path / "steps" / "odd").write_text("x")
    (tmp_path / "secret").write_text("secret")
    (first.path / "steps" / "01.onnx").symlink_to(tmp_path / "secret")
    kept = first.path / "steps" / "01.checkpoint"
    (kept / "folder").mkdir(parents=True)
    (kept / "observed-1.npz").write_text("statistics")
    (kept / "link").symlink_to(tmp_path / "secret")
    second = prepare(3)
    steps = second.path / "steps"
    assert sorted(path.name for path in steps.iterdir()) == ["00.json", "00.onnx", "01.checkpoint"]
    assert [path.name for path in (steps / "01.checkpoint").iterdir()] == ["observed-1.npz"]
    assert not first.path.exists()


def test_what_an_attempt_leaves_that_is_not_the_last_is_its_checkpoints(prepare, tmp_path):
    first = prepare(1)
    (first.path / "steps" / "00.checkpoint").mkdir()
    (first.path / "steps" / "00.checkpoint" / "training.pt").write_text("weights")
    (first.path / "model" / "model.onnx").write_text("net")
    (tmp_path / "elsewhere").mkdir()
    (first.path / "link").symlink_to(tmp_path / "elsewhere")
    first.remove(whole_unit=False)
    assert [path.name for path in first.path.iterdir()] == ["steps"]
    assert (tmp_path / "elsewhere").exists()
    second = prepare(2)
    assert (second.path / "steps" / "00.checkpoint" / "training.pt").read_text() == "weights"
    second.remove(whole_unit=True)
    assert not second.unit.exists()


def test_a_folder_that_became_a_link_is_not_followed(prepare, tmp_path):
    first = prepare(1)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "00.json").write_text("{}")
    (first.path / "steps").rmdir()
    (first.path / "steps").symlink_to(tmp_path / "elsewhere")
    assert list((prepare(2).path / "steps").iterdir()) == []


def test_outputs_are_stored_but_not_yet_visible(filled, store):
    with filled.outputs(store, "default", "network", LIMIT, beat) as outputs:
        assert [file.path for file in outputs.model_files] == ["model.onnx"]
        assert [file.path for file in outputs.report_files] == REPORTS
        [digest] = [file.writer.finish().sha256 for file in outputs.model_files]
        assert not store.exists("default", digest)
        outputs.model_files[0].writer.place()
    assert store.exists("default", digest)
    assert list((store._root / "incoming").iterdir()) == []


@pytest.mark.parametrize("harm", ["missing", "symlink", "hardlink", "pipe", "folder", "large", "name", "out is a link"])
def test_odd_outputs_are_refused_and_leave_nothing(filled, store, tmp_path, harm):
    out = filled.path / "out"
    (tmp_path / "secret").write_text("secret")
    model = out / "model.onnx"
    if harm != "name":
        model.unlink()
    match harm:
        case "symlink":
            model.symlink_to(tmp_path / "secret")
        case "hardlink":
            model.hardlink_to(tmp_path / "secret")
        case "pipe":
            os.mkfifo(model)
        case "folder":
            model.mkdir()
        case "large":
            model.write_bytes(b"x" * (LIMIT + 1))
        case "name":
            (out / "-x y").write_text("x")
        case "out is a link":
            out.rename(tmp_path / "elsewhere")
            out.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputInvalidError), filled.outputs(store, "default", "network", LIMIT, beat):
        pass
    assert list((store._root / "incoming").iterdir()) == []


@pytest.mark.parametrize("leaves", ["network", "reports"])
def test_a_newer_childs_report_format_is_stored_with_the_others(filled, store, leaves):
    out = filled.path / "out"
    if leaves == "reports":
        (out / "model.onnx").unlink()
    (out / "report.sarif").write_text("{}")
    (out / "report.md").unlink()
    with filled.outputs(store, "default", leaves, LIMIT, beat) as outputs:
        found = [file.path for file in outputs.report_files]
    assert found == ["report.json", "report.junit.xml", "report.prom", "report.sarif"]


@pytest.mark.parametrize("name", ["notes.txt", "report.", "report", "model.onnx"])
def test_where_only_reports_are_agreed_nothing_else_is_taken(filled, store, name):
    out = filled.path / "out"
    if name != "model.onnx":
        (out / "model.onnx").unlink()
        (out / name).write_text("x")
    with pytest.raises(OutputInvalidError), filled.outputs(store, "default", "reports", LIMIT, beat):
        pass


def test_a_unit_that_leaves_nothing_has_nothing_taken(filled, store):
    with filled.outputs(store, "default", "nothing", LIMIT, beat) as outputs:
        assert outputs == Outputs((), ())
