#!/usr/bin/env bash
# N processes of one run on this machine, as a rehearsal of several hosts:
#
#     launch/local.sh 2 --config=configs/imagen_like.py:smoke --workdir=runs/two
#
# On CPU each process has DEVICES (default 4) simulated devices; on GPUs give each its own with
# CUDA_VISIBLE_DEVICES_0, CUDA_VISIBLE_DEVICES_1, … When one process fails the others end as well;
# one that has not after GRACE seconds (default 120) is killed.
set -euo pipefail

if [[ $# -lt 2 || ! $1 =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: launch/local.sh N --config=FILE [more arguments of dreambooth_jax.main]" >&2
  exit 2
fi
count=$1
shift
cd "$(dirname "${BASH_SOURCE[0]}")/.."
port=${PORT:-$(python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')}
if [[ ${JAX_PLATFORMS:-cpu} == cpu ]]; then
  export JAX_PLATFORMS=cpu
  export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=${DEVICES:-4}"
fi

pids=()
stop() { kill -TERM "${pids[@]}" 2>/dev/null || true; }
trap 'stop; wait "${pids[@]}" || true' INT TERM
for ((i = 0; i < count; i++)); do
  visible=CUDA_VISIBLE_DEVICES_$i
  [[ -z ${!visible:-} ]] || export CUDA_VISIBLE_DEVICES=${!visible}
  python -m dreambooth_jax.main --coordinator="localhost:$port" --num_processes="$count" \
    --process_id="$i" "$@" &
  pids+=($!)
done

# Looks five times a second: `wait -n` misses a process that ends while another is waited for.
status=0
left=("${!pids[@]}")
while [[ ${#left[@]} -gt 0 ]]; do
  running=()
  for i in "${left[@]}"; do
    ended=0
    if kill -0 "${pids[i]}" 2>/dev/null; then
      running+=("$i")
      continue
    fi
    wait "${pids[i]}" || ended=$? # bash remembers it
    if [[ $ended -ne 0 && $status -eq 0 ]]; then
      status=$ended
      echo "launch/local.sh: process $i ended with status $ended; stopping the others." >&2
      stop
      deadline=$((SECONDS + ${GRACE:-120}))
    fi
  done
  left=("${running[@]}")
  if [[ $status -ne 0 && $SECONDS -ge $deadline ]]; then
    kill -KILL "${pids[@]}" 2>/dev/null || true
  fi
  sleep 0.2
done
exit "$status"
