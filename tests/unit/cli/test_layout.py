from pathlib import Path

import pytest

from services.cli.layout import fleet_of, lay_out, ports_needed, with_meters
from services.cli.real_model import RealModel
from services.mesh.errors import SettingInvalid
from services.mesh.settings import FleetSettings, NatsSettings, load_settings

DIRECTORY = Path("/data")


def layout_of(settings, *, all_free=False, fleet=None):
    fleet = fleet or settings.fleet.workers
    spare = list(range(40_000, 40_000 + ports_needed(len(fleet))))
    return lay_out(
        settings,
        data_dir=DIRECTORY,
        secret="s",
        fleet=fleet,
        free_ports=spare,
        all_free=all_free,
        extra_environment={"OTEL_X": "y"},
    )


def test_default_mesh_is_three_services_and_seven_kinds_of_accelerator():
    layout = layout_of(load_settings())
    kinds = [spec.kind for spec in layout.services]
    assert (kinds.count("worker"), len(kinds), len(layout.accelerators)) == (7, 10, 7)
    assert (layout.access.router, layout.access.meter) == ("127.0.0.1:7600", "127.0.0.1:7601")
    assert layout.nats_nodes == ((4222, 0),)
    assert layout.clashes() == []


def test_router_and_worker_of_the_real_model_start_first():
    assert layout_of(load_settings()).first == ("router-0", "cpu-0")


def test_every_service_knows_directory_secret_bus_and_what_is_extra():
    for spec in layout_of(load_settings()).services:
        assert spec.environment["TOKENWORKS_MESH_DATA_DIR"] == "/data"
        assert spec.environment["TOKENWORKS_MESH_SECRET"] == "s"
        assert spec.environment["TOKENWORKS_NATS_URL"] == "nats://127.0.0.1:4222"
        assert spec.environment["OTEL_X"] == "y"


def test_environment_of_each_service_is_what_its_settings_read(monkeypatch):
    layout = layout_of(load_settings(), all_free=True)
    worker = next(spec for spec in layout.services if spec.id == "l4-0")
    for name, value in worker.environment.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert (settings.worker.id, settings.worker.accelerator) == ("l4-0", "nvidia-l4")
    assert settings.worker.models == ("llama-3.1-8b",)
    assert f"127.0.0.1:{settings.worker.http_port}" == worker.ready_at
    assert settings.mesh.secret == "s"


def test_free_ports_replace_every_port_and_none_comes_twice():
    layout = layout_of(load_settings(), all_free=True)
    ports = [claim.port for claim in layout.claims]
    assert len(set(ports)) == len(ports) == 21
    assert all(port >= 40_000 for port in ports)


def test_port_zero_in_the_settings_means_a_free_one():
    layout = layout_of(load_settings(nats=NatsSettings(port=0), fleet=FleetSettings(first_worker_port=0)))
    by_setting = {claim.setting: claim.port for claim in layout.claims}
    assert by_setting["nats.port"] >= 40_000
    assert by_setting["fleet.first_worker_port + 3"] >= 40_000
    assert by_setting["router.port"] == 7600


def test_own_server_is_not_started_where_a_bus_is_named():
    layout = layout_of(load_settings(nats=NatsSettings(url="nats://elsewhere:4222")))
    assert (layout.nats_nodes, layout.access.nats) == ((), "nats://elsewhere:4222")


def test_two_services_on_one_port_are_told():
    layout = layout_of(load_settings(fleet=FleetSettings(first_worker_port=7601)))
    assert "port 7601 is wanted by meter.port and fleet.first_worker_port + 0" in layout.clashes()


def test_engine_of_the_command_line_goes_to_the_cpu_only():
    fleet = fleet_of(load_settings(), RealModel(engine="simulated", model="llama-3.1-8b"))
    by_id = {worker.id: worker for worker in fleet}
    assert (by_id["cpu-0"].engine, by_id["cpu-0"].models) == ("simulated", ("llama-3.1-8b",))
    assert (by_id["h100-0"].engine, by_id["h100-0"].models) == ("simulated", ("llama-3.1-8b",))


def test_three_nodes_have_ports_of_their_own_and_every_service_knows_all_of_them():
    layout = layout_of(load_settings(nats=NatsSettings(nodes=3)))
    ports = [port for node in layout.nats_nodes for port in node]
    assert (ports[0], len(set(ports)), min(ports) > 0) == (4222, 6, True)
    url = ",".join(f"nats://127.0.0.1:{port}" for port, _ in layout.nats_nodes)
    assert layout.access.nats == url
    for service in layout.services:
        assert service.environment["TOKENWORKS_NATS_URL"] == url
        assert service.environment["TOKENWORKS_NATS_REPLICAS"] == "3"


def test_several_meters_share_a_database_and_are_reached_by_one_address():
    settings = with_meters(load_settings(), 2, "postgresql://meter@127.0.0.1/books")
    layout = layout_of(settings)
    meters = [spec for spec in layout.services if spec.kind == "meter"]
    assert [spec.id for spec in meters] == ["meter-0", "meter-1"]
    for spec in meters:
        assert spec.environment["TOKENWORKS_METER_ID"] == spec.id
        assert spec.environment["TOKENWORKS_METER_DATABASE_URL"] == "postgresql://meter@127.0.0.1/books"
    assert layout.access.meter == ",".join(spec.shown.removeprefix("gRPC ") for spec in meters)
    assert layout.clashes() == []


def test_several_meters_on_a_sqlite_file_are_refused():
    with pytest.raises(SettingInvalid, match=r"fleet\.meters = 2.*--store"):
        with_meters(load_settings(), 2, "")
