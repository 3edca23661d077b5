"""What a dataset's file says of itself: a member `dataset.json` beside the arrays."""

import json
import zipfile

from pydantic import ValidationError

from engine.errors import DatasetInvalidError
from engine.inspection import Preprocessing

MEMBER = "dataset.json"
MOST_BYTES = 64 << 10


def without(entries: list[zipfile.ZipInfo]) -> list[zipfile.ZipInfo]:
    """Give the members that hold arrays or samples."""
    return [entry for entry in entries if entry.filename != MEMBER]


def read(archive: zipfile.ZipFile) -> Preprocessing | None:
    """Give an archive's declaration, None where there is none; raises DatasetInvalidError for what is none."""
    if MEMBER not in archive.namelist():
        return None
    with archive.open(MEMBER) as stream:
        return parse(stream.read(MOST_BYTES + 1))


def parse(content: bytes) -> Preprocessing:
    """Read a declaration; raises DatasetInvalidError for what is none."""
    if len(content) > MOST_BYTES:
        raise DatasetInvalidError(f"`{MEMBER}` is larger than {MOST_BYTES} bytes.")
    try:
        found = Preprocessing.model_validate_json(content)
        # Reports and rows hold plain JSON, which has no NaN.
        json.dumps(found.parameters, allow_nan=False)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise _invalid(f"{where + ': ' if where else ''}{first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise _invalid("its parameters hold what JSON cannot say") from error
    return found


def _invalid(reason: str) -> DatasetInvalidError:
    return DatasetInvalidError(
        f"`{MEMBER}` does not say what was done to the data: {reason}.",
        hint="It takes `kind`, `summary`, `parameters` and `classes`; leave it out where nothing is to be said.",
    )
