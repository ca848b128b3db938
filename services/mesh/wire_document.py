"""A message of the wire as a plain dictionary, for JSON: field names as in the .proto, whole numbers as numbers."""

from typing import Any

from google.protobuf.message import Message


def document_of(message: Message) -> dict[str, Any]:
    """Every field, set or not; None for an absent message or an optional value that is not set."""
    return {field.name: _value(message, field) for field in message.DESCRIPTOR.fields}


def _value(message: Message, field: Any) -> Any:
    value = getattr(message, field.name)
    nested = field.message_type is not None
    if nested and field.message_type.GetOptions().map_entry:
        return dict(value)  # every map on the wire is of plain values
    if field.is_repeated:
        return [document_of(each) for each in value] if nested else list(value)
    if field.has_presence and not message.HasField(field.name):
        return None
    return document_of(value) if nested else value
