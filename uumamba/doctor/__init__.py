"""Report of the machine, its speed, and the limit of training."""
