"""The operations page knows every setting."""

from collections.abc import Iterator
from pathlib import Path

from services.mesh.settings import Settings

PAGE = Path(__file__).resolve().parents[3] / "docs" / "operations.md"


def settings() -> Iterator[str]:
    for section, field in Settings.model_fields.items():
        assert field.annotation is not None
        for name in field.annotation.model_fields:
            yield f"{section}.{name}"


def test_every_setting_has_a_row_and_every_row_a_setting() -> None:
    rows = [line.split("`")[1] for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    rows = [row for row in rows if "." in row]
    assert rows == list(settings())
