"""Pre-training of the enhancer, joint training, and the run folder that both write."""
