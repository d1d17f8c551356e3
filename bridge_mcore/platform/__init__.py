"""Device, collectives and kernels: the only room that asks whether CUDA is there."""
