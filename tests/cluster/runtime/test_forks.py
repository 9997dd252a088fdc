"""A process that starts others while its threads are in gRPC, as a driver with Serve's clients does."""

import os
import subprocess
import sys

from configs.paths import ROOT

NUM_STARTS = 100
PROGRAM = f"""
import cluster  # settles what gRPC reads when it is loaded
import asyncio, collections, os, subprocess, threading
import grpc

async def echo(request, context):
    return request

async def call_all_the_time(ready):
    server = grpc.aio.server()
    method = grpc.unary_unary_rpc_method_handler(echo)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("s", {{"m": method}}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    call = grpc.aio.insecure_channel(f"127.0.0.1:{{port}}").unary_unary("/s/m")
    while True:
        await call(b"x")
        ready.set()

ready = threading.Event()
threading.Thread(target=lambda: asyncio.run(call_all_the_time(ready)), daemon=True).start()
assert ready.wait(60)
# A function to be called before exec makes it a real fork, as Ray's are.
ends = collections.Counter(subprocess.Popen(["true"], preexec_fn=lambda: None).wait() for _ in range({NUM_STARTS}))
print(dict(ends), flush=True)
os._exit(0)
"""


def test_no_process_dies_before_it_has_begun():
    environment = {name: value for name, value in os.environ.items() if name != "GRPC_ENABLE_FORK_SUPPORT"}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == f"{{0: {NUM_STARTS}}}\n", done.stderr[-500:]
