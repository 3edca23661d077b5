"""`python -m engine`: the same job without a service, with exit codes that mean something."""

import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import yaml

from engine.__main__ import main
from engine.measure import memory
from engine.report.run_facts import Memory


@pytest.fixture
def files(tmp_path, residual_cnn, images):
    (tmp_path / "net.onnx").write_bytes(residual_cnn())
    np.savez(tmp_path / "data.npz", image=images(24))
    return tmp_path


@pytest.fixture
def call(files, monkeypatch, capsys, short_measurements):
    """Run the command in this process, with short measurements; of memory tests/e2e/test_telemetry.py has the real ones."""
    monkeypatch.chdir(files)
    monkeypatch.setattr(memory, "probe", lambda *_: Memory(peak_rss_bytes=1, load_ms=1, first_run_ms=1))

    def make(*arguments):
        capsys.readouterr()
        code = main(list(arguments))
        out, err = capsys.readouterr()
        return code, out, err

    return make


def test_it_is_a_module_that_runs(files):
    done = subprocess.run(
        [sys.executable, "-m", "engine", "inspect", "net.onnx"], cwd=files, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["ops"]["Conv"] == 6


def test_inspects_datasets(call):
    code, out, _ = call("inspect", "data.npz")
    assert code == 0
    assert json.loads(out)["samples"] == 24


def test_compresses_and_says_so_with_its_exit_code(call, files):
    (files / "recipe.json").write_text(json.dumps({"passes": [{"type": "simplify"}]}))
    code, _, err = call("run", "net.onnx", "recipe.json", "--data", "data.npz", "--out", "made")
    assert code == 0, err
    assert sorted(file.name for file in (files / "made").iterdir()) == [
        "model.onnx",
        "report.json",
        "report.junit.xml",
        "report.md",
        "report.prom",
    ]
    assert "step 1: simplify" in err
    spec = {
        "recipe": {"passes": [{"type": "simplify"}]},
        "gates": [{"metric": "size_bytes", "rule": "max_ratio", "value": 0.1}],
    }
    (files / "job.yaml").write_text(yaml.safe_dump(spec))
    code, out, _ = call("run", "net.onnx", "job.yaml", "--data", "data.npz", "--out", "made")
    assert code == 3
    assert "fail: size_bytes" in out


def test_what_genai_reads_beside_a_network_goes_along(call, files):
    (files / "genai_config.json").write_text(json.dumps({"model": {"decoder": {"filename": "net.onnx"}}}))
    (files / "tokenizer.json").write_text("{}")
    (files / "job").mkdir()
    (files / "job" / "recipe.json").write_text(json.dumps({"passes": [{"type": "simplify"}]}))
    code, _, err = call("run", "net.onnx", "job/recipe.json", "--data", "data.npz", "--out", "made")
    assert code == 0, err
    assert "genai_config.json, tokenizer.json for onnxruntime-genai" in err
    configuration = json.loads((files / "made" / "genai_config.json").read_text())
    assert configuration["model"]["decoder"]["filename"] == "model.onnx"
    assert (files / "made" / "tokenizer.json").read_text() == "{}"


def test_a_second_file_judges(call, files, images):
    np.savez(files / "judge.npz", image=images(7, seed=3))
    (files / "recipe.json").write_text(json.dumps({"passes": [{"type": "simplify"}]}))
    data = ("--data", "data.npz", "--judge", "judge.npz")
    code, _, err = call("run", "net.onnx", "recipe.json", *data, "--out", "made")
    assert code == 0, err
    parts = json.loads((files / "made" / "report.json").read_text())["parts"]
    assert (parts["calibrate"], parts["select"], parts["judge"], parts["select_is_judge"]) == (12, 12, 7, False)
    code, _, err = call("run", "net.onnx", "recipe.json", "--judge", "judge.npz", "--out", "made")
    assert code == 4
    assert "none to calibrate and choose with" in err


def test_bad_input_has_its_own_codes(call, files):
    (files / "bad.json").write_text(json.dumps({"passes": [{"type": "magic"}]}))
    (files / "bad.yaml").write_text("passes: [unclosed")
    for name, told in (
        ("bad.json", "bad.json is not a job"),
        ("bad.yaml", "bad.yaml is not a job"),
        ("none.yaml", "no file none.yaml, and no recipe of that name: small, fast, fastest"),
    ):
        code, _, err = call("run", "net.onnx", name, "--out", "made")
        assert (code, told in err) == (2, True), err
    (files / "good.json").write_text(json.dumps({"passes": [{"type": "simplify"}]}))
    code, _, err = call("run", "net.onnx", "good.json", "--baseline", "net.onnx", "--out", "made")
    assert code == 2
    assert "--baseline is for profiles" in err
    (files / "text.onnx").write_text("not a network")
    code, _, err = call("inspect", "text.onnx")
    assert code == 4
    assert "not an ONNX network" in err


def test_a_report_repeats_what_was_done_to_the_data(call, files):
    said = {"kind": "images", "summary": "24 images,\n<b>3 x 32 x 32</b>.", "parameters": {"scale": 0.5}}
    with zipfile.ZipFile(files / "data.npz", "a") as archive:
        archive.writestr("dataset.json", json.dumps(said))
    (files / "recipe.json").write_text(json.dumps({"passes": [{"type": "simplify"}]}))
    code, _, err = call("run", "net.onnx", "recipe.json", "--data", "data.npz", "--out", "made")
    assert code == 0, err
    assert json.loads((files / "made" / "report.json").read_text())["preprocessing"]["parameters"] == {"scale": 0.5}
    # Somebody's words stay one line of text.
    assert "Data: 24 images, &lt;b>3 x 32 x 32&lt;/b>." in (files / "made" / "report.md").read_text()


@pytest.mark.parametrize(("name", "told"), [("none.npz", "not there"), (".", "a folder")])
def test_data_that_are_no_file(call, files, name, told):
    (files / "recipe.json").write_text(json.dumps({"passes": [{"type": "simplify"}]}))
    code, _, err = call("run", "net.onnx", "recipe.json", "--data", name, "--out", "made")
    assert code == 4
    assert told in err


def test_a_student_and_a_teacher_lie_beside_the_network(call, files, residual_cnn):
    (files / "recipe.json").write_text(
        json.dumps({"passes": [{"type": "distill", "steps": 1, "learning_rate": 0.001}]})
    )
    (files / "tiny.onnx").write_bytes(residual_cnn())
    words = ["run", "net.onnx", "recipe.json", "--data", "data.npz", "--out", "made"]
    code, _, err = call(*words, "--student", "tiny.onnx", "--teacher", "net.onnx")
    assert code == 0, err
    report = json.loads((files / "made" / "report.json").read_text())
    assert (report["student"]["name"], report["teacher"]["name"]) == ("tiny", "net")
    (files / "recipe.json").write_text(json.dumps({"kind": "profile", "targets": [{"provider": "cpu"}]}))
    code, _, err = call(*words, "--student", "tiny.onnx")
    assert code == 2
    assert "--student is for compressions" in err
