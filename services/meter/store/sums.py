"""Sums of whole numbers that stay whole: PostgreSQL adds 64-bit integers up as decimals of any length."""

from typing import Any

from sqlalchemy import BigInteger, ColumnElement, cast, func


def whole_sum(of: ColumnElement[int] | Any) -> ColumnElement[int]:
    """The sum as an integer of 64 bits; null where there is nothing to add up."""
    return cast(func.sum(of), BigInteger)
