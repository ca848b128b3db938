"""Any value of a class that has a wire form, for properties."""

import dataclasses
import types
import typing

from google.protobuf.descriptor import FieldDescriptor
from hypothesis import strategies as st

from services.mesh import codec

WORDS = st.text(st.characters(codec="utf-8"), max_size=12)


def wire_values(cls: type) -> st.SearchStrategy[object]:
    """Any value of a wire class, by its message's field types."""
    hints, descriptor = typing.get_type_hints(cls), codec.MESSAGES[cls].DESCRIPTOR
    fields = {each.name: _value(hints[each.name], descriptor.fields_by_name[each.name]) for each in _fields(cls)}
    return st.builds(cls, **fields)


def _fields(cls: type) -> tuple[dataclasses.Field[object], ...]:
    return dataclasses.fields(cls)


def _value(hint: object, field: FieldDescriptor) -> st.SearchStrategy[object]:
    if isinstance(hint, types.GenericAlias):
        return st.lists(_value(typing.get_args(hint)[0], field), max_size=3).map(tuple)
    if hint in codec.MESSAGES:
        return wire_values(typing.cast("type", hint))
    if hint is int:
        kind = field.type
        if field.name.endswith("_unix_ms"):
            return st.integers(0, 2**47 - 1)
        if kind == FieldDescriptor.TYPE_INT64:
            return st.integers(-(2**63), 2**63 - 1)
        return st.integers(0, 2**64 - 1 if kind == FieldDescriptor.TYPE_UINT64 else 2**32 - 1)
    simple: dict[object, st.SearchStrategy[object]] = {
        str: WORDS,
        bool: st.booleans(),
        float: st.floats(allow_nan=False, allow_infinity=False),
    }
    return simple[hint]
