"""A table (CSV with a header) as arrays: columns of numbers and of words for the inputs, one column for the label."""

import csv
import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from onnxpress.dataset_conversion.declaration import Converted, declaration
from onnxpress.errors import UsageError
from onnxpress.npz import NpzWriter

_NO_LABEL = -1


def csv_to_npz(
    source: Path,
    target: Path,
    *,
    name: str = "input",
    label: str | None = None,
    inputs: Mapping[str, Sequence[str]] | None = None,
    categories: Mapping[str, Sequence[str]] | None = None,
) -> Converted:
    """Write a table with a header, a row per sample: all columns but the label as one array `name`, or as `inputs` says.

    `inputs` names the columns of each of the network's inputs, [N, columns] in that order. `categories` names the columns of
    words: each word becomes its place in the list, or where the list is empty its place in alphabetical order. An input of
    such columns alone is int64, any other float32. A label of whole numbers or words is a class (words are numbered in
    alphabetical order, an empty one is -1: no label); of other numbers it is a float32 value.

    Raises UsageError for unknown columns, for words where numbers belong, and for what is empty or not finite.
    """
    table = read_table(source)
    coded = {column: tuple(words) for column, words in (categories or {}).items()}
    wanted = {name: [column for column in table.header if column != label]} if inputs is None else dict(inputs)
    for column in (
        *coded,
        *(one for columns in wanted.values() for one in columns),
        *([] if label is None else [label]),
    ):
        table.at(column)
    if not all(wanted.values()):
        raise UsageError(f"{source} has no columns but the label")
    codes = {column: _codes(table, column, words) for column, words in coded.items()}
    labels = None if label is None else read_labels(table, label)
    with NpzWriter(target) as npz:
        for one, columns in wanted.items():
            _add(npz, one, table, columns, codes)
        if labels is not None:
            labels.write(npz)
        said = _declaration(table, wanted, codes, label, labels)
        npz.declare(said)
    return Converted(target, len(table.rows), labels.classes if labels else (), said)


@dataclass(frozen=True)
class Table:
    """A table in memory: `lines` are the numbers of the rows' lines in the file."""

    source: Path
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    lines: tuple[int, ...]

    def at(self, column: str) -> int:
        """Give a column's place; raises UsageError where there is none of that name."""
        if column not in self.header:
            raise UsageError(f"{self.source} has no column {column!r}; there are {', '.join(self.header)}")
        return self.header.index(column)

    def column(self, column: str) -> list[str]:
        """Give the words of a column."""
        at = self.at(column)
        return [row[at].strip() for row in self.rows]


@dataclass(frozen=True)
class Labels:
    """The label of each row: numbers of `classes`, numbers that are classes themselves, or values."""

    numbers: tuple[float, ...]
    classes: tuple[str, ...]
    values: bool

    @property
    def told(self) -> str:
        """Say in words what they are."""
        if self.values:
            return "values, float32"
        return "words, numbered from 0 in the order of `classes`" if self.classes else "class numbers"

    def write(self, npz: NpzWriter) -> None:
        """Write them as one array."""
        self._write(npz, self.numbers, (len(self.numbers),))

    def write_one(self, npz: NpzWriter, at: int) -> None:
        """Write one of them as a single number, for a sample that has a file of its own."""
        self._write(npz, self.numbers[at : at + 1], ())

    def _write(self, npz: NpzWriter, numbers: Sequence[float], shape: Sequence[int]) -> None:
        if self.values:
            npz.add("label", "float32", shape, [_little(array("f", numbers))])
        else:
            npz.add("label", "int64", shape, (int(one).to_bytes(8, "little", signed=True) for one in numbers))


def read_table(source: Path) -> Table:
    """Read a CSV with a header; raises UsageError for what is none."""
    try:
        with source.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            found = [(reader.line_num, row) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{source} is not a readable table: {error}") from error
    header = tuple(word.strip() for word in found[0][1]) if found else ()
    twice = sorted({word for word in header if header.count(word) > 1})
    if twice:
        raise UsageError(f"{source} has two columns {twice[0]!r}")
    for line, row in found[1:]:
        if len(row) != len(header):
            raise UsageError(f"{source}, line {line}: {len(row)} values for {len(header)} columns")
    if len(found) < 2:
        raise UsageError(f"{source} holds no rows below its header")
    return Table(source, header, tuple(tuple(row) for _, row in found[1:]), tuple(line for line, _ in found[1:]))


def read_labels(table: Table, column: str) -> Labels:
    """Read a column as labels: whole numbers and words are classes, other numbers are values."""
    words = table.column(column)
    try:
        numbers = [float(word) if word else float(_NO_LABEL) for word in words]
    except ValueError:
        classes = tuple(sorted({word for word in words if word}))
        places = {word: place for place, word in enumerate(classes)}
        return Labels(tuple(places[word] if word else _NO_LABEL for word in words), classes, values=False)
    for line, number in zip(table.lines, numbers, strict=True):
        if not isfinite(number):
            raise UsageError(f"{table.source}, line {line}: the label {column!r} is not a finite number")
    values = not all(number.is_integer() for number in numbers)
    if values and not all(words):
        line = table.lines[words.index("")]
        raise UsageError(
            f"{table.source}, line {line}: the label {column!r} is empty; among values there is none for that"
        )
    return Labels(tuple(numbers), (), values)


def _codes(table: Table, column: str, words: Sequence[str]) -> tuple[str, ...]:
    """Give the words that a column's numbers stand for."""
    found = table.column(column)
    if "" in found:
        raise UsageError(f"{table.source}, line {table.lines[found.index('')]}: {column!r} is empty")
    if not words:
        return tuple(sorted(set(found)))
    for line, word in zip(table.lines, found, strict=True):
        if word not in words:
            raise UsageError(
                f"{table.source}, line {line}: {word!r} is not among the words of {column!r}: {', '.join(words)}"
            )
    return tuple(words)


def _add(npz: NpzWriter, name: str, table: Table, columns: Sequence[str], codes: Mapping[str, Sequence[str]]) -> None:
    places = {column: {word: place for place, word in enumerate(words)} for column, words in codes.items()}
    shape = (len(table.rows), len(columns))
    if all(column in codes for column in columns):
        rows = _by_row(table, columns)
        parts = (
            b"".join(places[column][word].to_bytes(8, "little") for column, word in zip(columns, row, strict=True))
            for _, row in rows
        )
        npz.add(name, "int64", shape, parts)
        return
    npz.add(
        name,
        "float32",
        shape,
        (
            _little(
                array(
                    "f", (_number(table, line, column, word, places) for column, word in zip(columns, row, strict=True))
                )
            )
            for line, row in _by_row(table, columns)
        ),
    )


def _by_row(table: Table, columns: Sequence[str]) -> Iterable[tuple[int, list[str]]]:
    places = [table.at(column) for column in columns]
    return ((line, [row[at].strip() for at in places]) for line, row in zip(table.lines, table.rows, strict=True))


def _number(table: Table, line: int, column: str, word: str, places: Mapping[str, Mapping[str, int]]) -> float:
    if column in places:
        return float(places[column][word])
    where = f"{table.source}, line {line}, column {column!r}"
    try:
        number = float(word)
    except ValueError:
        if not word:
            raise UsageError(f"{where}: it is empty; fill it as in training") from None
        raise UsageError(f"{where}: {word!r} is not a number; name the column as one of words (categories)") from None
    if not isfinite(number) or abs(number) > 3.4028235e38:
        raise UsageError(f"{where}: {word} is no finite number of float32; fill it as in training")
    return number


def _little(values: "array[float]") -> bytes:
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def _declaration(
    table: Table,
    wanted: Mapping[str, Sequence[str]],
    codes: Mapping[str, Sequence[str]],
    label: str | None,
    labels: Labels | None,
) -> dict[str, object]:
    def dtype(columns: Sequence[str]) -> str:
        return "int64" if all(column in codes for column in columns) else "float32"

    told = "; ".join(f"`{name}` from {', '.join(columns)} ({dtype(columns)})" for name, columns in wanted.items())
    words = f" Words are numbered from 0 in the order that `categories` lists: {', '.join(codes)}." if codes else ""
    judged = f" Label: {label} ({labels.told})." if labels else " No labels."
    parameters = {
        "inputs": {name: list(columns) for name, columns in wanted.items()},
        "dtypes": {name: dtype(columns) for name, columns in wanted.items()},
        "categories": {column: list(each) for column, each in codes.items()},
        "label": label,
    }
    summary = f"{len(table.rows)} rows of a table: {told}; numbers as they stand.{words}{judged}"
    return declaration("table", summary, parameters, labels.classes if labels else ())
