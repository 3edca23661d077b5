"""What native libraries print where nobody asked: warnings while onnxruntime starts, the causes of a provider's failure."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Literal

_STDOUT, _STDERR = 1, 2


@dataclass
class Printed:
    """What was printed; known once it is over."""

    text: str = ""


@contextmanager
def held_back(*, on_failure: Literal["show", "keep"] = "show") -> Iterator[Printed]:
    """Keep from the terminal what this process prints, whoever prints it; where the work fails, it is shown unless it is kept.

    A library's messages go past `sys.stderr` to the descriptor, so that is turned away as well.
    """
    printed = Printed()
    _flush()
    with tempfile.TemporaryFile() as kept:
        try:
            with _turned_to(kept.fileno()):
                yield printed
        except BaseException:
            printed.text = _read(kept.fileno())
            if on_failure == "show" and sys.stderr is not None:
                sys.stderr.write(printed.text)
            raise
        printed.text = _read(kept.fileno())


@contextmanager
def _turned_to(descriptor: int) -> Iterator[None]:
    # A closed descriptor has nothing to be turned away from, and copying it would fail.
    saved = {number: os.dup(number) for number in (_STDOUT, _STDERR) if _is_open(number)}
    try:
        for number in saved:
            os.dup2(descriptor, number)
        with os.fdopen(os.dup(descriptor), "w", encoding="utf-8") as text, redirect_stdout(text), redirect_stderr(text):
            yield
    finally:
        for number, copy in saved.items():
            os.dup2(copy, number)
            os.close(copy)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _read(descriptor: int) -> str:
    os.lseek(descriptor, 0, os.SEEK_SET)
    with os.fdopen(os.dup(descriptor), "rb") as kept:
        return kept.read().decode(errors="replace")
