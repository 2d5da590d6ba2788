"""From two models' raw outputs to the distillation loss."""
