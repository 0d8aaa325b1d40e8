"""An OpenAI-compatible server of a checkpoint on the group engine: `python -m vero_jax.serve FOLDER`."""
