"""Generates tokenworks/v1 from protos/ (`make proto`); with `--check`, tells whether the committed stubs are current.

The generator is pinned: stubs of grpcio-tools 1.75.1 load on protobuf 6.33.5 and later and on protobuf 7; those of
later generators refuse protobuf 6, which vLLM needs (docs/decisions/0006).
"""

import sys
import tempfile
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
GENERATOR = "1.75.1"


def generate(target: Path) -> None:
    sources = sorted(str(path) for path in (ROOT / "protos").glob("tokenworks/v1/*.proto"))
    outputs = [f"--{kind}_out={target}" for kind in ("python", "pyi", "grpc_python")]
    includes = [f"-I{ROOT / 'protos'}", f"-I{files('grpc_tools') / '_proto'}"]
    if protoc.main(["protoc", *includes, *outputs, *sources]) != 0:
        sys.exit("protoc refused the protos; its message is above")


def stubs_below(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "tokenworks" / "v1").glob("*_pb2*.py*")}


def main() -> None:
    if (found := version("grpcio-tools")) != GENERATOR:
        sys.exit(f"grpcio-tools is {found}; the stubs are made with {GENERATOR}: pip install grpcio-tools=={GENERATOR}")
    if "--check" not in sys.argv[1:]:
        generate(ROOT)
        return
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        fresh, committed = stubs_below(Path(scratch)), stubs_below(ROOT)
    stale = sorted(name for name in fresh.keys() | committed.keys() if fresh.get(name) != committed.get(name))
    if stale:
        sys.exit(f"tokenworks/v1 is not what protos/ makes: {', '.join(stale)}; run `make proto` and commit the result")


if __name__ == "__main__":
    main()
