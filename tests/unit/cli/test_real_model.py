"""A real model from the command line: what its worker runs, and what the simulated pools take it for."""

import json
import struct
import sys

import pytest

from services.cli import real_model as module
from services.cli.layout import fleet_of, is_local, lay_out, ports_needed
from services.cli.model_shape import STAND_IN, model_name, row_of
from services.cli.output import CommandFailed
from services.cli.real_model import RealModel, real_model
from services.mesh.accelerators import ModelShape, load_catalogue
from services.mesh.settings import load_settings
from tests.contract.tiny_gguf import write_tiny_gguf

CONFIG = {
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "vocab_size": 500,
    "max_position_embeddings": 1024,
    "torch_dtype": "float32",
}


@pytest.fixture
def directory(tmp_path):
    path = tmp_path / "tiny-chat"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    return path


@pytest.fixture
def gguf(tmp_path):
    path = tmp_path / "tiny.gguf"
    write_tiny_gguf(path)
    return path


@pytest.fixture
def vllm_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(module, "_DEVICES", ())
    python = tmp_path / ".venv-engines" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("")
    return python


def test_nothing_said_leaves_the_fleet_as_it_is():
    assert fleet_of(load_settings(), real_model()) == load_settings().fleet.workers


def test_vllm_gets_its_weights_its_interpreter_and_the_shape_for_the_others(directory, vllm_elsewhere):
    real = real_model(engine="vllm", model=str(directory))
    assert (real.model, real.python, real.note) == ("tiny-chat", str(vllm_elsewhere), "")
    assert real.worker["vllm_model"] == str(directory)
    assert (real.shape["layers"], real.shape["head_dim"], real.shape["context_tokens"]) == (2, 32, 1024)
    fleet = {worker.id: worker for worker in fleet_of(load_settings(), real)}
    assert (fleet["cpu-0"].engine, fleet["cpu-0"].models, fleet["cpu-0"].python) == (
        "vllm",
        ("tiny-chat",),
        real.python,
    )
    others = [worker for worker in fleet.values() if not is_local(worker)]
    assert {worker.models for worker in others} == {("tiny-chat",)}
    assert {worker.engine for worker in others} == {"simulated"}


def test_vllm_on_a_machine_with_an_accelerator_detects_it(directory, vllm_elsewhere, monkeypatch):
    assert real_model(engine="vllm", model=str(directory)).accelerator == ""
    monkeypatch.setattr(module, "_DEVICES", (str(directory),))
    real = real_model(engine="vllm", model=str(directory))
    fleet = {worker.id: worker for worker in fleet_of(load_settings(), real)}
    assert (fleet["cpu-0"].accelerator, fleet["cpu-0"].engine, is_local(fleet["cpu-0"])) == ("auto", "vllm", True)
    assert "vllm_arguments" not in fleet["cpu-0"].worker


def test_worker_process_reads_what_the_command_line_said(directory, vllm_elsewhere, monkeypatch):
    real = real_model(engine="vllm", model=str(directory))
    settings = load_settings()
    fleet = fleet_of(settings, real)
    layout = lay_out(
        settings,
        data_dir=directory,
        secret="s",
        fleet=fleet,
        free_ports=list(range(40_000, 40_000 + ports_needed(len(fleet)))),
        all_free=True,
        extra_environment={"TOKENWORKS_CATALOGUE_MODELS": json.dumps({real.model: real.shape})},
    )
    spec = next(each for each in layout.services if each.id == "cpu-0")
    assert (spec.python, spec.ready_within_s > 90) == (str(vllm_elsewhere), True)
    for name, value in spec.environment.items():
        monkeypatch.setenv(name, value)
    assert load_settings().worker.vllm_model == str(directory)
    load_catalogue.cache_clear()
    try:
        assert load_catalogue().model("tiny-chat") == ModelShape(key="tiny-chat", **real.shape)
    finally:
        load_catalogue.cache_clear()


def test_where_vllm_is_missing_it_is_said_what_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(module, "_ENVIRONMENT", "nowhere")
    with pytest.raises(CommandFailed, match=f"not installed for {sys.executable}.*make run ENGINE=vllm"):
        real_model(engine="vllm", model="Qwen/Qwen3-0.6B")


def test_a_gguf_file_is_served_by_llamacpp_and_says_its_shape(gguf):
    real = real_model(engine="llamacpp", model=str(gguf))
    assert (real.model, real.worker) == ("tiny", {"llamacpp_model_path": str(gguf)})
    assert (real.shape["layers"], real.shape["hidden"], real.shape["kv_heads"]) == (2, 64, 1)
    assert real.shape["parameters"] > 50_000


@pytest.mark.parametrize("size", [0, 4, 20, 200, 2000])
def test_a_file_that_is_cut_off_is_named(gguf, size):
    gguf.write_bytes(gguf.read_bytes()[:size])
    with pytest.raises(CommandFailed, match=r"shape of .*tiny\.gguf cannot be read"):
        row_of(str(gguf))


def test_a_file_that_claims_to_be_endless_is_refused(tmp_path):
    path = tmp_path / "bad.gguf"
    path.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 1 << 60, 1 << 60))
    with pytest.raises(CommandFailed, match="cannot be read"):
        row_of(str(path))


def test_a_server_needs_its_address_and_the_models_name():
    real = real_model(engine="openai", model="qwen", url="http://127.0.0.1:8000")
    assert (real.model, real.worker) == ("qwen", {"openai_url": "http://127.0.0.1:8000"})
    assert real.shape == row_of(STAND_IN)
    assert f"take it for {STAND_IN}" in real.note
    with pytest.raises(CommandFailed, match="--url"):
        real_model(engine="openai", model="qwen")
    with pytest.raises(CommandFailed, match="--model"):
        real_model(engine="openai", url="http://127.0.0.1:8000")
    with pytest.raises(CommandFailed, match="--engine openai"):
        real_model(engine="vllm", model="qwen", url="http://127.0.0.1:8000")


def test_a_model_of_the_catalogue_needs_no_shape_and_another_may_be_named(directory):
    assert real_model(engine="simulated", model="llama-3.1-8b").shape is None
    assert real_model(engine="simulated", model="mine", shape=str(directory)).shape["hidden"] == 64
    with pytest.raises(CommandFailed, match="none of the catalogue's"):
        real_model(engine="simulated", model="mine", shape="nothing-known")


def test_a_pool_without_room_for_the_model_keeps_its_own():
    huge = row_of(STAND_IN) | {"parameters": 30_000_000_000}
    fleet = {worker.id: worker for worker in fleet_of(load_settings(), RealModel(model="huge", shape=huge))}
    assert fleet["l4-0"].models == ("llama-3.1-8b",)
    assert fleet["mi300x-0"].models == ("huge",)


def test_a_downloaded_model_is_found_by_its_name(tmp_path, monkeypatch):
    snapshot = tmp_path / "models--acme--tiny" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(CONFIG))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert row_of("acme/tiny")["layers"] == 2
    assert model_name("acme/tiny") == "acme/tiny"
