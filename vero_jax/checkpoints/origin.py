"""What `vero_jax.convert` can start from: a folder in either format, a hub id, or the run directory of a training."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from etils import epath

from vero_jax.checkpoints import native
from vero_jax.checkpoints.boxes import Box, cut, whole
from vero_jax.checkpoints.hub import resolve_checkpoint
from vero_jax.checkpoints.names import ExpertLayout, by_tensor, expert_layout, stored_params
from vero_jax.checkpoints.safetensors_io import INDEX_FILE, SINGLE_FILE, Checkpoint
from vero_jax.checkpoints.saved_params import SavedParams, run_checkpoints
from vero_jax.checkpoints.transfer import BLOCK_BYTES, Layout, ParamReader, ParamSink, read_into, run_all
from vero_jax.checkpoints.weights import open_checkpoint
from vero_jax.config import Config
from vero_jax.config_loader import apply_settings, read_yaml
from vero_jax.errors import UserError
from vero_jax.models.config import ModelConfig
from vero_jax.models.lora import lora_from
from vero_jax.models.policy import ModelDef, ParamPath


def source_experts(folder: Path, model_def: ModelDef) -> ExpertLayout:
    """How the experts of a checkpoint folder lie; as on the hub where there are none or no weights."""
    if not model_def.config.text.sparse_layers:
        return "hub"
    if native.is_native(folder):
        return native.NativeFolder(folder).experts
    if (folder / SINGLE_FILE).is_file() or (folder / INDEX_FILE).is_file():
        with Checkpoint(folder) as checkpoint:
            return expert_layout(model_def, checkpoint.shapes)
    return "hub"


@dataclasses.dataclass(frozen=True)
class Origin:
    """A checkpoint to convert: where its files lie, and how to read its weights, by tensor or by parameter."""

    kind: str
    """"hf", "vero_jax" or "run"."""
    folder: Path
    """With config.json and the other files."""
    model_def: ModelDef
    experts: ExpertLayout
    dtypes: Mapping[ParamPath, np.dtype]
    """Of the parameters as they are stored."""
    tensors: Checkpoint | None = None
    layout: Layout | None = None
    params: ParamReader | None = None
    system_prompt: str = ""
    """`data.system_prompt` of a run."""

    @property
    def shapes(self) -> dict[ParamPath, tuple[int, ...]]:
        return {path: tuple(leaf.shape) for path, leaf in stored_params(self.model_def).items()}

    def feed(self, sink: ParamSink, writer: native.NativeWriter | None = None) -> None:
        """Hands every parameter to a sink, in pieces that suit the source, and the writer if there is one."""
        if self.tensors is not None and self.layout is not None:
            pieces = by_tensor(self.layout)
            read_into(
                self.tensors,
                self.layout,
                sink,
                grid=lambda name: () if writer is None else (max(writer.rows(path) for path, _ in pieces[name]),),
            )
        elif isinstance(self.params, SavedParams):
            saved = self.params
            # Two threads, because TensorStore decompresses on threads of its own.
            run_all(self._param_jobs(saved, sink, lambda path, shape: saved.pieces(path)), threads=2)
        elif self.params is not None:
            run_all(self._param_jobs(self.params, sink, functools.partial(self._cut, writer)))

    def _param_jobs(
        self, reader: ParamReader, sink: ParamSink, pieces: Callable[[ParamPath, tuple[int, ...]], Iterable[Box]]
    ) -> Iterable[Callable[[], None]]:
        def job(path: ParamPath, box: Box) -> None:
            sink.write(path, 0, box, reader.read_param(path, box))

        for path, shape in self.shapes.items():
            for box in pieces(path, shape):
                yield functools.partial(job, path, box)

    def _cut(self, writer: native.NativeWriter | None, path: ParamPath, shape: tuple[int, ...]) -> Iterable[Box]:
        grid = () if writer is None else writer.grid(path)
        return cut(whole(shape), BLOCK_BYTES // self.dtypes[path].itemsize, grid)


@contextlib.contextmanager
def open_origin(source: str | Path, step: int | str | None = None) -> Iterator[Origin]:
    """Finds out what a source is and accounts for all that it holds.

    Raises:
        UserError: it is nothing that can be converted.
    """
    folder = resolve_checkpoint(source)
    place = None if native.is_native(folder) else run_checkpoints(folder)
    if place is not None:
        with _open_run(folder, place, step) as origin:
            yield origin
        return
    if step is not None:
        raise UserError(f"--step {step} chooses among the checkpoints of a run directory, and {folder} is none")
    model_def = ModelDef(ModelConfig.from_folder(folder))
    with open_checkpoint(folder, model_def) as (reader, layout):
        if isinstance(reader, native.NativeFolder):
            dtypes = {path: reader.param_dtype(path) for path in layout}
            yield Origin("vero_jax", folder, model_def, reader.experts, dtypes, params=reader)
        else:
            widest = {
                path: max((reader.dtype(layer.name) for layer in layers), key=lambda dtype: dtype.itemsize)
                for path, layers in layout.items()
            }
            experts = expert_layout(model_def, reader.shapes)
            yield Origin("hf", folder, model_def, experts, widest, tensors=reader, layout=layout)


@contextlib.contextmanager
def _open_run(run: Path, place: epath.Path, step: int | str | None) -> Iterator[Origin]:
    config = apply_settings(Config(), read_yaml(run / "config.yaml"))
    folder = run / "policy" if config.model.path == "build" else resolve_checkpoint(config.model.path)
    model_def = ModelDef(ModelConfig.from_folder(folder))
    lora = lora_from(config.model.lora, model_def.config)
    saved = SavedParams(place, step, None if lora is None else lora.scale)
    wanted = {path: tuple(leaf.shape) for path, leaf in stored_params(model_def).items()}
    found = {path: saved.shape(path) for path in saved.paths}
    if found != wanted:
        names = sorted(".".join(path) for path in wanted.keys() | found.keys() if wanted.get(path) != found.get(path))
        raise UserError(
            f"{saved.folder} does not fit {folder}, which the run's config.yaml names: {', '.join(names[:4])} differ; "
            "put back the folder that the run began with"
        )
    dtypes = {path: saved.param_dtype(path) for path in saved.paths}
    experts, prompt = source_experts(folder, model_def), config.data.system_prompt
    yield Origin("run", folder, model_def, experts, dtypes, params=saved, system_prompt=prompt)
