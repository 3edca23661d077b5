import json

import numpy as np
import pytest

from engine.errors import SpecInvalidError
from engine.goal import Goal, Space
from engine.job.variants import measure_variants
from engine.search import kernel_times, measuring
from engine.search.library import VariantLibrary
from engine.search.prediction import Prediction
from engine.search.values import Point
from engine.spec import Search
from engine.target import Target


@pytest.fixture
def job(workspace, residual_cnn, images, monkeypatch):
    monkeypatch.setattr(kernel_times, "_SECONDS", 0.05)
    monkeypatch.setattr(kernel_times, "_PROFILED_RUNS", 5)
    folder = workspace(residual_cnn(), image=images(64))
    space = Space(widths=(1.0, 0.5), precisions=("float32", "static"), train=False)
    return Search(kind="search", goal=Goal(), space=space, target=Target(threads=1), outputs={}), folder


def piece(job, part):
    spec, folder = job
    return json.loads(json.dumps(measure_variants(spec, folder, lambda _event: None, part=part)))


def test_a_library_is_measured_part_by_part_and_predicts(job):
    parts = ["structure", "times:static:0", "precision:static", "group:channels:a1"]
    library = VariantLibrary.of({part: piece(job, part) for part in parts})
    predicted = Prediction(library, []).predict(Point(widths={"channels:a1": 8}, precision="static"))
    assert predicted.latency_ratio > 0
    assert predicted.size_bytes < library.structure.file_bytes / 2
    assert predicted.damage == library.width_damage("channels:a1", 8) + library.precision_damage("static") > 0


def test_damage_is_the_same_wherever_and_whenever_it_is_measured(job):
    assert piece(job, "group:channels:a1") == piece(job, "group:channels:a1")


def test_a_part_that_cannot_be_measured_says_so(job, monkeypatch):
    with pytest.raises(SpecInvalidError, match="no part `times:float16:0`"):
        piece(job, "times:float16:0")


def test_nothing_is_left_half_done_where_a_part_dies(job, monkeypatch):
    whole = piece(job, "precision:static")
    with monkeypatch.context() as patch:
        patch.setattr(measuring, "VariantMaker", _dies)
        with pytest.raises(KeyboardInterrupt):
            piece(job, "precision:static")
    assert piece(job, "precision:static") == whole


def _dies(*_arguments):
    raise KeyboardInterrupt


def test_samples_that_judge_are_not_looked_at(job):
    _, folder = job
    (folder / "judge").mkdir()
    np.savez(folder / "judge" / "data.npz", allow_pickle=False, image=np.zeros((1, 1), np.float32))
    assert piece(job, "precision:static")["variants"][0]["damage"] > 0
