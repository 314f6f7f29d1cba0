#!/bin/bash
# Four nodes of 8 GPUs; sbatch configs/hardware/slurm.sh. For other sizes change --nodes and the hardware fragment together.
# The variables that srun sets and the exit codes were tried without Slurm; sbatch, srun and scontrol themselves were not.
#SBATCH --job-name=medvlt
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=medvlt-%j.out

# block: engines that ranks share need ranks numbered node by node. --ckpt_path last begins anew where there is none.
srun --kill-on-bad-exit=1 --distribution=block --label \
  medvlt fit --config grpo/m23k_32b.yaml --config hardware/4x8gpu.yaml --ckpt_path last
code=$?

# 75: a rank or a node was lost and nothing is wrong with the command, so it goes on from last.ckpt, five times at most
if [ "$code" -eq 75 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 5 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
