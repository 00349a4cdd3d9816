#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=1
#SBATCH --error=/scratch/flip/vitb16/logs/%j_0_log.err
#SBATCH --exclusive
#SBATCH --job-name=table2_flip_b16
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/scratch/flip/vitb16/logs/%j_0_log.out
#SBATCH --partition=low
#SBATCH --requeue
#SBATCH --signal=USR2@30
#SBATCH --time=2160

# setup
srun --overlap --mpi=none --kill-on-bad-exit=0 --chdir=/ --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" sh -c 'for wait in 0 2 4; do sleep $wait; test -e /scratch/flip/vitb16/token && exit 0; done; echo "flipscale: ${SLURMD_NODENAME:-$(hostname)} does not see the run directory, which must be on a file system that all nodes share:" /scratch/flip/vitb16 >&2; exit 66'
if [ $? -eq 66 ]; then exit 2; fi
export SLURM_NTASKS="$((SLURM_NNODES * 1))"
export SRUN_CPUS_PER_TASK=1
export OMP_NUM_THREADS=1

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /scratch/flip/vitb16/logs/%j_%t_log.out --error /scratch/flip/vitb16/logs/%j_%t_log.err --kill-on-bad-exit=1 env --block-signal=TERM --block-signal=USR1 --block-signal=USR2 /opt/flipscale/bin/python -u -m submitit.core._submit /scratch/flip/vitb16/logs
