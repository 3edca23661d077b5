"""English text that a language model learns from: manual pages as Debian's packages ship them, in their source form."""

import gzip
import re
import subprocess
import zlib
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("manpages", "manpages-dev", "git-man", "libssl-doc", "libcurl4-doc")
"""Documentation only: their pages say the same on every architecture, and change with a release of Debian alone."""

HELD_OUT_ONE_IN = 20
_COMMENT = re.compile(r"^[.']\s*\\\"")
_INDEX = re.compile(r"^\.IX\b")
_SECTION = re.compile(r"^\.SH\b")
# Fewer characters are a redirection to another page.
_SHORTEST = 400


class TextMissingError(Exception):
    """The manual pages are not on this machine; the message says how to get them."""


@dataclass(frozen=True)
class Pages:
    """The texts of the pages, in the order of their file names."""

    training: list[str]
    held_out: list[str]


def load(folder: Path | None = None) -> Pages:
    """The pages of `PACKAGES` that are installed, or those below `folder`; one in twenty is held out, by its name.

    A page begins at its first section; comments, which hold licences and the same macros in hundreds of pages, are left out.
    """
    files = sorted(_below(folder) if folder is not None else _installed(), key=lambda path: path.name)
    pages = Pages([], [])
    for path in files:
        text = _cleaned(gzip.decompress(path.read_bytes()).decode("utf-8", "replace"))
        if len(text) >= _SHORTEST:
            held_out = zlib.crc32(path.name.encode()) % HELD_OUT_ONE_IN == 0
            (pages.held_out if held_out else pages.training).append(text)
    if not pages.training or not pages.held_out:
        raise TextMissingError(
            f"There are no manual pages in {folder or 'the installed packages'}. Install them with `apt-get install"
            f" {' '.join(PACKAGES)}`; where the system leaves manual pages out, as Debian's container images do, unpack"
            " the packages with `apt-get download` and `dpkg -x`, and name the folder with `--text DIR`."
        )
    return pages


def _installed() -> list[Path]:
    listed = subprocess.run(["dpkg-query", "--listfiles", *PACKAGES], capture_output=True, text=True, check=False)
    paths = [Path(line) for line in listed.stdout.splitlines() if "/man/man" in line and line.endswith(".gz")]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def _below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("man/man*/*.gz") if path.is_file() and not path.is_symlink()]


def _cleaned(page: str) -> str:
    lines = page.splitlines()
    start = next((number for number, line in enumerate(lines) if _SECTION.match(line)), len(lines))
    kept = [line.rstrip() for line in lines[start:] if not _COMMENT.match(line) and not _INDEX.match(line)]
    return "\n".join(kept) + "\n"
