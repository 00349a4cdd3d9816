#!/bin/bash

# Parameters
#SBATCH --account=project-4711
#SBATCH --cpus-per-task=16
#SBATCH --error=/scratch/flip/vitb16/logs/%j_0_log.err
#SBATCH --exclusive
#SBATCH --gpus-per-node=4
#SBATCH --job-name=table2_flip_b16
#SBATCH --mem=0
#SBATCH --no-requeue
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output=/scratch/flip/vitb16/logs/%j_0_log.out
#SBATCH --partition=batch
#SBATCH --signal=USR2@300
#SBATCH --time=720
#SBATCH --wckey=flip

# setup
srun --overlap --mpi=none --kill-on-bad-exit=0 --chdir=/ --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" sh -c 'for wait in 0 2 4; do sleep $wait; test -e /scratch/flip/vitb16/token && exit 0; done; echo "flipscale: ${SLURMD_NODENAME:-$(hostname)} does not see the run directory, which must be on a file system that all nodes share:" /scratch/flip/vitb16 >&2; exit 66'
if [ $? -eq 66 ]; then exit 2; fi
export SLURM_NTASKS="$((SLURM_NNODES * 4))"
flipscale_start="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}"
flipscale_start="$flipscale_start.${SLURM_RESTART_COUNT:-0}"
flipscale_note() {
  printf '{"attempt": "%s", "%s": %(%s)T}\n' "$flipscale_start" "$1" -1 >> /scratch/flip/vitb16/starts.jsonl
}
flipscale_note began
trap 'flipscale_note left' EXIT
trap 'if [ "${#BASH_SOURCE[@]}" -eq 1 ]; then echo "flipscale: a setup line of the site failed: $BASH_COMMAND" >&2; exit 2; fi' ERR
module purge
module load gcc/13 cuda/12.6
source /project/4711/venv/bin/activate
trap - ERR
export SRUN_CPUS_PER_TASK=16
export NCCL_SOCKET_IFNAME=hsn0
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
set +e
env --block-signal=TERM --block-signal=USR1 --block-signal=USR2 python -c 'import flipscale, submitit' || { echo 'flipscale: this command does not start flipscale here: env --block-signal=TERM --block-signal=USR1 --block-signal=USR2 python' >&2; echo 'flipscale: correct python or setup in the site file, or install flipscale for it' >&2; exit 2; }

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /scratch/flip/vitb16/logs/%j_%t_log.out --error /scratch/flip/vitb16/logs/%j_%t_log.err --kill-on-bad-exit=1 env --block-signal=TERM --block-signal=USR1 --block-signal=USR2 python -u -m submitit.core._submit /scratch/flip/vitb16/logs


# teardown
code=$?
case $code in 0|2|126|127) exit $code;; esac
start="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}"
restarts="${SLURM_RESTART_COUNT:-0}"
word=/scratch/flip/vitb16/heartbeats/"$start.$restarts"/last_word.json
if grep -qsF '"kind": "stopped"' "$word"; then exit 0; fi
if [ -e "$word" ]; then exit $code; fi
opened=
for before in 0 1 2 3; do
  attempt="\"attempt\": \"$start.$((restarts - before))\""
  if grep -qsF "$attempt" /scratch/flip/vitb16/segment.json /scratch/flip/vitb16/ledger.jsonl; then opened=yes; fi
done
if [ "$restarts" -ge 3 ] && [ -z "$opened" ]; then
  echo "flipscale: four starts in a row ended before they could train; fix the cause and submit again" >&2
  exit $code
fi
echo "flipscale: the processes ended with code $code and did not say why; another start is requested" >&2
env --block-signal=TERM --block-signal=USR1 --block-signal=USR2 python -m flipscale.orchestration.segments.last_resort /scratch/flip/vitb16
exit $code