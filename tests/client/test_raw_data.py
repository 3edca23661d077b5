"""Recordings, texts, tables and arrays become what the engine takes, and the file says what was done to them."""

import io
import struct
import wave
import zipfile

import numpy as np
import pytest
from PIL import Image

from engine import DatasetInspection, inspect_dataset
from engine.data.dataset import Dataset
from onnxpress import (
    Pixels,
    Sound,
    UsageError,
    audio_to_npz,
    csv_to_npz,
    images_to_npz,
    npy_to_npz,
    texts_to_npz,
)
from onnxpress.npz import DECLARATION, DECLARATION_BYTES


def opened(path, scratch) -> tuple[Dataset, DatasetInspection]:
    """Open a file as the engine does; its declaration has to be what the engine reads."""
    found = inspect_dataset(path)
    assert found.preprocessing is not None
    return Dataset.open(path, scratch), found


# Images


@pytest.fixture
def gradient(tmp_path):
    """An image of 20 x 40 whose red grows to the right and whose green grows down."""
    rows, columns = np.mgrid[0:20, 0:40]
    pixels = np.stack([columns * 6, rows * 12, np.full_like(rows, 7)], axis=-1).astype(np.uint8)
    (tmp_path / "pictures").mkdir()
    Image.fromarray(pixels).save(tmp_path / "pictures" / "one.png")
    return tmp_path / "pictures", pixels


def test_the_middle_is_cut_out_of_what_was_resized(gradient, tmp_path):
    folder, pixels = gradient
    how = Pixels(12, 12, resize=20, interpolation="nearest", layout="nhwc")
    made = images_to_npz(folder, tmp_path / "x.npz", name="x", pixels=how)
    data, found = opened(made.path, tmp_path)
    np.testing.assert_array_equal(data.arrays["x"][0], pixels[4:16, 14:26])
    said = found.preprocessing
    assert said.kind == "images"
    assert said.parameters["resize"] == 20
    assert said.parameters["dtype"] == "uint8"
    for words in ("shorter side is 20", "12 x 12", "nearest", "NHWC", "red, green, blue", "uint8"):
        assert words in said.summary


def test_blue_comes_first_where_it_was_asked_for(gradient, tmp_path):
    folder, pixels = gradient
    how = Pixels(20, 40, bgr=True, scale=1 / 255, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    made = images_to_npz(folder, tmp_path / "x.npz", name="x", pixels=how)
    wanted = (pixels[..., ::-1] / 255 - np.array([0.1, 0.2, 0.3])) / np.array([0.5, 0.6, 0.7])
    data, found = opened(made.path, tmp_path)
    np.testing.assert_allclose(data.arrays["x"][0].transpose(1, 2, 0), wanted, atol=2e-6)
    assert "blue, green, red" in found.preprocessing.summary
    assert "(0.1, 0.2, 0.3)" in found.preprocessing.summary


def test_classes_in_an_order_of_their_own_and_images_without_one(gradient, tmp_path):
    folder, _ = gradient
    for name in ("cat/a/deep.png", "dog/b.png"):
        (folder / name).parent.mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(folder / name)
    made = images_to_npz(folder, tmp_path / "x.npz", name="x", pixels=Pixels(4, 4), classes=["dog", "cow", "cat"])
    data, found = opened(made.path, tmp_path)
    assert data.label.tolist() == [0, 2, -1]
    assert (found.labelled, found.unlabelled) == (2, 1)
    assert found.preprocessing.classes == ("dog", "cow", "cat")
    with pytest.raises(UsageError, match="'dog' is not among the classes"):
        images_to_npz(folder, tmp_path / "y.npz", name="x", pixels=Pixels(4, 4), classes=["cat"])
    assert not (tmp_path / "y.npz").exists()


def test_images_that_would_be_read_wrongly(gradient, tmp_path):
    folder, _ = gradient
    Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(folder / "deep.png")
    with pytest.raises(UsageError, match=r"deep\.png has more than 8 bits"):
        images_to_npz(folder, tmp_path / "x.npz", name="x", pixels=Pixels(4, 4))
    # Nothing half written is left behind.
    assert not (tmp_path / "x.npz").exists()
    for wrong in ({"mean": (0.5, 0.5)}, {"std": (0.0,)}, {"resize": 3}):
        with pytest.raises(UsageError):
            Pixels(4, 4, **wrong)


# Recordings


def record(path, values, *, rate=16000, width=2, channels=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        if width == 1:
            file.writeframes(bytes(value + 128 for value in values))
        else:
            file.writeframes(b"".join(value.to_bytes(width, "little", signed=True) for value in values))


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_integers_of_every_width_are_from_minus_one_to_one(tmp_path, width):
    full = 1 << (8 * width - 1)
    record(tmp_path / "in" / "a.wav", [0, full // 2, -full, full // 4], width=width)
    made = audio_to_npz(tmp_path / "in", tmp_path / "x.npz", name="sound", sound=Sound(16000))
    data, found = opened(made.path, tmp_path)
    np.testing.assert_array_equal(data.arrays["sound"], [[0, 0.5, -1, 0.25]])
    assert found.preprocessing.parameters["rate"] == 16000
    assert "16000 Hz" in found.preprocessing.summary


def test_channels_are_averaged_and_lengths_made_alike(tmp_path):
    record(tmp_path / "in" / "no" / "a.wav", [16384, 0, 8192, 8192, 0, 16384], channels=2)
    record(tmp_path / "in" / "yes" / "b.wav", [16384, 16384])
    cut = audio_to_npz(tmp_path / "in", tmp_path / "x.npz", name="s", sound=Sound(16000, 2, "cut", channel_axis=True))
    data, found = opened(cut.path, tmp_path)
    np.testing.assert_array_equal(data.arrays["s"], [[[0.25, 0.25]], [[0.5, 0.5]]])
    assert (data.label.tolist(), found.preprocessing.classes) == ([0, 1], ("no", "yes"))
    split = audio_to_npz(tmp_path / "in", tmp_path / "y.npz", name="s", sound=Sound(16000, 2, "split"))
    data, _ = opened(split.path, tmp_path)
    np.testing.assert_array_equal(data.arrays["s"], [[0.25, 0.25], [0.25, 0], [0.5, 0.5]])
    assert data.label.tolist() == [0, 0, 1]
    assert split.samples == 3


def test_recordings_that_do_not_fit(tmp_path):
    record(tmp_path / "in" / "a.wav", [1, 2])
    record(tmp_path / "in" / "b.wav", [1, 2, 3])
    with pytest.raises(UsageError, match=r"b\.wav has 3 values, but .*a\.wav has 2"):
        audio_to_npz(tmp_path / "in", tmp_path / "x.npz", name="s", sound=Sound(16000))
    with pytest.raises(UsageError, match=r"a\.wav has 16000 Hz, not 8000; convert it: ffmpeg"):
        audio_to_npz(tmp_path / "in", tmp_path / "x.npz", name="s", sound=Sound(8000, 2, "cut"))
    with pytest.raises(UsageError, match="a length is needed"):
        audio_to_npz(tmp_path / "in", tmp_path / "x.npz", name="s", sound=Sound(16000, fit="cut"))
    # Floats, which the standard library does not read.
    head = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 40, b"WAVE", b"fmt ", 16, 3, 1, 16000, 64000, 4, 32, b"data", 4)
    (tmp_path / "in" / "c.wav").write_bytes(head + bytes(4))
    with pytest.raises(UsageError, match=r"c\.wav is no WAV of integers"):
        audio_to_npz(tmp_path / "in", tmp_path / "x.npz", name="s", sound=Sound(16000, 2, "cut"))


# Texts


@pytest.fixture
def tokenizer(tmp_path):
    """A tokenizer as BERT's: words of a vocabulary, [CLS] before and [SEP] behind."""
    tokenizers = pytest.importorskip("tokenizers", reason="the extra `text` of the client")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "good", "film", "bad"]
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="[UNK]")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    made.enable_padding(pad_id=0)
    (tmp_path / "net").mkdir()
    made.save(str(tmp_path / "net" / "tokenizer.json"))
    return tmp_path / "net"


def test_texts_are_padded_and_the_padding_is_masked(tokenizer, tmp_path):
    (tmp_path / "t.txt").write_text("a good film\n\nbad\n")
    inputs = {"ids": "input_ids", "mask": "attention_mask", "types": "token_type_ids"}
    made = texts_to_npz(tmp_path / "t.txt", tmp_path / "x.npz", tokenizer=tokenizer, inputs=inputs)
    data, found = opened(made.path, tmp_path)
    np.testing.assert_array_equal(data.arrays["input_ids"], [[2, 4, 5, 6, 3], [2, 7, 3, 0, 0]])
    np.testing.assert_array_equal(data.arrays["attention_mask"], [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    assert not data.arrays["token_type_ids"].any()
    assert found.preprocessing.parameters["padding"] == {"to": 5, "side": "right", "id": 0, "mask": 0}
    assert len(found.preprocessing.parameters["tokenizer_sha256"]) == 64
    assert found.preprocessing.parameters["tokenizer"] == "net/tokenizer.json"
    assert "1 blank lines were left out" in found.preprocessing.summary


def test_texts_of_a_table_with_labels_cut_to_a_length(tokenizer, tmp_path):
    (tmp_path / "t.csv").write_text('text,mood\n"a good, good film",good\nbad,bad\n')
    (tmp_path / "t.jsonl").write_text('{"text": "a good, good film", "mood": "good"}\n{"text": "bad", "mood": "bad"}\n')
    for source in ("t.csv", "t.jsonl"):
        made = texts_to_npz(
            tmp_path / source,
            tmp_path / "x.npz",
            tokenizer=tokenizer / "tokenizer.json",
            length=4,
            column="text",
            label="mood",
        )
        data, found = opened(made.path, tmp_path)
        assert data.arrays["input_ids"].tolist() == [[2, 4, 5, 3], [2, 7, 3, 0]]
        assert (data.label.tolist(), found.preprocessing.classes) == ([1, 0], ("bad", "good"))
        assert "1 were cut to 4 tokens" in found.preprocessing.summary


def test_texts_of_their_own_lengths(tokenizer, tmp_path):
    (tmp_path / "t.csv").write_text("text,mood\na good film,good\nbad,bad\n")
    made = texts_to_npz(
        tmp_path / "t.csv", tmp_path / "x.zip", tokenizer=tokenizer, varying=True, column="text", label="mood"
    )
    data, found = opened(made.path, tmp_path)
    assert {each.name: each.shape for each in found.arrays} == {"input_ids": (2, None), "attention_mask": (2, None)}
    assert [data.arrays["input_ids"][np.array([at])].tolist() for at in (0, 1)] == [[[2, 4, 5, 6, 3]], [[2, 7, 3]]]
    assert data.label.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("name", "content", "keys", "told"),
    [
        ("t.txt", "\n\n", {}, "holds no texts"),
        ("t.txt", "a\n", {"column": "text"}, "has no columns"),
        ("t.csv", "text\na\n", {}, "name the column"),
        ("t.csv", "text\na\n", {"column": "body"}, "no column 'body'"),
        ("t.csv", "text,b\n,1\n", {"column": "text"}, "line 2: 'text' is empty"),
        ("t.jsonl", '{"body": "a"}\n', {"column": "text"}, "there is no 'text'; there are body"),
        ("t.jsonl", "no json\n", {"column": "text"}, "not a readable"),
    ],
)
def test_what_are_no_texts(tokenizer, tmp_path, name, content, keys, told):
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=told):
        texts_to_npz(tmp_path / name, tmp_path / "x.npz", tokenizer=tokenizer, **keys)


def test_what_is_no_tokenizer(tokenizer, tmp_path):
    (tmp_path / "t.txt").write_text("a\n")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UsageError, match="is no tokenizer file"):
        texts_to_npz(tmp_path / "t.txt", tmp_path / "x.npz", tokenizer=tmp_path)
    with pytest.raises(UsageError, match="not readable"):
        texts_to_npz(tmp_path / "t.txt", tmp_path / "x.npz", tokenizer=tmp_path / "none.json")


# Tables


def test_columns_go_to_the_inputs_that_they_are_for(tmp_path):
    (tmp_path / "t.csv").write_text("age,city,plan,price,y\n30,Bonn,b,1.5,0.25\n40,Ulm,a,2,1\n50,Bonn,a,3e1,2\n")
    made = csv_to_npz(
        tmp_path / "t.csv",
        tmp_path / "x.npz",
        inputs={"numbers": ["price", "age"], "place": ["city"], "both": ["plan", "age"]},
        categories={"city": ["Ulm", "Bonn"], "plan": []},
        label="y",
    )
    data, found = opened(made.path, tmp_path)
    np.testing.assert_array_equal(data.arrays["numbers"], [[1.5, 30], [2, 40], [30, 50]])
    assert (data.arrays["place"].tolist(), data.arrays["place"].dtype) == ([[1], [0], [1]], np.int64)
    np.testing.assert_array_equal(data.arrays["both"], [[1, 30], [0, 40], [0, 50]])
    assert data.label.dtype == np.float32
    assert found.preprocessing.parameters["categories"] == {"city": ["Ulm", "Bonn"], "plan": ["a", "b"]}


@pytest.mark.parametrize(
    ("column", "dtype", "label"),
    [("1\n0\n\n", "int64", [1, 0, -1]), ("1.0\n2.0\n0\n", "int64", [1, 2, 0]), ("0.5\n1\n2\n", "float32", [0.5, 1, 2])],
)
def test_whole_numbers_are_classes_and_others_are_values(tmp_path, column, dtype, label):
    words = column.splitlines()
    (tmp_path / "t.csv").write_text("x,y\n" + "".join(f"{at},{word}\n" for at, word in enumerate(words)))
    data, _ = opened(csv_to_npz(tmp_path / "t.csv", tmp_path / "x.npz", label="y").path, tmp_path)
    assert (str(data.label.dtype), data.label.tolist()) == (dtype, label)


@pytest.mark.parametrize(
    ("text", "keys", "told"),
    [
        ("a,b\n1,x\n", {}, "line 2, column 'b': 'x' is not a number; name the column as one of words"),
        ("a,b\n1,\n", {}, "line 2, column 'b': it is empty"),
        ("a,b\n1,nan\n", {}, "no finite number"),
        ("a,a\n1,2\n", {}, "two columns 'a'"),
        ("a,b\n1,x\n", {"categories": {"b": ["y"]}}, "'x' is not among the words of 'b': y"),
        ("a,b\n1,x\n", {"categories": {"c": []}}, "no column 'c'"),
        ("a,b\n1,2\n", {"inputs": {"x": ["a", "z"]}}, "no column 'z'"),
        ("a,b\n1,0.5\n2,\n", {"label": "b"}, "line 3: the label 'b' is empty"),
        ("a,b\n1,inf\n", {"label": "b"}, "not a finite number"),
    ],
)
def test_what_is_wrong_with_a_table_is_named(tmp_path, text, keys, told):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UsageError, match=told):
        csv_to_npz(tmp_path / "t.csv", tmp_path / "x.npz", **keys)
    assert not (tmp_path / "x.npz").exists()


# Arrays


def test_arrays_are_taken_as_they_are(tmp_path):
    draw = np.random.default_rng(0)
    x = np.asfortranarray(draw.standard_normal((4, 2, 3)).astype(np.float32))
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", np.arange(4, dtype=np.int32))
    made = npy_to_npz({"input": tmp_path / "x.npy", "label": tmp_path / "y.npy"}, tmp_path / "d.npz")
    data, found = opened(made.path, tmp_path)
    np.testing.assert_array_equal(data.arrays["input"], x)
    assert data.label.tolist() == [0, 1, 2, 3]
    assert "float32 [4, 2, 3]" in found.preprocessing.summary


def test_a_folder_of_samples_is_stacked(tmp_path):
    for name, value in (("b/1", 3.0), ("a/2", 2.0), ("a/1", 1.0)):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "in" / f"{name}.npy", np.full((2,), value))
    data, found = opened(npy_to_npz({"x": tmp_path / "in"}, tmp_path / "d.npz").path, tmp_path)
    np.testing.assert_array_equal(data.arrays["x"], [[1, 1], [2, 2], [3, 3]])
    assert (data.label.tolist(), found.preprocessing.classes) == ([0, 0, 1], ("a", "b"))


def test_arrays_that_do_not_belong_together(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((3, 2)))
    np.save(tmp_path / "y.npy", np.zeros(2))
    np.save(tmp_path / "objects.npy", np.array([{}, None]), allow_pickle=True)
    np.save(tmp_path / "scalar.npy", np.float32(1))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-1])
    (tmp_path / "text.npy").write_text("no array")
    for sources, told in (
        ({"x": "x.npy", "label": "y.npy"}, "x 3, label 2"),
        ({"x": "objects.npy"}, "no plain numbers"),
        ({"x": "scalar.npy"}, "single number"),
        ({"x": "cut.npy"}, "truncated"),
        ({"x": "text.npy"}, "not an array of numpy"),
        ({"x": "none.npy"}, "not readable"),
    ):
        with pytest.raises(UsageError, match=told):
            npy_to_npz({name: tmp_path / file for name, file in sources.items()}, tmp_path / "d.npz")
        assert not (tmp_path / "d.npz").exists()
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "1.npy", np.zeros(2))
    np.save(tmp_path / "in" / "2.npy", np.zeros(3))
    with pytest.raises(UsageError, match=r"2\.npy is float64 \[3\], but .*1\.npy is float64 \[2\]"):
        npy_to_npz({"x": tmp_path / "in"}, tmp_path / "d.npz")


# Declarations


def test_names_of_classes_that_are_too_long_are_left_out_and_said(tmp_path):
    rows = "".join(f"1,{'long name ' * 20}{at}\n" for at in range(600))
    (tmp_path / "t.csv").write_text(f"x,y\n{rows}")
    made = csv_to_npz(tmp_path / "t.csv", tmp_path / "x.npz", label="y")
    _, found = opened(made.path, tmp_path)
    assert (len(made.classes), found.preprocessing.classes) == (600, ())
    assert "600 classes are too long" in found.preprocessing.summary
    with zipfile.ZipFile(made.path) as archive:
        assert archive.getinfo(DECLARATION).file_size <= DECLARATION_BYTES


def test_numpy_still_reads_the_arrays(tmp_path):
    (tmp_path / "t.csv").write_text("x\n1\n")
    csv_to_npz(tmp_path / "t.csv", tmp_path / "x.npz")
    with np.load(io.BytesIO((tmp_path / "x.npz").read_bytes()), allow_pickle=False) as found:
        assert found["input"].tolist() == [[1]]


def test_the_commands_say_what_they_did(scripted, cli, tmp_path, gradient):
    folder, _ = gradient
    stored = {"id": "dst_1", "state": "ready", "name": "d"}
    scripted.on("POST", "/datasets", {"status": 201, "json": stored})
    done = cli(scripted.url, "opk_test_secret", "dataset", "images", folder, "--size", "20x40", "--channels", "bgr")
    assert (done.code, done.stdout) == (0, "dst_1\n"), done.stderr
    assert "blue, green, red" in done.stderr
    (asked,) = scripted.asked("POST", "/datasets")
    said = inspect_dataset(_written(tmp_path / "sent.npz", asked.body)).preprocessing
    # Kept, and not stored.
    (tmp_path / "t.csv").write_text("a,b,y\n1,p,0\n2,q,1\n")
    words = (
        "table",
        "t.csv",
        "--input",
        "n=a",
        "--input",
        "c=b",
        "--category",
        "b=q,p",
        "--label",
        "y",
        "--out",
        "t.npz",
    )
    done = cli(scripted.url, "opk_test_secret", "dataset", *words, "--json")
    assert done.code == 0, done.stderr
    assert done.json["preprocessing"]["parameters"]["categories"] == {"b": ["q", "p"]}
    assert len(scripted.asked("POST", "/datasets")) == 1
    np.save(tmp_path / "x.npy", np.zeros((2, 3)))
    assert cli(scripted.url, "opk_test_secret", "dataset", "npy", "x=x.npy", "--out", "n.npz").stdout == "n.npz\n"
    record(tmp_path / "rec" / "a.wav", [1] * 8)
    done = cli(
        scripted.url,
        "opk_test_secret",
        "dataset",
        "audio",
        "rec",
        "--rate",
        16000,
        "--seconds",
        0.00025,
        "--fit",
        "split",
        "--out",
        "r.npz",
    )
    assert done.code == 0, done.stderr
    assert "2 samples" in done.stderr
    # What was stored is shown.
    inspection = {"samples": 1, "labelled": 0, "arrays": [], "preprocessing": said.model_dump(mode="json")}
    scripted.on("GET", "/datasets/dst_1", {"json": stored | {"inspection": inspection}})
    shown = cli(scripted.url, "opk_test_secret", "dataset", "show", "dst_1")
    assert "blue, green, red" in shown.stderr
    assert '"channels": "bgr"' in shown.stderr


def test_the_text_command(scripted, cli, tmp_path, tokenizer):
    (tmp_path / "t.txt").write_text("a good film\nbad\n")
    words = (
        "text",
        "t.txt",
        "--tokenizer",
        tokenizer,
        "--length",
        4,
        "--ids",
        "tokens",
        "--mask",
        "",
        "--out",
        "x.npz",
    )
    done = cli(scripted.url, "opk_test_secret", "dataset", *words)
    assert done.code == 0, done.stderr
    assert [each.name for each in inspect_dataset(tmp_path / "x.npz").arrays] == ["tokens"]


@pytest.mark.parametrize(
    "words",
    [
        ["images", "."],
        ["images", ".", "--size", "2x2", "--channels", "argb"],
        ["images", ".", "--size", "2x2", "--interpolation", "cubic"],
        ["images", "none", "--size", "2x2"],
        ["images", ".", "--size", "2x2", "--classes", "none.txt"],
        ["audio", ".", "--rate", "8000", "--seconds", "1", "--length", "3"],
        ["audio", ".", "--rate", "8000", "--fit", "stretch"],
        ["table", "none.csv"],
        ["table", "t.csv", "--input", "x", "--input", "y=a"],
        ["npy", "x.npy"],
    ],
)
def test_wrong_words_cost_no_request(scripted, cli, tmp_path, words):
    (tmp_path / "t.csv").write_text("a\n1\n")
    done = cli(scripted.url, "opk_test_secret", "dataset", *words, "--out", "x.npz")
    assert done.code == 2, done.stderr
    assert scripted.requests == []


def _written(path, content):
    path.write_bytes(content)
    return path
