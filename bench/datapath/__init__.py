"""What a router costs and what it adds, by one harness for every router: `python -m bench.datapath` measures ours,
`python -m bench.peers` ours beside the others.

Four processes, apart so that only the router is measured: two backends (`http_backend`, or `session_backend` for ours),
the router, and the load (`load`). Both backends make tokens as an engine does, in steps that all their streams share,
and without computing anything. A request's `max_tokens` says how many tokens it wants, its `seed` how many
milliseconds a step takes (0: back to back): every router passes both on.

    pacing.py         when a stream's tokens are due
    answers.py        what comes back, read as cheaply as it can be: tokens counted, gaps timed
    http2.py          gRPC's frames, enough of them to be a client that costs nearly nothing
    fit.py            least squares and percentiles
    http_backend.py   an OpenAI-compatible server without an engine
    session_backend.py  the same behind `Worker.Session`
    load.py  http_client.py  grpc_client.py   the clients, a process of their own
    processes.py      children: started, their CPU time and memory read, ended by pid
    subject.py        what is measured: a router that can be started
    scenarios.py      what is done to it
    ours.py           our router as a subject
"""
