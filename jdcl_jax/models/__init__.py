"""Networks: the denoiser, the small classifier behind the scores, Inception. They know no losses and no tasks."""
