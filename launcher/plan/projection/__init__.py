"""How long a step takes, before it runs: kernels, CPU, communication and schedule."""
