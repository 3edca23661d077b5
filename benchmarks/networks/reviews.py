"""Real English text with ratings: 10,605 sentences of film reviews (C. J. Hutto, ICWSM 2014, MIT).

They lie in the source archive of the package `vaderSentiment`. Twenty people rated each sentence from -4 to 4.
"""

import io
import tarfile
from pathlib import Path
from typing import NamedTuple

from benchmarks.networks import packages

_INNER = f"vaderSentiment-{packages.SENTIMENT.version}/additional_resources/hutto_ICWSM_2014.tar.gz"
_TABLE = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"


class Review(NamedTuple):
    """One sentence and the mean of its ratings, -4..4."""

    text: str
    rating: float


def load(downloads: Path) -> list[Review]:
    """All sentences in the order of the file; `downloads` keeps the archive."""
    with tarfile.open(packages.fetch(packages.SENTIMENT, downloads)) as archive:
        inner = _member(archive, _INNER)
    with tarfile.open(fileobj=io.BytesIO(inner)) as archive:
        table = _member(archive, _TABLE).decode("utf-8", "replace")
    rows = (line.split("\t") for line in table.splitlines() if line.strip())
    return [Review(text.strip(), float(rating)) for _, rating, text in rows]


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    stream = archive.extractfile(name)
    if stream is None:
        raise ValueError(f"{name} is not a file")
    return stream.read()
