"""What is measured on a run's denoiser: samples and their scores, errors at every timestep, gradients."""
