"""What a start leaves in its file is what the next one sends: in order, whole, and never of one that still runs."""

import logging
import os
from pathlib import Path

import pytest

from services.mesh.spool import Spool, Spooled


def message(number: int, size: int = 10) -> Spooled:
    return Spooled("tw.tokens.p.w", {"ce-id": f"worker.w.tokens:e1:{number}"}, b"\n" * size + bytes([number % 256]))


def killed(spool: Spool) -> None:
    """The process ends without a word: its files are closed, and nothing else."""
    assert spool._file is not None
    os.close(spool._file)
    spool._file = None


def left(folder: Path, name: str = "worker.w", *, sent: bool = True) -> list[list[Spooled]]:
    found = []
    for each in Spool(folder, name, "now").left_behind():
        found.append(each.messages())
        each.close(sent=sent)
    return found


def test_what_a_killed_start_left_comes_in_order_and_goes_once_it_is_sent(tmp_path: Path) -> None:
    for epoch in ("e1", "e2"):
        spool = Spool(tmp_path, "worker.w", epoch)
        for number in range(3):
            spool.keep(message(number))
        killed(spool)
    assert left(tmp_path, sent=False) == [[message(number) for number in range(3)]] * 2
    assert left(tmp_path) == [[message(number) for number in range(3)]] * 2
    assert left(tmp_path) == []


def test_a_start_that_still_runs_and_other_publishers_are_left_alone(tmp_path: Path) -> None:
    running, other = Spool(tmp_path, "worker.w", "e1"), Spool(tmp_path, "worker.w.x", "e1")
    running.keep(message(1))
    other.keep(message(2))
    killed(other)
    assert left(tmp_path) == []
    assert left(tmp_path, "worker.w.x") == [[message(2)]]
    running.close(held=1)
    assert left(tmp_path) == [[message(1)]]


def test_a_start_that_ends_with_everything_acknowledged_leaves_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "worker.w", "e1")
    spool.keep(message(1))
    spool.close(held=0)
    assert list(tmp_path.iterdir()) == []


def test_a_record_that_was_cut_off_or_spoilt_ends_the_file(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "worker.w", "e1")
    for number in range(3):
        spool.keep(message(number))
    killed(spool)
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    assert left(tmp_path, sent=False) == [[message(0), message(1)]]
    path.write_bytes(data[:-1] + b"x")
    assert left(tmp_path) == [[message(0), message(1)]]


def test_the_file_is_emptied_once_the_server_has_everything_and_rewritten_when_it_grows(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "worker.w", "e1")
    for number in range(100):
        spool.keep(message(number, size=1000))
    (path,) = tmp_path.iterdir()
    spool.acknowledged(iter([message(99, size=1000)]))
    assert path.stat().st_size > 100_000
    spool.acknowledged(iter(()))
    assert path.stat().st_size == 0
    for number in range(20):
        spool.keep(message(number, size=1_000_000))
    spool.acknowledged(iter([message(18, size=1_000_000), message(19, size=1_000_000)]))
    assert path.stat().st_size < 2_100_000
    killed(spool)
    assert left(tmp_path) == [[message(18, size=1_000_000), message(19, size=1_000_000)]]


def test_a_folder_that_cannot_be_written_is_said_once_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    spool = Spool(tmp_path / "file" / "outbox", "worker.w", "e1")
    with caplog.at_level(logging.ERROR):
        for number in range(3):
            spool.keep(message(number))
    assert len(caplog.records) == 1
    assert "in memory only" in caplog.text
    spool.acknowledged(iter(()))
    spool.close(held=3)
