"""Report of what this machine has, how fast its parts are, and what will limit training."""
