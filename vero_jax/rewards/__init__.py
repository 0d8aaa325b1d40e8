"""Rewards: text of an answer in, score out. Nothing in this room imports jax; workers run it in their own processes."""
