"""Chaos: a live mesh under load is broken on purpose, on a seeded schedule, and held to its promises afterwards.

 1. What can be broken here, and how: each service's process, workers from within, links, the bus, the meter's disk.
        services/chaos/core/faults.py  services/chaos/ground.py
 2. When what is broken, for how long: a function of seed and fleet, so that a run can be had again.
        services/chaos/core/schedule.py
 3. Streams, direct and relayed, by the client that programs use; what each says was learned undisturbed first.
        services/chaos/load.py  services/chaos/core/streams.py
 4. Faults come and go: signals, `FaultControl`, links that hold back what they carry, messages stored again.
        services/chaos/injector.py  services/chaos/links.py  services/chaos/nats_operator.py
 5. Everything is mended; then streams, books, budgets and what was left behind are checked.
        services/chaos/audit.py  services/chaos/core/verdict.py  services/chaos/traces_left.py
 6. One run from its first stream to its last check; the report ends in one line.
        services/chaos/run.py  services/chaos/report.py

The mesh itself comes in as a `Ground`: `tokenworks chaos` starts one of its own, or attaches to one that runs.
"""
