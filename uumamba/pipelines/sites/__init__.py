"""Decentralized training of a run: sites, their batches and their scores."""
