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
# wait: what is left 120 s after the first rank has ended is ended, too; until then the others find out which one it was
srun --wait=120 --distribution=block --label \
  medvlt fit --config grpo/m23k_32b.yaml --config hardware/4x8gpu.yaml --ckpt_path last
code=$?

# Something was lost and nothing is wrong with the command: 75 is medvlt's word for it, 137 and 143 are ranks that were
# killed, whose code srun prefers as the higher one. Then it goes on from last.ckpt, five times at most. An error of a
# rank's own, which would come again, ends it with 1 or 2, and the others with 1.
case "$code" in
  75 | 137 | 143) [ "${SLURM_RESTART_COUNT:-0}" -ge 5 ] || scontrol requeue "$SLURM_JOB_ID" ;;
esac
exit "$code"
