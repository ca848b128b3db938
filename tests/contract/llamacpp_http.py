"""llama.cpp's own HTTP server as a process: `python -m tests.contract.llamacpp_http MODEL.gguf SLOTS TOKENS`.

Prints its address on a line of its own, and runs until its standard input ends or it is killed.
"""

import sys

import xllamacpp


def main(path: str, slots: int, tokens: int) -> None:
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_parallel = slots
    params.n_ctx = slots * tokens
    params.n_batch = params.n_ubatch = 64
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_ram_mib = params.n_ctx_checkpoints = 0
    params.endpoint_metrics = True
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.verbosity = 0
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
