"""Ingest: weights of saved models, put into a run as `filmstrip ingest` does."""
