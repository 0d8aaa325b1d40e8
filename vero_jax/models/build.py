"""Writes a new policy: a Qwen3-VL checkpoint folder of any size with random weights, ready for `transformers` too."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from vero_jax.checkpoints.weights import save_params
from vero_jax.config import BuildConfig
from vero_jax.data.policy_folder import write_policy_files
from vero_jax.data.processor import Processor
from vero_jax.models.config import ModelConfig
from vero_jax.models.policy import ModelDef


def build_policy(out_dir: str | Path, build: BuildConfig, *, seed: int, corpus: Iterable[str] = ()) -> Path:
    """Builds a policy that nobody has trained; the same arguments give the same files.

    Args:
      out_dir: folder to write, made if needed.
      build: sizes of the towers, and where tokenizer and preprocessor come from.
      seed: of the weights, which are float32: normal with variance 1 / inputs, norms 1, biases 0.
      corpus: texts to train a tokenizer on, if `build.tokenizer` is "mini".

    Returns:
      The folder.

    Raises:
      UserError: sizes that do not fit together, or a tokenizer folder that lacks something.
    """
    folder = Path(out_dir).expanduser()
    write_policy_files(folder, build, corpus)
    Processor.from_folder(folder)  # tells at once if the copied files are not usable
    model_def = ModelDef(ModelConfig.from_folder(folder))
    save_params(folder, model_def, model_def.init_params(seed))
    return folder
