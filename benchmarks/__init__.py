"""One script a claim or speed figure; full runs are committed under ``results/`` and fill the README's tables."""
