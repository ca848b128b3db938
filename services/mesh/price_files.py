"""Price books that a person writes, as TOML or CSV. In: a file. Out: a `PriceBook`, and from when it is in force.

TOML has the book's fields at its top, with `effective_from` (a date or time, UTC where it names no zone), and a
`[[prices]]` table per entry. In a currency other than dollars, `usd_per_unit` says what one is worth, and rates are
called `input_per_mtok`, `cached_input_per_mtok`, `output_per_mtok`; they are converted once, to the nano-dollar.

CSV has one entry per line, with a head line of column names: `model`, `tenant`, `slo_class` and the three rates; name,
version and date are given beside it. It has no plans, tiers or commitments.
"""

import csv
import tomllib
from collections.abc import Mapping
from datetime import UTC, date, datetime, time
from decimal import ROUND_HALF_UP, Decimal
from io import StringIO
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from services.mesh.errors import SettingInvalid
from services.mesh.price_book import KINDS, PriceBook

_NANO: Final = Decimal("1e-9")


def read_prices(path: Path, *, name: str = "", version: int = 0) -> tuple[PriceBook, int]:
    """The book, and milliseconds since 1970 from when it is in force; 0 where the file does not say.

    Args:
        name, version: over what the file says; a CSV file needs both.

    Raises:
        SettingInvalid: names the file, the field, its value, and what would do.
    """
    try:
        text = path.read_text(encoding="utf-8")
        fields = _of_csv(text) if path.suffix.lower() == ".csv" else tomllib.loads(text, parse_float=Decimal)
        if name:
            fields["name"] = name
        if version:
            fields["version"] = version
        if path.suffix.lower() == ".csv" and not (name and version):
            raise SettingInvalid(f"{path}: a CSV file has no name and version; give them beside it")
        effective_unix_ms = _unix_ms(fields.pop("effective_from", None))
        return PriceBook.model_validate(_in_dollars(fields)), effective_unix_ms
    except ValidationError as error:
        lines = [
            f"{'.'.join(str(part) for part in item['loc']) or 'the book'} = {_shown(item.get('input'))}: {item['msg']}"
            for item in error.errors()
        ]
        raise SettingInvalid(f"{path}: {'; '.join(lines)}") from error
    except (OSError, ValueError, ArithmeticError) as error:
        raise SettingInvalid(f"{path} cannot be read: {error}") from error


def write_prices(book: PriceBook, *, effective_from: str = "", comment: str = "") -> str:
    """The book as a TOML file, in dollars."""
    lines = [f"# {line}" for line in comment.splitlines()]
    lines += [f'name = "{book.name}"', f"version = {book.version}"]
    lines += [f"effective_from = {effective_from}"] if effective_from else []
    for plan in book.plans:
        lines += ["", "[[plans]]", f'name = "{plan.name}"', f"tenants = {_quoted(plan.tenants)}"]
    for price in book.prices:
        lines += ["", "[[prices]]"]
        fields = price.model_dump(exclude_defaults=True, exclude={"tiers"})
        lines += [f'{key} = "{value}"' for key, value in fields.items()]
        for tier in price.tiers:
            lines += ["", "[[prices.tiers]]"]
            lines += [f'{key} = "{value}"' for key, value in tier.model_dump(exclude_none=True).items()]
    return "\n".join(lines) + "\n"


def _of_csv(text: str) -> dict[str, Any]:
    rows = csv.DictReader(StringIO(text))
    return {"prices": [{key: value.strip() for key, value in row.items() if key and value} for row in rows]}


def _in_dollars(fields: Mapping[str, Any]) -> dict[str, Any]:
    """With rates per unit of the book's currency turned into dollars."""
    usd_per_unit = Decimal(str(fields.get("usd_per_unit", 1)))
    if fields.get("currency", "USD") != "USD" and "usd_per_unit" not in fields:
        raise SettingInvalid(
            f"currency = {fields['currency']!r} without usd_per_unit: say how many dollars one is worth"
        )

    def converted(row: Mapping[str, Any]) -> dict[str, Any]:
        made = dict(row)
        for kind in KINDS:
            if (rate := made.pop(f"{kind}_per_mtok", None)) is not None:
                usd = (Decimal(str(rate)) * usd_per_unit).quantize(_NANO, ROUND_HALF_UP)
                made[f"{kind}_usd_per_mtok"] = usd
        if isinstance(made.get("tiers"), list):
            made["tiers"] = [converted(tier) for tier in made["tiers"]]
        return made

    made = dict(fields)
    if isinstance(made.get("prices"), list):
        made["prices"] = [converted(row) for row in made["prices"]]
    return made


def _unix_ms(at: object) -> int:
    if at is None:
        return 0
    if isinstance(at, str):
        at = datetime.fromisoformat(at)
    if isinstance(at, date) and not isinstance(at, datetime):
        at = datetime.combine(at, time(), UTC)
    if not isinstance(at, datetime):
        raise SettingInvalid(f"effective_from = {at!r} is no date; write it like 2026-12-01 or 2026-12-01T00:00:00Z")
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)


def _quoted(words: tuple[str, ...]) -> str:
    return "[" + ", ".join(f'"{word}"' for word in words) + "]"


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."
