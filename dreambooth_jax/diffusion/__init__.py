"""The mathematics of diffusion: arrays in, arrays out; `xt = alpha_t * x0 + sigma_t * noise`."""
