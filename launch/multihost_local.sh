#!/usr/bin/env bash
# Runs a command in several processes of this machine, as on the hosts of a slice:
#
#     launch/multihost_local.sh 2 python -m sigma_jax.train --config=configs/sft.py:smoke
#
# DEVICES=4 gives each process 4 simulated CPU devices; the default is 1. When one process fails, the
# script kills the others. It passes SIGTERM and Ctrl-C on to all processes.
set -euo pipefail

if [[ $# -lt 2 || ! $1 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: launch/multihost_local.sh PROCESSES COMMAND [WORD ...]" >&2
    exit 2
fi
count=$1 && shift
port=$(python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
export JAX_COORDINATOR_ADDRESS=localhost:$port SIGMA_PROCESSES=$count
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
if [[ $JAX_PLATFORMS == cpu ]]; then
    export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=${DEVICES:-1}"
fi

running=()
for ((number = 0; number < count; number++)); do
    SIGMA_PROCESS=$number "$@" &
    running+=($!)
done
trap 'kill -TERM "${running[@]}" 2>/dev/null || true' TERM INT

status=0
while ((${#running[@]} > 0)); do
    sleep 0.2
    left=()
    for process in "${running[@]}"; do
        if kill -0 "$process" 2>/dev/null; then
            left+=("$process")
            continue
        fi
        code=0
        wait "$process" || code=$?
        if ((code != 0 && status == 0)); then
            status=$code
            kill -KILL "${running[@]}" 2>/dev/null || true
        fi
    done
    running=(${left[@]+"${left[@]}"})
done
exit "$status"
