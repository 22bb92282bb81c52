#!/usr/bin/env bash
# A run on a Cloud TPU VM or a pod slice, from this machine: make or reuse the TPU, install there,
# run on all its workers, follow the log; after a preemption make it again and go on.
#
#     launch/tpu_vm.sh --name=duck --zone=us-west4-a --type=v5litepod-16 --spot \
#         --photos=photos/duck -- \
#         --config=configs/sdxl.py --config.subject.images=photos/duck \
#         --config.subject.class_noun=toy --workdir=gs://BUCKET/runs/duck
#     launch/tpu_vm.sh --name=duck --zone=us-west4-a --delete
#
# Options before the `--`:
#   --name=NAME --zone=ZONE   of the TPU; both are needed
#   --type=TYPE               accelerator type, to create it: v5litepod-16, v4-8, v6e-8 …
#   --version=VERSION         its runtime (default v2-alpha-tpuv5-lite for v5e, else by type)
#   --project=PROJECT         default: gcloud's own
#   --queued                  wait for it in the queue (queued resources)
#   --spot                    a spot TPU, which may be taken away
#   --photos=FOLDER           copied to all workers as photos/FOLDER's name
#   --studio                  start the page over the runs on worker 0, and print how to open it here
#   --detach                  leave once the run has started; the same command follows it again
#   --retries=N               how often a preempted TPU is made again (default 100)
#   --delete                  delete the TPU (and its queued request) and do nothing else
#   --dry-run                 print the commands instead
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

name='' zone='' type='' version='' project='' photos=''
queued=false spot=false detach=false delete=false dry=false studio=false retries=100

fail() {
  echo "launch/tpu_vm.sh: $*" >&2
  exit 2
}
while [[ $# -gt 0 ]]; do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --photos=*) photos=${1#*=} ;;
    --retries=*) retries=${1#*=} ;;
    --queued) queued=true ;;
    --spot) spot=true ;;
    --detach) detach=true ;;
    --studio) studio=true ;;
    --delete) delete=true ;;
    --dry-run) dry=true ;;
    --help | -h)
      sed -n '2,/^set -/{/^set -/!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    --)
      shift
      break
      ;;
    *) fail "$1: no such option; what belongs to the run stands after a --" ;;
  esac
  shift
done
[[ -n $name && -n $zone ]] || fail "--name and --zone are needed"
[[ $retries =~ ^[0-9]+$ ]] || fail "--retries=$retries: expected a whole number"
[[ -z $photos || -d $photos ]] || fail "--photos=$photos: no such folder"
$delete || [[ $# -gt 0 ]] || fail "nothing to run: write -- --config=FILE …"

if [[ -z $version ]]; then
  case $type in
    v5litepod*) version=v2-alpha-tpuv5-lite ;;
    v5p*) version=v2-alpha-tpuv5 ;;
    v6e*) version=v2-alpha-tpuv6e ;;
    *) version=tpu-ubuntu2204-base ;;
  esac
fi
where=(--zone="$zone")
[[ -z $project ]] || where+=(--project="$project")

run() {
  if ! $dry; then
    "$@"
    return
  fi
  local word line=''
  for word in "$@"; do
    if [[ $word =~ ^[a-zA-Z0-9_./:=,@%+-]+$ ]]; then line+="$word "; else line+="${word@Q} "; fi
  done
  echo "${line% }"
}
tpu() { run gcloud compute tpus tpu-vm "$1" "$name" "${where[@]}" "${@:2}"; }
copy() { run gcloud compute tpus tpu-vm scp "${@:2}" "$name:$1" "${where[@]}" --worker=all; }
on_all() { tpu ssh --worker=all --command="$1"; }
ask_state() { tpu describe --format='value(state)'; }
state() { ask_state 2>/dev/null || echo ABSENT; }

remove() {
  tpu delete --quiet || true
  if $queued; then
    run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --quiet --force || true
  fi
}
create() {
  [[ -n $type ]] || fail "there is no TPU $name in $zone: --type is needed to create it"
  local how=(--accelerator-type="$type")
  if $spot; then how+=(--spot); fi
  if ! $queued; then
    tpu create "${how[@]}" --version="$version"
    return
  fi
  run gcloud compute tpus queued-resources create "$name" --node-id="$name" "${where[@]}" \
    "${how[@]}" --runtime-version="$version"
  if $dry; then # until it says READY
    ask_state
    return
  fi
  until [[ $(state) == READY ]]; do
    echo "waiting in the queue for $name ($type)"
    sleep "${POLL:-30}"
  done
}
install() {
  local archive
  archive=$(mktemp -d)/dreambooth_jax.tar.gz
  run git archive --format=tar.gz --output="$archive" HEAD
  copy dreambooth_jax.tar.gz "$archive"
  on_all 'mkdir -p dreambooth_jax && tar -xzf dreambooth_jax.tar.gz -C dreambooth_jax'
  on_all 'cd dreambooth_jax && python3 -m venv .venv && .venv/bin/pip install -q -U "jax[tpu]" -e ".[gcs,studio]"'
  if [[ -n $photos ]]; then
    on_all 'mkdir -p dreambooth_jax/photos'
    copy dreambooth_jax/photos/ --recurse "$photos"
  fi
}
start() {
  local words
  words=$(printf '%q ' "$@")
  # JAX_PLATFORMS: without the TPU, which another program may hold, it ends instead of using the CPU.
  # A run that is under way is left alone. setsid: it outlives this connection.
  on_all "cd dreambooth_jax && { kill -0 \$(cat run.pid) 2>/dev/null || { setsid nohup \
env JAX_PLATFORMS=tpu,cpu .venv/bin/python -m dreambooth_jax.main --coordinator=auto ${words% } >run.log 2>&1 </dev/null & \
echo \$! >run.pid; }; }"
}
watch() { # the page reads the runs' folder; it never touches the TPU
  local word runs=runs
  for word in "$@"; do
    if [[ $word == --workdir=*/* ]]; then
      runs=${word#*=}
      runs=${runs%/*}
    fi
  done
  tpu ssh --worker=0 --command="cd dreambooth_jax && { kill -0 \$(cat studio.pid) 2>/dev/null || \
{ JAX_PLATFORMS=cpu setsid nohup .venv/bin/python -m dreambooth_jax.studio $(printf '%q' "$runs") \
--port 8765 >studio.log 2>&1 </dev/null & echo \$! >studio.pid; }; } && sleep 5 && cat studio.log"
  echo "To open the page here, keep this running and open the address above:"
  dry=true tpu ssh --worker=0 -- -L 8765:localhost:8765
}
follow() { # ends when worker 0's run does; its status is the run's
  tpu ssh --worker=0 --command="cd dreambooth_jax && tail -n +1 --pid=\$(cat run.pid) -F run.log; \
tail -n 1 run.log | grep -q Done"
}

if $delete; then
  queued=true
  remove
  exit 0
fi
for ((attempt = 0; attempt <= retries; attempt++)); do
  now=ABSENT
  if $dry; then ask_state; else now=$(state); fi # as if there was none
  if [[ $now == PREEMPTED || $now == TERMINATED || $now == STOPPED ]]; then
    remove
    now=ABSENT
  fi
  if [[ $now == ABSENT ]]; then
    create
    install
  fi
  start "$@"
  if $studio; then watch "$@"; fi
  if $detach; then exit 0; fi
  if follow; then exit 0; fi
  $dry && exit 0
  now=$(state)
  if [[ $now == READY ]]; then
    echo "launch/tpu_vm.sh: the run ended with an error; its log is above. The TPU $name is kept." >&2
    exit 1
  fi
  echo "launch/tpu_vm.sh: $name is $now; making it again ($((attempt + 1)) of $retries)"
done
exit 1
