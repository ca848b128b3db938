"""A client that has the protos and grpcio, and nothing of this project, gets a stream."""

import asyncio
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import pytest

from tests.mesh.local_mesh import DEADLINE_S, MODEL, LocalMesh

pytestmark = pytest.mark.mesh

PROTOS: Final = Path(__file__).resolve().parents[2] / "protos"
CLIENT: Final = """
import importlib.util, sys
assert importlib.util.find_spec("services") is None, "this environment has the project in it"
import grpc
from tokenworks.v1 import inference_pb2, inference_pb2_grpc
address, key, model = sys.argv[1:]
request = inference_pb2.GenerateRequest(model=model, text="river", sampling=inference_pb2.Sampling(max_tokens=9))
due = 0
with grpc.insecure_channel(address) as channel:
    for message in inference_pb2_grpc.RouterStub(channel).Generate(
        request, metadata=[("authorization", f"Bearer {key}")], timeout=20
    ):
        assert message.first_index == due, (message.first_index, due)
        due += message.token_count
        last = message
print(due, last.finish.usage.completion_tokens, last.finish.reason)
"""


def make_environment(folder: Path) -> None:
    """A folder with stubs made from protos/, and the two packages that stubs need, and nothing else to import."""
    sources = [str(path) for path in PROTOS.glob("tokenworks/v1/*.proto")]
    outputs = [f"--python_out={folder}", f"--grpc_python_out={folder}"]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", *outputs, *sources], check=True)
    for package in ("grpc", "google", "typing_extensions"):
        spec = find_spec(package)
        assert spec is not None
        source = Path(next(iter(spec.submodule_search_locations))) if spec.submodule_search_locations else spec.origin
        assert source is not None
        target = Path(source)
        (folder / target.name).symlink_to(target)


async def test_a_client_made_from_the_protos_alone_gets_a_stream(mesh: LocalMesh, tmp_path: Path) -> None:
    environment = tmp_path / "plain"
    environment.mkdir()
    await asyncio.to_thread(make_environment, environment)
    script = environment / "client.py"
    script.write_text(CLIENT)
    # -S and -E: no site-packages, no PYTHONPATH; what stands beside the script is all there is.
    client = await asyncio.create_subprocess_exec(
        *(sys.executable, "-S", "-E", str(script), mesh.parts["router"].address, mesh.key, MODEL),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(DEADLINE_S):
        out, err = await client.communicate()
    assert client.returncode == 0, err.decode()
    assert out.decode().split() == ["9", "9", "length"]
