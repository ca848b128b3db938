"""Ours beside the routers people use, in one run on one machine: `make bench-peers`.

Each peer is installed by its own file into an environment of its own under `.bench/`, and run as its documentation says
for two servers of one model; the harness, the backends and the load are those of `bench/datapath`.

    peer.py      what a peer is; its environment
    vllm_router.py  sglang_router.py  smg.py  dynamo.py  litellm_proxy.py  nginx.py   one file per peer
    dynamo_worker.py   Dynamo's backend, run in Dynamo's environment
    table.py     the table
"""
