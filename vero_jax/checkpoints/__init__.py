"""Checkpoints on disk: Hugging Face's and our own, read and written tensor by tensor."""
