#!/usr/bin/env bash
#SBATCH --job-name=dreambooth
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=dreambooth-%j.log
# One task per node, each with all devices of its node; a shared folder for --workdir:
#
#     sbatch --nodes=2 launch/slurm.sh --config=configs/sdxl.py --workdir=/shared/runs/duck
#
# Two minutes before the time is up, and when it is preempted, the run saves and the job is put
# back into the queue; the same command then goes on. Processes find each other through Slurm.
set -euo pipefail

if [[ $# -eq 0 ]]; then
  echo "usage: sbatch [options] launch/slurm.sh --config=FILE --workdir=FOLDER [more]" >&2
  exit 2
fi
cd "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}"
python=${PYTHON:-python}

status=0
srun --kill-on-bad-exit=1 "$python" -m dreambooth_jax.main --coordinator=auto "$@" || status=$?
if [[ $status -eq 143 ]]; then # 128 + SIGTERM: saved, and not finished
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
