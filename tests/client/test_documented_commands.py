"""What README, docs, examples and the skill say to type is typed, page by page in its order, against the live service.

What would take long is asked as a dry run: everything is read, uploaded and checked by the service, and not done. What cannot be
typed here says why, and who does it.
"""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import wave
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in (
        ROOT / "README.md",
        *ROOT.glob("client/*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("docs/passes/*.md"),
        *ROOT.glob("examples/**/*.md"),
        *ROOT.glob("skills/**/*.md"),
    )
    if "```sh\n" in path.read_text()
)
# A part of a line, and why it is not typed here.
NOT_HERE = {
    "make ": "sets up an environment; CI types `make demo`, tests/client runs what `make serve` does",
    "pip install ": "installs from an index",
    "onnxpress-server ": "tests/standalone/test_documented.py",
    "python -m engine ": "tests/engine/test_main.py",
    "onnxpress front ": "takes a finished search: tests/e2e/test_searches.py",
    "onnxpress pick ": "takes a finished search: tests/e2e/test_searches.py",
    "onnxpress mcp": "talks to an agent: tests/client/test_mcp.py",
    "oci://": "takes a registry: tests/client/test_exports.py",
    "mlflow://": "takes an MLflow server: tests/client/test_mlflow.py",
    "model_signing ": "tests/client/test_exports.py",
    "keras": "keras is not installed: the page says what it was run with",
    "serve.py ": "tests/client/test_examples.py",
    ":9000/predict": "tests/client/test_examples.py",
    "distill.json": "takes a worker with PyTorch: tests/e2e/test_training.py",
    " whk_01": "takes a receiver: tests/api/test_webhooks.py",
    "cuda": "takes a GPU",
    "--target openvino": "takes a worker with OpenVINO: tests/e2e/test_targets.py",
    "box_f1": "takes a detector: tests/engine/measure",
    "perplexity": "takes a decoder: tests/engine/job/test_decoders.py",
}
# Parts of lines whose jobs take a few seconds and are done; the step of a pipeline is in tests/client/test_pipelines.py.
DONE = ("--recipe simplify",)
# The extra `text` of the client.
HAS_TOKENIZERS = find_spec("tokenizers") is not None
# Blocks whose lines need what another one says.
SCRIPTS = {"README.md": "tests/e2e/test_readme_curl.py", "docs/transfers.md": "test_an_upload_in_pieces_by_curl"}


def _blocks(page):
    return re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def _commands(page):
    for block in _blocks(page):
        is_script = page in SCRIPTS and re.search(r"^[A-Z]+=", block, re.MULTILINE)
        for line in () if is_script else block.replace("\\\n", " ").splitlines():
            if line.strip() and not re.match("#|[A-Z_]+=", line):
                yield " ".join(line.split())


def _is_typed_here(line):
    is_text = "dataset text" in line or "sentences.npz" in line
    return not any(part in line for part in NOT_HERE) and (HAS_TOKENIZERS or not is_text)


def _saved(path, nodes, inputs, outputs, **weights):
    path.parent.mkdir(parents=True, exist_ok=True)
    kinds = {"int64": TensorProto.INT64, "float32": TensorProto.FLOAT}
    infos = [
        [helper.make_tensor_value_info(name, kinds[kind], shape) for name, (kind, shape) in some.items()]
        for some in (inputs, outputs)
    ]
    tensors = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "net", *infos, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


def _networks(folder):
    """Make small networks of the kinds that pages speak of."""
    node, random = helper.make_node, np.random.default_rng(0).standard_normal
    tokens = {name: ("int64", ["n", 128]) for name in ("input_ids", "attention_mask")}
    masked = [node("Cast", ["attention_mask"], ["m"], to=1), node("Unsqueeze", ["m", "last"], ["mask"])]
    found = [node("Gather", ["table", "input_ids"], ["rows"]), *masked, node("Mul", ["rows", "mask"], ["kept"])]
    last = [node("Constant", [], ["last"], value_ints=[-1]), node("Constant", [], ["one"], value_ints=[1])]
    mean = [node("ReduceMean", ["kept", "one"], ["sentence_embedding"], keepdims=0)]
    sentence = {"sentence_embedding": ("float32", ["n", 16])}
    _saved(folder / "encoder.onnx", [*last, *found, *mean], tokens, sentence, table=random((64, 16)))
    for name, width in (("voice", 32000), ("forest", 3)):
        given, said = {"input": ("float32", ["n", width])}, {"scores": ("float32", ["n", 2])}
        _saved(folder / f"{name}.onnx", [node("MatMul", ["input", "w"], ["scores"])], given, said, w=random((width, 2)))


def _tokenizer(path):
    tokenizers = importlib.import_module("tokenizers")
    words = {word: at for at, word in enumerate(("[PAD]", "[UNK]", "good", "bad"))}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(path))


def _raw_data(folder):
    """Make images, recordings, texts and a table of the names that pages give them."""
    pillow = pytest.importorskip("PIL.Image", reason="the extra `images` of the client")
    random = np.random.default_rng(0)
    for name in ("photos", "FOLDER"):
        for kind in ("cats", "dogs"):
            (folder / name / kind).mkdir(parents=True)
            image = pillow.fromarray(random.integers(0, 255, (300, 300, 3), dtype=np.uint8))
            image.save(folder / name / kind / "1.png")
    (folder / "recordings").mkdir()
    for at in range(2):
        with wave.open(str(folder / "recordings" / f"{at}.wav"), "wb") as file:
            file.setparams((1, 2, 16000, 0, "NONE", ""))
            file.writeframes(random.integers(-9999, 9999, 16000 * 4, dtype=np.int16).tobytes())
    if HAS_TOKENIZERS:
        _tokenizer(folder / "tokenizer.json")
    (folder / "sentences.txt").write_text("good\nbad\n" * 64)
    (folder / "reviews.csv").write_text("text,mood\n" + "good,1\nbad,0\n" * 8)
    (folder / "rows.csv").write_text("a,b,c,outcome\n" + "1,2,3,0\n4,5,7,1\n" * 64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, net, npz):
    """Give a folder with everything that pages name; what one command writes is there for the next."""
    made = tmp_path_factory.mktemp("documented")
    for name in ("model", "old", "small", "tiny", "large"):
        shutil.copy(net, made / f"{name}.onnx")
    shutil.copy(npz, made / "data.npz")
    (made / "distill.json").symlink_to(ROOT / "examples/fashion-mnist/distill.json")
    (made / "examples").symlink_to(ROOT / "examples")
    _networks(made)
    _raw_data(made)
    return made


@pytest.fixture(scope="module")
def ids(service, network, compressed):
    """Give what stands for the ids on the pages; production has been moved once, so there is a way back."""
    for name in ("prod", "production"):
        service.aliases.move(name, network)
        service.aliases.move(name, compressed.output_model)
    yield {r"\bJOB\b|job_01\w+": compressed.id, r"mdl_\.\.\.": network}
    for name in ("prod", "production"):
        service.aliases.remove(name)


@pytest.fixture
def typed(embedded, key, cli, folder, ids, monkeypatch):
    """Give a function that types a line and holds it to exit code 0."""
    monkeypatch.chdir(folder)
    # What is sent again in one run is not stored again.
    monkeypatch.setenv("ONNXPRESS_RUN_ID", "documented")

    def type_line(line):
        for pattern, meant in ids.items():
            line = re.sub(pattern, meant, line)
        words = shlex.split(line, comments=True)
        if words[0] != "onnxpress":
            access = {"ONNXPRESS_URL": embedded.url, "ONNXPRESS_API_KEY": key}
            env = {"PATH": os.environ["PATH"], **access}
            subprocess.run(["bash", "-euo", "pipefail", "-c", line], env=env, check=True, capture_output=True)
            return
        if words[1] in {"compress", "profile"} and not any(part in line for part in DONE):
            words.append("--dry-run")
        if words[1] == "export":
            shutil.rmtree(words[words.index("--to") + 1], ignore_errors=True)
        done = cli(embedded.url, key, *words[1:])
        assert done.code == 0, f"{line}\n{done.stderr}"

    return type_line


@pytest.mark.parametrize("page", [page for page in PAGES if any(map(_is_typed_here, _commands(page)))])
def test_a_page_is_typed(page, typed):
    for line in filter(_is_typed_here, _commands(page)):
        typed(line)


def test_what_is_not_typed_is_there():
    lines = [line for page in PAGES for line in _commands(page)]
    assert [part for part in NOT_HERE if not any(part in line for line in lines)] == []
    for reason in (*NOT_HERE.values(), *SCRIPTS.values()):
        for named in re.findall(r"tests/[\w/.]+", reason):
            assert (ROOT / named).exists(), named


def test_an_upload_in_pieces_by_curl(embedded, net, tmp_path):
    (block,) = (each for each in _blocks("docs/transfers.md") if "UPLOAD" in each)
    (tmp_path / "var").symlink_to(embedded.data_dir)
    shutil.copy(net, tmp_path / "model.onnx")
    script = block.replace("http://127.0.0.1:8765", embedded.url)
    command = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert '"id":"mdl_' in done.stdout.replace(" ", ""), done.stdout
