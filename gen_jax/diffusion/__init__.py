"""What diffusion models share: noise schedules, the Gaussian process, samplers."""
