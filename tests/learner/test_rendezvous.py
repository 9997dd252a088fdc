"""The ranks of one machine are reached from that machine alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

from learner.host import free_port, own_address

ROOT = Path(__file__).resolve().parents[2]
RANK = """
import json, sys, torch
import psutil
import torch.distributed as dist
from learner.engine import join_process_group, leave_process_group
rank, port = int(sys.argv[1]), int(sys.argv[2])
join_process_group(rank=rank, world_size=2, address="127.0.0.1", port=port, timeout_s=60, on_gpu=False)
ones = torch.ones(3)
dist.all_reduce(ones)
ports = [end.laddr.ip for end in psutil.Process().net_connections(kind="inet") if end.status == "LISTEN"]
print(json.dumps({"sum": ones.tolist(), "ports": ports}))
dist.barrier()
leave_process_group()
"""


def test_ranks_of_one_machine_listen_on_loopback_only():
    port = free_port()
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", RANK, str(rank), str(port)],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = [rank.communicate(timeout=120) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], outputs
    for out, _ in outputs:
        found = json.loads(out.splitlines()[-1])
        assert found["sum"] == [2.0, 2.0, 2.0]
        assert set(found["ports"]) == {"127.0.0.1"}


def test_the_address_of_a_run_on_one_machine_is_loopback(monkeypatch):
    monkeypatch.setenv("VISIONTHINK_LOOPBACK", "1")
    assert own_address() == "127.0.0.1"
