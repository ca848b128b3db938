"""Workers that nobody runs, for benchmarks of those who hear them."""

from services.mesh.accelerators import load_catalogue
from services.mesh.events import WorkerHeartbeat


def idle_beat(worker: str, pool: str, accelerator: str, model: str, sequence: int = 0) -> WorkerHeartbeat:
    """A heartbeat of an idle simulated worker that has the model alone."""
    catalogue = load_catalogue()
    device = catalogue.accelerator(accelerator)
    return WorkerHeartbeat(
        worker=worker,
        pool=pool,
        accelerator=accelerator,
        engine="simulated",
        models=(model,),
        address=f"{worker}:7610",
        epoch="e",
        sequence=sequence,
        state="ready",
        running=0,
        waiting=0,
        waiting_prefill_tokens=0,
        kv_cache_usage=0.0,
        kv_capacity_tokens=catalogue.kv_capacity_tokens(device, catalogue.model(model)),
        context_tokens=131_072,
        max_batch=256,
        max_waiting=1024,
        slowdown=1.0,
        power_w=device.idle_w,
        busy_ns=0,
        generated_tokens=0,
        energy_uj=0,
        simulated=True,
        rate_nusd_per_hour=device.rate_nusd_per_hour,
        failed_because="",
        at_unix_ms=0,
        steps=0,
        prefill_chunk_tokens=2048,
    )
