from pathlib import Path

import pytest

from services.cli.output import CommandFailed
from services.cli.table_files import check_path


def test_a_file_that_cannot_be_is_refused_before_anything_is_asked_for(tmp_path: Path) -> None:
    check_path(tmp_path / "focus.csv")
    with pytest.raises(CommandFailed, match="which is no folder"):
        check_path(tmp_path / "nowhere" / "focus.csv")
    with pytest.raises(CommandFailed, match="ends in neither"):
        check_path(tmp_path / "focus.txt")
