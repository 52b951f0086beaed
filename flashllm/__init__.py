"""Run language models larger than your RAM, on the CPU, from Python."""
