"""Forms with a file: the file's bytes, taken out of a multipart body as it comes."""

from collections.abc import Sequence

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from api.errors import ApiError, FieldError


class FileForm:
    """One multipart body with one part, `file`. Nothing is kept but what was not given yet."""

    def __init__(self, content_type: str) -> None:
        boundary = parse_options_header(content_type)[1].get(b"boundary")
        if not boundary or len(boundary) > 70:
            raise ApiError(400, "The form's Content-Type names no boundary.")
        self._filename: str | None = None
        self._parts = 0
        self._ended = False
        self._given: list[bytes] = []
        self._header = self._value = b""
        self._disposition = b""
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._take_field,
                "on_header_value": self._take_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._open_part,
                "on_part_data": self._take_data,
                "on_end": self._end,
            },
        )

    def take(self, chunks: Sequence[bytes]) -> list[bytes]:
        """Give the file's bytes that are in these pieces of the body; raises 400 or 422."""
        try:
            for chunk in chunks:
                self._parser.write(chunk)
        except FormParserError:
            raise ApiError(400, "The form cannot be read: it is no valid multipart body.") from None
        given, self._given = self._given, []
        return given

    def finish(self) -> str | None:
        """Give the file's name at the sender; raises 400 where the form is cut off, 422 where it holds no file."""
        if not self._ended:
            raise ApiError(400, "The form is cut off.")
        if not self._parts:
            raise _no_file()
        return self._filename

    def _begin(self) -> None:
        self._parts += 1
        self._disposition = b""

    def _take_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _take_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _open_part(self) -> None:
        options = parse_options_header(self._disposition)[1]
        if options.get(b"name") != b"file" or self._parts > 1:
            raise _no_file()
        self._filename = options.get(b"filename", b"").decode(errors="replace") or None

    def _take_data(self, data: bytes, start: int, end: int) -> None:
        # The parser gives most pieces whole: they are not copied.
        self._given.append(data if start == 0 and end == len(data) else data[start:end])

    def _end(self) -> None:
        self._ended = True


def _no_file() -> ApiError:
    wrong = FieldError(parameter="file", detail="The form takes one part, the file, and its name is `file`.")
    return ApiError(422, errors=[wrong])
