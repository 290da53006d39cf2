"""Generated pages of the manual's reference."""
