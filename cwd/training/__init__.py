"""Training: one run from configuration to summary. Stands on optim, models, data and runs."""
