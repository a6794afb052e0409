#!/bin/bash
# Several machines under SLURM: sbatch configs/devices/slurm.sh
# One task for each GPU; Lightning reads the rest from SLURM. A first SIGTERM, 120 seconds before the time is up, lets
# the run save itself: submit the same script again with --ckpt_path last to go on. Not run: no cluster was at hand.
#SBATCH --job-name=minigpt
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120

srun python -m minigpt fit --config configs/gpt1.yaml --trainer.accelerator gpu --trainer.strategy ddp \
  --trainer.devices 8 --trainer.num_nodes 2 \
  --data.batch_size 64 --trainer.accumulate_grad_batches 1 --trainer.val_check_interval 125 "$@"
