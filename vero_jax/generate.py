"""Asks a checkpoint about images, from the command line.

    python -m vero_jax.generate FOLDER [--image chart.png ...] [--video frames/ --fps 2] "How many bars are there?"

`<image>` and `<video>` in the question mark where a picture stands; without them the pictures stand before the text.
How tokens are drawn comes from the folder's generation_config.json, unless an option says otherwise.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from vero_jax.checkpoints.hub import resolve_checkpoint
from vero_jax.checkpoints.saved_params import run_checkpoints
from vero_jax.config import DataConfig, MeshConfig, RolloutConfig, SamplingConfig
from vero_jax.data.chat import PromptError
from vero_jax.data.processor import Processor
from vero_jax.data.prompts import system_prompt
from vero_jax.data.videos import read_frames
from vero_jax.errors import UserError, friendly
from vero_jax.models.config import ModelConfig
from vero_jax.models.lora import adapter_base, adapter_lora, is_adapter, load_adapted
from vero_jax.models.policy import ModelDef, Params
from vero_jax.parallel.mesh import make_mesh
from vero_jax.runtime.compilation import enable_compilation_cache, spare_host_threads
from vero_jax.sampling.engine import Engine
from vero_jax.types import Prompt, Response, Video

TOKEN_STEP = 64
PATCH_STEP = 256
"""Prompts are padded to multiples of these, so that similar questions share one compiled program."""


def answer(
    folder: str | Path,
    question: str,
    images: Sequence[str | Path] = (),
    *,
    sampling: SamplingConfig | None = None,
    n: int = 1,
    max_tokens: int = 1024,
    seed: int = 0,
    system: str = "",
    dtype: str | None = None,
    videos: Sequence[Video] = (),
) -> tuple[Response, ...]:
    """Samples answers of a checkpoint to one question, on all devices of this machine.

    Args:
      folder: a checkpoint in either format, its id on the hub, a run directory, or a PEFT folder (put on its base).
      images: files.
      sampling: None takes the folder's generation_config.json.
      max_tokens: limit of an answer.
      dtype: of weights and activations; None is float32 on a CPU and bfloat16 elsewhere.
      videos: stacks of frames, see `data.videos.read_frames`.

    Raises:
      UserError: the folder or an image cannot be used, or the question does not fit the images.
    """
    folder, adapter = policy_parts(policy_folder(folder))
    processor = Processor.from_folder(folder, system_prompt=system)
    prompt = _prompt(processor, question, images, videos)
    rollout = RolloutConfig(
        concurrent_responses=n,
        prompt_buckets=(-(-len(prompt.token_ids) // TOKEN_STEP) * TOKEN_STEP,),
        patch_buckets=(-(-len(prompt.patches) // PATCH_STEP) * PATCH_STEP,),
    )
    engine, params = open_engine(folder, adapter, processor, rollout, dtype=dtype)
    ((_, group),) = engine.generate(
        params,
        [prompt],
        n=n,
        sampling=sampling or default_sampling(folder),
        seed=seed,
        step=0,
        max_new_tokens=max_tokens,
    )
    return group.responses


def policy_model(folder: Path, adapter: Path | None, *, dtype: str | None) -> ModelDef:
    """The model of a folder.

    Args:
      folder, adapter: as `policy_parts` gives them.
      dtype: of weights and activations; None is float32 on a CPU and bfloat16 elsewhere.

    Raises:
      UserError: the folder cannot be used.
    """
    dtype = dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    lora = None if adapter is None else adapter_lora(adapter)
    return ModelDef(ModelConfig.from_folder(folder), dtype=dtype, param_dtype=dtype, lora=lora)


FEW_PROMPTS = MeshConfig(data=1, tensor=-1)
"""Few prompts have no rows to split, so all devices share the weights."""


def open_engine(
    folder: Path,
    adapter: Path | None,
    processor: Processor,
    rollout: RolloutConfig,
    *,
    dtype: str | None,
    mesh: MeshConfig = FEW_PROMPTS,
) -> tuple[Engine, Params]:
    """An engine over all devices of this machine, and the weights of a folder.

    Args:
      folder, adapter, dtype: as `policy_model` takes them.

    Raises:
      UserError: the folder cannot be used.
    """
    model_def = policy_model(folder, adapter, dtype=dtype)
    devices = make_mesh(mesh)
    engine = Engine(
        model_def,
        rollout,
        devices,
        stop_ids=processor.eos_ids,
        banned_ids=processor.banned_ids,
        decode=processor.decode,
    )
    return engine, load_adapted(folder, model_def, model_def.shardings(devices), adapter=adapter or "")


def policy_folder(name: str | Path) -> Path:
    """The folder of a checkpoint: a folder itself, an id on the hub, a PEFT folder, or a run directory.

    Returns:
      the folder; of a run directory that of its exported policy.

    Raises:
      UserError: it is none of these, or a run directory without an exported policy.
    """
    folder = resolve_checkpoint(name)
    if (folder / "config.yaml").is_file() and not (folder / "config.json").is_file():
        if (folder / "hf" / "config.json").is_file():
            return folder / "hf"
        if run_checkpoints(folder) is not None:
            raise UserError(
                f"{folder} is a run directory without an exported policy; make one with "
                f"python -m vero_jax.convert {folder} OUT, and take OUT"
            )
    if not (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file():
        raise UserError(f"{folder} is no checkpoint: it has no config.json; give the path of a checkpoint folder")
    return folder


def policy_parts(folder: str | Path) -> tuple[Path, Path | None]:
    """The policy's own folder, and the PEFT folder of an adapter to use on it, or None.

    Raises:
      UserError: a PEFT folder names no base model, or one that is not to be had.
    """
    folder = Path(folder).expanduser()
    if not is_adapter(folder):
        return folder, None
    try:
        return resolve_checkpoint(adapter_base(folder)), folder
    except UserError as error:
        raise UserError(f"the adapter in {folder} lacks its base model: {error}") from None


def default_sampling(folder: Path) -> SamplingConfig:
    """What generation_config.json says; plain sampling at temperature 1 where it is absent.

    Raises:
      UserError: the file cannot be read.
    """
    path = folder / "generation_config.json"
    if not path.is_file():
        return SamplingConfig()
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))

        def number(name: str, default: float) -> float:
            return default if values.get(name) is None else float(values[name])

        repetition_penalty = number("repetition_penalty", 1.0)
        if not values.get("do_sample", False):
            return SamplingConfig(temperature=0.0, repetition_penalty=repetition_penalty)
        return SamplingConfig(
            temperature=number("temperature", 1.0),
            top_p=number("top_p", 1.0),
            top_k=int(number("top_k", -1)) or -1,
            min_p=number("min_p", 0.0),
            repetition_penalty=repetition_penalty,
        )
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a readable generation config ({error}); mend or remove it") from error


def _prompt(processor: Processor, question: str, images: Sequence[str | Path], videos: Sequence[Video]) -> Prompt:
    data = []
    for path in images:
        try:
            data.append(Path(path).expanduser().read_bytes())
        except OSError as error:
            raise UserError(
                f"cannot read the image {path} ({error.strerror}); give the path of an image file"
            ) from error
    try:
        return processor.chat([{"role": "user", "content": question}], data, videos)
    except PromptError as error:
        raise UserError(f"this question cannot be asked: {error}") from error


def _checked(sampling: SamplingConfig, n: int, max_tokens: int) -> SamplingConfig:
    for name, value, ok, allowed in (
        ("--temperature", sampling.temperature, sampling.temperature >= 0, "0 or more"),
        ("--top-p", sampling.top_p, 0 < sampling.top_p <= 1, "above 0 and at most 1"),
        ("--top-k", sampling.top_k, sampling.top_k >= 1 or sampling.top_k == -1, "-1 (off) or at least 1"),
        ("--min-p", sampling.min_p, 0 <= sampling.min_p <= 1, "between 0 and 1"),
        ("--n", n, n >= 1, "at least 1"),
        ("--max-tokens", max_tokens, max_tokens >= 1, "at least 1"),
    ):
        if not ok:
            raise UserError(f"{name} {value} must be {allowed}")
    return sampling


@friendly
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m vero_jax.generate", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folder", help="checkpoint folder, PEFT adapter folder, run directory, or id of the model hub")
    parser.add_argument("question")
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="may be given several times")
    parser.add_argument("--video", action="append", default=[], metavar="FOLDER", help="of frames, one image file each")
    parser.add_argument("--fps", type=float, help="frames per second of the frames in the folders")
    parser.add_argument("--system", default="", help="text, .txt file or built-in name of a system prompt")
    parser.add_argument("--temperature", type=float, help="0 is greedy")
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--min-p", type=float)
    parser.add_argument("--max-tokens", type=int, default=1024)
    parser.add_argument("--n", type=int, default=1, help="how many answers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="float32 on a CPU, bfloat16 elsewhere")
    args = parser.parse_args(argv)
    folder = policy_folder(args.folder)
    default = default_sampling(policy_parts(folder)[0])

    def pick(given: Any, otherwise: Any) -> Any:
        return otherwise if given is None else given

    sampling = SamplingConfig(
        temperature=pick(args.temperature, default.temperature),
        top_p=pick(args.top_p, default.top_p),
        top_k=pick(args.top_k, default.top_k),
        min_p=pick(args.min_p, default.min_p),
    )
    sampling = _checked(sampling, args.n, args.max_tokens)
    spare_host_threads()
    enable_compilation_cache(DataConfig().cache_dir)
    responses = answer(
        folder,
        args.question,
        args.image,
        sampling=sampling,
        n=args.n,
        max_tokens=args.max_tokens,
        seed=args.seed,
        system=system_prompt(args.system),
        dtype=args.dtype,
        videos=[read_frames(folder, args.fps) for folder in args.video],
    )
    for number, response in enumerate(responses, start=1):
        if len(responses) > 1:
            print(f"--- answer {number} of {len(responses)}")
        print(response.text)
        if response.stop_reason == "length":
            print(f"(cut at {len(response.token_ids)} tokens)", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
