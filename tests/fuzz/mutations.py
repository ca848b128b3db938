"""What goes wrong with messages on their way, or is sent to do harm: seeded changes of bytes and of protobuf messages.

In: good messages or bytes, and a source of randomness. Out: bytes. The same seed gives the same bytes.
"""

import math
from collections.abc import Callable
from functools import cache
from random import Random
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from tests.fuzz.samples import fill, sample

_UINT32: Final = (0, 1, 2**31 - 1, 2**31, 2**32 - 1)
_EXTREMES: Final[dict[int, tuple[Any, ...]]] = {
    FieldDescriptor.CPPTYPE_INT32: (0, 1, -1, 2**31 - 1, -(2**31)),
    FieldDescriptor.CPPTYPE_INT64: (0, 1, -1, 2**53, 2**63 - 1, -(2**63), -(2**53)),
    FieldDescriptor.CPPTYPE_UINT32: _UINT32,
    FieldDescriptor.CPPTYPE_UINT64: (*_UINT32, 2**53, 2**63 - 1, 2**63, 2**64 - 1),
    FieldDescriptor.CPPTYPE_DOUBLE: (0.0, -0.0, -1.0, 1e-320, 1e18, 1e308, -1e308, math.nan, math.inf, -math.inf),
    FieldDescriptor.CPPTYPE_FLOAT: (0.0, -1.0, 1e38, math.nan, math.inf, -math.inf),
    FieldDescriptor.CPPTYPE_BOOL: (True, False),
    FieldDescriptor.CPPTYPE_ENUM: (0, 1, 2, 3, 4, 5, 99, -1, 2**31 - 1),
}
_TEXTS: Final = (
    "", " ", ".", "*", ">", "~", "a.b", "\x00", "\n\r", "%s%n", "'; drop table requests; --", "../../etc/passwd",
    "\u202e\ufeff", "\U0001f600" * 40, "é" * 200, "x" * 127, "x" * 129, "x" * 4096, "-1", "NaN", "{", "[" * 300,
    '{"a":' * 200, "null",
)  # fmt: skip
_GOOD: Final = 256
_FRESH_PART: Final = 0.03
_LONG_TEXT: Final = 70_000
_MOST_COPIES: Final = 400
_NESTING: Final = (8, 101, 5000)
_VARINT_MOST: Final = b"\xff" * 9 + b"\x01"
_OVERLONG: Final = b"\x80" * 12 + b"\x01"


def mutated_message(kind: type[Message], rng: Random) -> bytes:
    """The bytes of a message of this class that is wrong in some way, or in none."""
    fresh = rng.random() < _FRESH_PART
    message = sample(kind, rng) if fresh else kind.FromString(_good(kind, rng.randrange(_GOOD)))
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3, 6))):
        mutate_fields(message, rng)
    data = message.SerializeToString()
    return mutated_wire(data, kind, rng) if rng.random() < 0.3 else data


@cache
def _good(kind: type[Message], number: int) -> bytes:
    """One of the good messages that most begin with: to fill one takes longer than to change it."""
    return sample(kind, Random(f"{kind.DESCRIPTOR.full_name}:{number}")).SerializeToString()


def mutate_fields(message: Message, rng: Random) -> None:
    """One field somewhere in the message gets a value that no well-meaning peer sends."""
    fields = message.DESCRIPTOR.fields
    if not fields:
        return
    field = rng.choice(fields)
    if field.is_repeated:
        _mutate_repeated(message, field, rng)
    elif field.message_type is None:
        if rng.random() < 0.2:
            message.ClearField(field.name)
        else:
            setattr(message, field.name, extreme(field, rng))
    elif rng.random() < 0.15:
        message.ClearField(field.name)
    else:
        nested = getattr(message, field.name)
        nested.SetInParent()
        mutate_fields(nested, rng)


def extreme(field: FieldDescriptor, rng: Random) -> Any:
    """A value at or beyond the edge of what a field can mean."""
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        text = rng.choice(_TEXTS) if rng.random() < 0.97 else "y" * _LONG_TEXT
        return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
    return rng.choice(_EXTREMES[field.cpp_type])


def mutated_wire(data: bytes, kind: type[Message], rng: Random) -> bytes:
    """Bytes that were a message of this class, changed as no serialiser would."""
    changes: tuple[Callable[[], bytes], ...] = (
        lambda: mutated_bytes(data, rng),
        lambda: mutated_bytes(data, rng),
        lambda: b"",
        lambda: data + _unknown_fields(rng),
        lambda: data + _mistyped_fields(kind, rng),
        lambda: data + _bad_text(kind, rng),
        lambda: data + data,
        lambda: data + _nested(kind, rng),
        lambda: rng.randbytes(rng.randrange(64)),
    )
    return rng.choice(changes)()


def mutated_bytes(data: bytes, rng: Random) -> bytes:
    """Bits flipped, a part cut away, repeated, or put in."""
    if not data:
        return rng.randbytes(rng.randrange(1, 16))
    changed = bytearray(data)
    at = rng.randrange(len(changed))
    match rng.randrange(6):
        case 0:
            for _ in range(rng.randint(1, 8)):
                changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        case 1:
            del changed[at:]
        case 2:
            del changed[at : at + rng.randint(1, 8)]
        case 3:
            changed[at:at] = rng.randbytes(rng.randint(1, 16))
        case 4:
            changed[at:at] = changed[max(0, at - 32) : at] * rng.randint(1, 8)
        case _:
            changed[at] = rng.choice((0, 0x7F, 0x80, 0xFF))
    return bytes(changed)


def _mutate_repeated(message: Message, field: FieldDescriptor, rng: Random) -> None:
    values = getattr(message, field.name)
    match rng.randrange(4):
        case 0:
            message.ClearField(field.name)
        case 1 if values:
            copies = [values[0]] * rng.choice((1, 2, _MOST_COPIES))
            values.extend(copies)
        case _ if field.message_type is None:
            values.append(extreme(field, rng))
        case _:
            if values and rng.random() < 0.7:
                mutate_fields(values[rng.randrange(len(values))], rng)
            else:
                fill(values.add(), rng)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _unknown_fields(rng: Random) -> bytes:
    number = rng.choice((999, 19_000, 2**29 - 1, 0))
    payload = rng.choice((_VARINT_MOST, _OVERLONG, b"", b"\x05abcde"))
    return _varint(number << 3 | rng.randrange(8)) + payload


def _mistyped_fields(kind: type[Message], rng: Random) -> bytes:
    fields = kind.DESCRIPTOR.fields
    if not fields:
        return _unknown_fields(rng)
    number = rng.choice(fields).number
    return _varint(number << 3 | rng.choice((0, 1, 2, 5))) + rng.choice(
        (_VARINT_MOST, b"\x00" * 8, b"\x03abc", b"\x01")
    )


def _bad_text(kind: type[Message], rng: Random) -> bytes:
    texts = [each.number for each in kind.DESCRIPTOR.fields if each.type == FieldDescriptor.TYPE_STRING]
    bad = rng.choice((b"\xff\xfe", b"\xed\xa0\x80", b"ab\x80", b"\xf8\x88\x80\x80\x80"))
    return _varint((rng.choice(texts) if texts else 1) << 3 | 2) + _varint(len(bad)) + bad


def _nested(kind: type[Message], rng: Random) -> bytes:
    """Messages in messages, or groups in groups, deeper than any parser should follow."""
    depth = rng.choice(_NESTING)
    if rng.random() < 0.5:
        return b"\x0b" * depth  # start of group 1, never ended
    numbers = [each.number for each in kind.DESCRIPTOR.fields if each.message_type is not None] or [1]
    inner, tag = b"", _varint(numbers[0] << 3 | 2)
    for _ in range(min(depth, 600)):
        inner = tag + _varint(len(inner)) + inner
    return inner
