"""What bench/gpu.sh runs on a machine with a GPU: the rows, their truth, the timer, the report."""
