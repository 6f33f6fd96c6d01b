"""Side by side with the peers, in the same run: ``python -m benchmarks matmul attention training_step``."""
