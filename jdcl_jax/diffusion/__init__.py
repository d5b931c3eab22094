"""The diffusion process and its samplers: pure functions that know no network, no task and no device."""
