"""Parts of prediction: inputs, segmented cases, their records and files."""
