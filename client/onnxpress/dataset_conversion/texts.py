"""Texts as token ids and their mask, by the tokenizer file that belongs to the network (`tokenizer.json`)."""

import hashlib
import io
import json
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from onnxpress.dataset_conversion.declaration import Converted, declaration
from onnxpress.dataset_conversion.tables import Labels, Table, read_labels, read_table
from onnxpress.errors import UsageError
from onnxpress.npz import NpzWriter

Part = Literal["ids", "mask", "types"]
# As the exports of transformers name them.
INPUTS: Mapping[Part, str] = {"ids": "input_ids", "mask": "attention_mask"}
_PADS = ("[PAD]", "<pad>", "<|pad|>", "<|endoftext|>", "</s>", "[EOS]")


def texts_to_npz(
    source: Path,
    target: Path,
    *,
    tokenizer: Path,
    inputs: Mapping[Part, str] = INPUTS,
    length: int | None = None,
    varying: bool = False,
    column: str | None = None,
    label: str | None = None,
) -> Converted:
    """Write texts as int64 arrays [N, tokens]: `ids`, and as `inputs` names them their `mask` (0 = padding) and `types`.

    `source` is a `.txt` with a text on each line, or a `.csv` or `.jsonl` whose `column` holds texts and `label` labels. Texts are
    padded to the longest one, with `length` cut and padded to that many tokens; with `varying` each is a sample of its own
    size, cut to `length` where it is given, and nothing is padded. Special tokens, truncation side and padding side and id are
    the tokenizer's. Needs tokenizers (`pip install 'onnxpress[text]'`). Raises UsageError for what cannot be read.
    """
    if "ids" not in inputs or set(inputs) - {"ids", "mask", "types"}:
        raise UsageError("texts have ids, and may have mask and types; name at least the network's input for the ids")
    texts = _read(source, column, label)
    encoded = _encode(texts, tokenizer, length)
    said = _declaration(texts, encoded, inputs, varying=varying)
    with NpzWriter(target) as npz:
        if varying:
            for number, content in enumerate(_samples(texts, encoded, inputs)):
                npz.sample(f"{number:08d}.npz", content)
        else:
            for part, name in inputs.items():
                npz.add(name, "int64", (len(texts.texts), encoded.width), encoded.padded(part))
            if texts.labels is not None:
                texts.labels.write(npz)
        npz.declare(said)
    return Converted(target, len(texts.texts), texts.classes, said)


@dataclass(frozen=True)
class _Texts:
    texts: Sequence[str]
    labels: Labels | None
    blank: int

    @property
    def classes(self) -> tuple[str, ...]:
        return self.labels.classes if self.labels else ()


@dataclass(frozen=True)
class _Encoded:
    """What the tokenizer gave for each text, without padding."""

    parts: Mapping[Part, Sequence[Sequence[int]]]
    width: int
    pad: int
    left: bool
    cut: int
    length: int | None
    name: str
    sha256: str

    def padded(self, part: Part) -> Iterator[bytes]:
        """Yield a part's rows, filled up to one width."""
        fill = self.pad if part == "ids" else 0
        for row in self.parts[part]:
            rest = [fill] * (self.width - len(row))
            yield _little([*rest, *row] if self.left else [*row, *rest])


def _read(source: Path, column: str | None, label: str | None) -> _Texts:
    if source.suffix.lower() == ".txt":
        if column is not None or label is not None:
            raise UsageError(f"{source} has no columns: it is a text on each line; give a .csv or .jsonl for columns")
        try:
            lines = source.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{source} is not readable as text in UTF-8: {error}") from error
        texts = [line for line in lines if line.strip()]
        if not texts:
            raise UsageError(f"{source} holds no texts")
        return _Texts(texts, None, len(lines) - len(texts))
    if column is None:
        raise UsageError(f"{source}: name the column that holds the texts")
    table = (
        read_table(source)
        if source.suffix.lower() == ".csv"
        else _read_objects(source, [column, *([label] if label else [])])
    )
    texts = table.column(column)
    if "" in texts:
        raise UsageError(f"{source}, line {table.lines[texts.index('')]}: {column!r} is empty")
    return _Texts(texts, None if label is None else read_labels(table, label), 0)


def _read_objects(source: Path, columns: Sequence[str]) -> Table:
    """Read a JSON object on each line as a table of these columns."""
    rows, lines = [], []
    try:
        for line, text in enumerate(source.read_text(encoding="utf-8-sig").splitlines(), 1):
            if not text.strip():
                continue
            found = json.loads(text)
            missing = [one for one in columns if not isinstance(found, dict) or one not in found]
            if missing:
                known = ", ".join(found) if isinstance(found, dict) else "no object"
                raise UsageError(f"{source}, line {line}: there is no {missing[0]!r}; there are {known}")
            rows.append(tuple("" if found[one] is None else str(found[one]) for one in columns))
            lines.append(line)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UsageError(f"{source} is not a readable .txt, .csv or .jsonl: {error}") from error
    if not rows:
        raise UsageError(f"{source} holds no texts")
    return Table(source, tuple(columns), tuple(rows), tuple(lines))


def _encode(texts: _Texts, tokenizer: Path, length: int | None) -> _Encoded:
    running, content = _load(tokenizer)
    padding = running.padding or {}
    running.no_padding()
    own = running.truncation or {}
    longest = length or own.get("max_length")
    if longest:
        running.enable_truncation(
            max_length=longest, **{key: own[key] for key in ("stride", "strategy", "direction") if key in own}
        )
    found = running.encode_batch(list(texts.texts))
    pad = padding.get("pad_id")
    if pad is None:
        pad = next((number for number in map(running.token_to_id, _PADS) if number is not None), 0)
    return _Encoded(
        {
            "ids": [one.ids for one in found],
            "mask": [one.attention_mask for one in found],
            "types": [one.type_ids for one in found],
        },
        width=length or max(len(one.ids) for one in found),
        pad=int(pad),
        left=padding.get("direction") == "left",
        cut=sum(bool(one.overflowing) for one in found),
        length=longest,
        name=f"{tokenizer.name}/tokenizer.json" if tokenizer.is_dir() else tokenizer.name,
        sha256=hashlib.sha256(content).hexdigest(),
    )


def _load(tokenizer: Path) -> tuple[Any, bytes]:
    try:
        module = import_module("tokenizers")
    except ImportError:
        raise UsageError("texts need tokenizers: pip install 'onnxpress[text]'") from None
    file = tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer
    try:
        content = file.read_bytes()
        return module.Tokenizer.from_str(content.decode()), content
    except OSError as error:
        raise UsageError(f"{file} is not readable: {error.strerror}") from error
    except Exception as error:  # tokenizers raises plain exceptions for what is no tokenizer
        hint = "give the tokenizer.json of a fast tokenizer (`tokenizer.save_pretrained(FOLDER)` writes it)"
        raise UsageError(f"{file} is no tokenizer file: {error}; {hint}") from error


def _samples(texts: _Texts, encoded: _Encoded, inputs: Mapping[Part, str]) -> Iterator[bytes]:
    for number in range(len(texts.texts)):
        stream = io.BytesIO()
        with NpzWriter(stream) as npz:
            for part, name in inputs.items():
                row = encoded.parts[part][number]
                if not row:
                    raise UsageError(f"text {number + 1} has no tokens")
                npz.add(name, "int64", (len(row),), [_little(row)])
            if texts.labels is not None:
                texts.labels.write_one(npz, number)
        yield stream.getvalue()


def _little(row: Sequence[int]) -> bytes:
    values = array("q", row)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def _declaration(texts: _Texts, encoded: _Encoded, inputs: Mapping[Part, str], *, varying: bool) -> dict[str, Any]:
    names = ", ".join(f"`{name}` ({part})" for part, name in inputs.items())
    cut = f"; {encoded.cut} were cut to {encoded.length} tokens" if encoded.cut else ""
    side = "left" if encoded.left else "right"
    padded = (
        "each of its own length" if varying else f"padded on the {side} to {encoded.width} tokens with id {encoded.pad}"
    )
    judged = f" Label: {texts.labels.told}." if texts.labels else " No labels."
    blank = f" {texts.blank} blank lines were left out." if texts.blank else ""
    parameters = {
        "inputs": dict(inputs),
        "tokenizer": encoded.name,
        "tokenizer_sha256": encoded.sha256,
        "truncate_to": encoded.length,
        "padding": None if varying else {"to": encoded.width, "side": side, "id": encoded.pad, "mask": 0},
        "special_tokens": True,
        "dtype": "int64",
    }
    summary = f"{len(texts.texts)} texts by {encoded.name} into {names}, int64: {padded}{cut}.{blank}{judged}"
    return declaration("text", summary, parameters, texts.classes)
