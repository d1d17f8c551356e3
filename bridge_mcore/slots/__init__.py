"""Parameter slots (theta, theta_hat, reference) over one live model, and the optimizer that steps them by group."""
