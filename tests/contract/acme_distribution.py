"""A distribution of somebody else's that brings an engine, installed into a directory as an installer would."""

from pathlib import Path
from shutil import copy

_METADATA = "Metadata-Version: 2.1\nName: acme-engine\nVersion: 1.0\n"
_ENTRY_POINTS = "[tokenworks.engines]\nacme = acme_engine:AcmeEngine\n"


def install_acme(site: Path) -> None:
    """Puts the module and its metadata into `site`, which is to be on the path."""
    copy(Path(__file__).parent / "acme_engine" / "acme_engine.py", site)
    info = site / "acme_engine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(_METADATA)
    (info / "entry_points.txt").write_text(_ENTRY_POINTS)
    (info / "INSTALLER").write_text("test\n")
