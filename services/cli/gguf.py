"""What a GGUF file says of its model, read from its first bytes: metadata and how many weights there are.

In: a path. Out: `Gguf`. The weights themselves are not read, and long lists (the vocabulary) are passed over.
Source: the GGUF specification in llama.cpp's repository, versions 2 and 3.
"""

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Final

_MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_STRING, _ARRAY = 8, 9
_FORMATS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_LONGEST_TEXT: Final = 64 << 20  # a chat template takes kilobytes
_MOST: Final = 1 << 24  # entries of anything


@dataclass(frozen=True, slots=True)
class Gguf:
    """`metadata` without its lists; `parameters` counts the elements of all tensors."""

    metadata: dict[str, Any]
    parameters: int


def read_gguf(path: Path) -> Gguf:
    """Raises ValueError: it is no GGUF file, or it is cut off. OSError: it cannot be read."""
    with path.open("rb") as file:
        if file.read(4) != _MAGIC:
            raise ValueError(f"{path} is no GGUF file: it does not begin with {_MAGIC.decode()}")
        try:
            (version,) = _read(file, "I")
            if version not in _VERSIONS:
                raise ValueError(f"{path} is GGUF version {version}; versions 2 and 3 are known")
            tensors, entries = _read(file, "QQ")
            metadata = {}
            for _ in range(_bounded(entries)):
                key, (kind,) = _text(file), _read(file, "I")
                value = _value(file, kind)
                if kind != _ARRAY:
                    metadata[key] = value
            parameters = 0
            for _ in range(_bounded(tensors)):
                _text(file)
                (dimensions,) = _read(file, "I")
                parameters += prod(_read(file, f"{min(dimensions, 8)}Q"))
                _read(file, "IQ")
        except (struct.error, KeyError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is no whole GGUF file: {error!r}") from error
    return Gguf(metadata, parameters)


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _text(file)
    if kind == _ARRAY:
        of, count = _read(file, "IQ")
        _pass_over(file, of, _bounded(count))
        return None
    return _read(file, _FORMATS[kind])[0]


def _pass_over(file: BinaryIO, kind: int, count: int) -> None:
    if kind in _FORMATS:
        file.seek(struct.calcsize("<" + _FORMATS[kind]) * count, 1)
        return
    for _ in range(count):
        _value(file, kind)


def _text(file: BinaryIO) -> str:
    (size,) = _read(file, "Q")
    if size > _LONGEST_TEXT:
        raise KeyError(f"a text of {size} bytes")
    return file.read(size).decode("utf-8")


def _bounded(count: int) -> int:
    if count > _MOST:
        raise KeyError(f"{count} entries")
    return count


def _read(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    layout = "<" + layout
    return struct.unpack(layout, file.read(struct.calcsize(layout)))
