"""Whether everything in a network that is text can be read as text."""

from collections.abc import Iterator
from functools import cache

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from engine.errors import ModelInvalidError

_SHOWN_BYTES = 40
# What people wrote for people; all else are names, which stand in lists, errors and databases, and those take no NUL.
_PROSE = frozenset({"doc_string", "value"})


def check_text(message: Message) -> None:
    """Raise ModelInvalidError where a text is not UTF-8 or a name holds a NUL: ONNX takes the bytes, and nothing after it does."""
    for name, value in _texts(message):
        # What protobuf cannot decode it gives as bytes.
        if isinstance(value, bytes):
            raise ModelInvalidError(
                f"The field `{name}` of a {message.DESCRIPTOR.name} is no text: the bytes {value[:_SHOWN_BYTES]!r} are not UTF-8.",
                hint="Name it in plain letters in what wrote the file, and write it again.",
            )
        if isinstance(value, str) and "\0" in value and name not in _PROSE:
            raise ModelInvalidError(
                f"The field `{name}` of a {message.DESCRIPTOR.name} holds a NUL: {value[:_SHOWN_BYTES]!r}.",
                hint="Name it in plain letters in what wrote the file, and write it again.",
            )
    for part in _parts(message):
        check_text(part)


def _texts(message: Message) -> Iterator[tuple[str, object]]:
    for name, several in _fields(message.DESCRIPTOR)[0]:
        value = getattr(message, name)
        if several:
            yield from ((name, one) for one in value)
        else:
            yield name, value


def _parts(message: Message) -> Iterator[Message]:
    for name, several in _fields(message.DESCRIPTOR)[1]:
        if several:
            yield from getattr(message, name)
        elif message.HasField(name):
            yield getattr(message, name)


@cache
def _fields(descriptor: Descriptor) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
    """List the fields that hold text and those that hold messages, each with whether it holds several."""
    texts, parts = [], []
    for field in descriptor.fields:
        found = (field.name, bool(field.is_repeated))
        if field.type == FieldDescriptor.TYPE_STRING:
            texts.append(found)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            parts.append(found)
    return texts, parts
