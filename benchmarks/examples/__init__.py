"""Scripts to start from, each short enough for a notebook."""
