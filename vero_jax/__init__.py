"""vero_jax: reinforcement learning for vision-language models on JAX.

Importing this package imports nothing else, so that reward workers and data workers stay free of jax.
"""

__version__ = "0.1.0"
