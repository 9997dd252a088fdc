#!/bin/bash
# A VisionThink run on Ray, as a job of Slurm.
# Written by: visionthink cluster render --kind slurm --config visionthink_7b_4x8gpu --out slurm.sh
#
# Start:  sbatch slurm.sh, in the project's folder, on a file system that all nodes share
# Where jobs are preempted, Slurm's PreemptParameters must have send_user_signal: else Ray ends first.
#SBATCH --job-name=visionthink-7b-4x8gpu
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=68
#SBATCH --mem=754G
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:TERM@60

set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
python=${PYTHON:-$SLURM_SUBMIT_DIR/.venv/bin/python}
ray=$(dirname "$python")/ray

# A token for this job alone, in a file that only its owner reads. Home is shared by all nodes.
mkdir -p "$HOME/.ray"
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH="$HOME/.ray/slurm-$SLURM_JOB_ID.token"
(umask 077 && "$python" -c 'import secrets; print(secrets.token_hex(32), end="")' >"$RAY_AUTH_TOKEN_PATH")

# This script runs on the first node, which is the head. Jobs that share a machine differ in port and folder.
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head_ip=${HEAD_IP:-$(hostname -I | awk '{print $1}')}
port=$((20000 + SLURM_JOB_ID % 10000))
export RAY_TMPDIR=/tmp/ray-$SLURM_JOB_ID
export RAY_USAGE_STATS_ENABLED=0

start_node() {
    local node=$1
    shift
    srun --overlap --nodes=1 --ntasks=1 --cpus-per-task=68 --nodelist="$node" \
        "$ray" start --num-cpus=68 --num-gpus=8 --block "$@" &
}

finish() {
    rm -f "$RAY_AUTH_TOKEN_PATH"
    local steps
    steps=$(jobs -p)
    [ -z "$steps" ] || kill $steps 2>/dev/null || true
}
trap finish EXIT

# Slurm announces the end of the job 60 s before it: the run saves, and the requeued job resumes it by its name.
stopping=0
driver=
stop_run() {
    stopping=1
    if [ -n "$driver" ]; then
        kill -TERM "$driver" 2>/dev/null || true
    else
        scontrol requeue "$SLURM_JOB_ID"
        exit 143
    fi
}
trap stop_run TERM

mkdir -p "$RAY_TMPDIR"
start_node "${nodes[0]}" --head --node-ip-address="$head_ip" --port="$port" --dashboard-host=127.0.0.1
deadline=$((SECONDS + 180))
until "$ray" health-check --address "$head_ip:$port" >/dev/null 2>&1; do
    if ((SECONDS > deadline)); then
        echo "the head of Ray did not start within 180 s on ${nodes[0]}" >&2
        exit 1
    fi
    sleep 2
done
for node in "${nodes[@]:1}"; do
    start_node "$node" --address="$head_ip:$port"
done

export RAY_ADDRESS="$head_ip:$port"
"$python" -m cluster.cli train --config visionthink_7b_4x8gpu run.name=visionthink_7b_4x8gpu &
driver=$!
code=0
wait "$driver" || code=$?
if ((stopping)); then
    code=0
    wait "$driver" || code=$?
    if ((code)); then
        scontrol requeue "$SLURM_JOB_ID"
    fi
fi
exit "$code"
