"""`tokenworks prices check` and `import`, which need no mesh."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.cli.main import app

BOOK = """
version = 2
effective_from = 2026-12-01
[[prices]]
input_usd_per_mtok = "1"
cached_input_usd_per_mtok = "0.5"
output_usd_per_mtok = "2"
"""


def test_a_checked_book_is_shown_with_its_date(tmp_path: Path) -> None:
    path = tmp_path / "book.toml"
    path.write_text(BOOK, encoding="utf-8")
    done = CliRunner().invoke(app, ["prices", "check", str(path), "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout) == {
        "label": "list@2",
        "effective_unix_ms": 1_796_083_200_000,
        "entries": 1,
        "plans": {},
    }


def test_a_wrong_book_fails_with_the_field_and_what_would_do(tmp_path: Path) -> None:
    path = tmp_path / "book.toml"
    path.write_text(BOOK.replace('"2"', '"-2"'), encoding="utf-8")
    done = CliRunner().invoke(app, ["prices", "check", str(path), "--json"])
    assert done.exit_code == 1
    assert "output_usd_per_mtok" in json.loads(done.stdout)["error"]["message"]


def test_imported_public_prices_are_a_book_that_checks(tmp_path: Path) -> None:
    pytest.importorskip("genai_prices", reason="the extra `prices` is not installed")
    path = tmp_path / "public.toml"
    done = CliRunner().invoke(app, ["prices", "import", str(path), "--provider", "openai", "--version", "3"])
    assert done.exit_code == 0
    checked = CliRunner().invoke(app, ["prices", "check", str(path), "--json"])
    assert json.loads(checked.stdout)["label"] == "list@3"
    assert json.loads(checked.stdout)["entries"] > 10
