"""What a training loop imports: checkpoints that describe themselves, and noise while training."""
