"""A run's programs for a machine: made from its config as training makes them, compiled, and put beside the memory."""

from __future__ import annotations

import dataclasses
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from vero_jax.config import Config
from vero_jax.errors import UserError
from vero_jax.learners import make_learner, model_def_of
from vero_jax.learning.update import Learner
from vero_jax.models.build import build_policy
from vero_jax.models.config import ModelConfig
from vero_jax.models.policy import ModelDef
from vero_jax.models.released import RELEASED, released_config
from vero_jax.parallel.mesh import make_mesh
from vero_jax.planning.chips import GIB, Machine
from vero_jax.planning.flops import (
    EXPERT_PASSES,
    attention_flops,
    expert_flops,
    head_flops,
    model_flops,
    product_flops,
)
from vero_jax.planning.hlo import collective_traffic
from vero_jax.sampling.abstract import Call, abstract_session
from vero_jax.sampling.engine import Engine

RESERVED = 0.03
"""Of a chip's memory, for the compiled programs themselves and what the runtime keeps."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """One compiled program, per device and call. Memory in bytes, times in seconds.

    Attributes:
      arguments, outputs, reused, temporary: as the compiler counts them; `reused` are outputs in arguments' place.
      peak: with all that lies in memory beside it.
      flops: of products and attention; model_flops: what the model alone needs, without recomputation.
      received: bytes that collectives bring; open_loops: whether some stand in loops of unknown length.
      roofline: seconds, the largest of computing, reading memory and receiving; None without a chip's figures.
    """

    name: str
    phase: str
    arguments: float
    outputs: float
    reused: float
    temporary: float
    peak: float
    flops: float
    model_flops: float
    received: float
    open_loops: bool
    roofline: float | None
    compile_s: float
    error: str | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a config asks of a machine."""

    machine: str
    policy: str
    parameters: int
    mesh: dict[str, int]
    memory: float
    """Usable bytes of a device."""
    held: dict[str, float]
    """Bytes per device of what lives through a phase, by name."""
    row_length: int
    concurrent_responses: int
    programs: list[Measured]

    @property
    def peak(self) -> float:
        return max(program.peak for program in self.programs)

    @property
    def fits(self) -> bool:
        """Whether every program does, with what lies beside it."""
        return not any(program.error for program in self.programs) and self.peak <= self.memory * (1 - RESERVED)

    @property
    def estimate(self) -> dict[str, int | None]:
        """About the largest rows and the most answers side by side that fit, by proportion: what a program adds to what
        is held grows with its tokens. None where the program is not there; `compile --search` compiles them.
        """
        return {
            "row_length": self._scaled("update", self.row_length, ()),
            "concurrent_responses": self._scaled("decode", self.concurrent_responses, ("keys of answers",)),
        }

    def _scaled(self, name: str, size: int, grow: tuple[str, ...]) -> int | None:
        program = next((one for one in self.programs if one.name.startswith(name) and not one.error), None)
        if program is None:
            return None
        growing = program.temporary + sum(self.held[one] for one in grow)
        room = self.memory * (1 - RESERVED) - (program.peak - growing)
        return max(int(size * room / growing), 0) if growing else None

    def to_json(self) -> dict[str, Any]:
        return {"fits": self.fits, "peak": self.peak, "estimate": self.estimate, **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True)
class _Step(Call):
    """A program of either phase, and which of the held trees are among its arguments."""

    phase: str = "sampling"
    holds: tuple[str, ...] = ()
    lower: Callable[[], jax.stages.Lowered] | None = None
    model_flops: float = 0.0
    loops: float = 0.0
    """FLOPs of attention, of experts on several devices and, in learning, of the head, all passes: in kernels and loops
    that `product_flops` skips."""


def model_of(config: Config) -> ModelConfig:
    """The sizes of `model.path`: of a folder, of a policy to be built, or of a released model by its name.

    Raises:
      UserError: it is none of these.
    """
    path = config.model.path
    if path == "build":
        with tempfile.TemporaryDirectory() as folder:
            build_policy(Path(folder), config.model.build, seed=config.seed, corpus=("a",) * 8)
            return ModelConfig.from_folder(Path(folder))
    if Path(path).expanduser().is_dir():
        return ModelConfig.from_folder(Path(path).expanduser())
    name = path.rsplit("/", 1)[-1]
    for known in sorted(RELEASED, key=len, reverse=True):
        if re.fullmatch(re.escape(known) + r"(-(Instruct|Thinking|RL|SFT)(-\d+)?)?", name):
            return released_config(known)
    raise UserError(
        f"model.path={path!r} is neither a folder nor a released model whose sizes are known ({', '.join(RELEASED)}); "
        "download it and give its folder"
    )


def plan(config: Config, machine: Machine, say: Callable[[str], None], only: str = "") -> Plan:
    """Compiles every program of a run at its largest, and adds up what lies in memory beside each.

    Args:
      only: compiles the programs whose name begins so, such as "update".
      say: is told what is being compiled.
    """
    mesh, model_def, sizes, steps = _sized(config, machine)
    measured = []
    for step in steps:
        if step.name.startswith(only):
            say(f"compiling: {step.name}")
            measured.append(_measure(step, sizes[step.phase], machine, mesh.size, model_def))
    if not measured:
        raise UserError(f"no program begins with {only!r}; there are {', '.join(step.name for step in steps)}")
    return Plan(
        machine.name,
        config.model.path,
        model_def.num_params(),
        dict(mesh.shape),
        machine.memory,
        sizes["sampling"] | sizes["learning"],
        config.actor.row_length,
        config.rollout.concurrent_responses,
        measured,
    )


def held_bytes(config: Config, machine: Machine) -> tuple[dict[str, float], list[str]]:
    """What lives through a phase, by name in bytes per device, and the names of all programs; nothing is compiled."""
    _, _, sizes, steps = _sized(config, machine)
    return sizes["sampling"] | sizes["learning"], [step.name for step in steps]


def _sized(config: Config, machine: Machine) -> tuple[Mesh, ModelDef, dict[str, dict[str, float]], list[_Step]]:
    mesh = make_mesh(config.mesh, machine.devices)
    model_def = model_def_of(config, model_of(config))
    held, steps = _steps(config, model_def, mesh)
    sizes = {phase: {name: _bytes(tree) for name, tree in trees.items()} for phase, trees in held.items()}
    return mesh, model_def, sizes, steps


def _steps(config: Config, model_def: ModelDef, mesh: Mesh) -> tuple[dict[str, dict[str, Any]], list[_Step]]:
    """What each phase holds all the time, and the programs."""
    rollout = config.rollout
    learner = make_learner(config, model_def, mesh)
    state = learner.abstract_state()
    optimizer = {} if config.optim.offload else {"optimizer": state.opt_state}
    kept: dict[str, Any] = {"weights": state.params, **optimizer}
    if learner.needs_reference or config.algorithm.kl_in_reward:
        kept["reference"] = learner.programs.trained_part(state.params)
    engine = Engine(model_def, rollout, mesh, stop_ids=(0,))
    session = abstract_session(
        engine, state.params, n=rollout.n, max_new_tokens=rollout.max_response_length, sampling=rollout.sampling
    )
    sampling = kept | {"weights of sampling": session.params if session.reshard else ()} | session.stores
    steps = list(_sampling_steps(config, model_def, session, mesh))
    learning = kept | {"gradients": learner.programs.abstract_gradients()}
    steps += _learning_steps(config, model_def, learner, state, mesh)
    return {"sampling": sampling, "learning": learning}, steps


def _sampling_steps(config: Config, model_def: ModelDef, session: Any, mesh: Mesh) -> Iterator[_Step]:
    longest, picture = config.rollout.prompt_buckets[-1], config.rollout.patch_buckets[-1]
    own = "weights of sampling" if session.reshard else "weights"
    if session.reshard:
        yield _Step(**vars(session.reshard), holds=("weights", own))
    for call in session.calls:
        decodes = call.name.startswith("decode")
        holds = [own, "keys of prompts", "keys of answers"] if decodes else [own]
        if call.name.startswith(("prefill", "store")):
            holds.append("keys of prompts")
        answers = call.tokens if decodes else 0
        attention = attention_flops(
            model_def.config,
            call.tokens,
            # A new token sees all that was before it, on the average half of the longest answer.
            2 * longest + config.rollout.max_response_length if decodes else longest,
            call.patches,
            picture,
        )
        needed = model_flops(model_def.config, model_def.abstract_params(), call.tokens, answers, call.patches)
        loops = attention + _sharded_expert_flops(model_def, call.tokens, mesh)
        yield _Step(**vars(call), holds=tuple(holds), model_flops=needed + attention, loops=loops)


def _sharded_expert_flops(model_def: ModelDef, tokens: float, mesh: Mesh) -> float:
    """Forward; 0 on one device, where `product_flops` counts them."""
    return expert_flops(model_def.config, tokens) if mesh.size > 1 else 0.0


def _learning_steps(config: Config, model_def: ModelDef, learner: Learner, state: Any, mesh: Mesh) -> list[_Step]:
    shape = max(learner.row_shapes)
    batch = learner.abstract_batch(shape)
    rows = batch.rows.targets.shape[0]
    tokens, patches = rows * shape.tokens, rows * shape.patches
    answers = rows * min(config.rollout.max_response_length, shape.tokens)
    picture = min(shape.patches, config.rollout.patch_buckets[-1])
    attention = attention_flops(model_def.config, tokens, shape.tokens, patches, picture)
    needed = model_flops(model_def.config, model_def.abstract_params(), tokens, answers, patches) + attention
    programs, size = learner.programs, f"{rows} x {shape.tokens} tokens, {rows} x {shape.patches} patches"
    # Two products forward; five backward, where the scores are computed again; two more when a layer is. The head has
    # one forward and three backward, where its logits are computed again.
    head = head_flops(model_def.config, answers)
    experts = _sharded_expert_flops(model_def, tokens, mesh)
    loops = (2 + 5 + 2 * (config.model.remat == "layers")) / 2 * attention + 4 * head + EXPERT_PASSES * experts
    gradients = programs.abstract_gradients()
    return [
        _Step(f"update, {size}", programs.accumulate, (state.params, gradients, batch), tokens, patches, "learning",
              ("weights", "gradients"), None, 3 * needed, loops),
        _Step(f"log-probabilities, {size}", programs.logprobs, (state.params, batch), tokens, patches, "learning",
              ("weights",), None, needed, attention + head + experts),
        _Step("optimizer", None, (), 0, 0, "learning", ("weights", "optimizer", "gradients"),
              lambda: programs.lower_apply(state)),
    ]  # fmt: skip


def _measure(step: _Step, held: dict[str, float], machine: Machine, devices: int, model_def: ModelDef) -> Measured:
    start = time.perf_counter()
    beside = sum(size for name, size in held.items() if name not in step.holds)
    flops = step.loops
    if step.lower is None:
        traced = step.function.trace(*step.arguments)
        flops += product_flops(traced.jaxpr, devices=devices)
        lowered = traced.lower()
    else:
        lowered = step.lower()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        sentence = str(error).strip().split("\n")[0][:300]
        needed = re.search(r"\(([\d.]+)G\)|Used ([\d.]+)G", str(error))
        least = float(needed[1] or needed[2]) * GIB if needed else 0.0
        return Measured(step.name, step.phase, 0, 0, 0, least, beside + least, flops / devices,
                        step.model_flops / devices, 0, False, None, time.perf_counter() - start, sentence)  # fmt: skip
    seconds = time.perf_counter() - start
    memory: Any = compiled.memory_analysis()
    arguments, outputs = float(memory.argument_size_in_bytes), float(memory.output_size_in_bytes)
    reused, temporary = float(memory.alias_size_in_bytes), float(memory.temp_size_in_bytes)
    traffic = collective_traffic(compiled.as_text())
    roofline = None
    if machine.chip is not None:
        chip = machine.chip
        roofline = max(
            flops / devices / chip.flops,
            (arguments + outputs - reused) / chip.memory_bandwidth,
            traffic.bytes / chip.link_bandwidth,
        )
    return Measured(
        step.name,
        step.phase,
        arguments,
        outputs,
        reused,
        temporary,
        beside + arguments + outputs - reused + temporary,
        flops / devices,
        step.model_flops / devices,
        traffic.bytes,
        traffic.unknown_loops,
        roofline,
        seconds,
    )


def _bytes(tree: Any) -> float:
    """Per device."""
    return float(
        sum(leaf.dtype.itemsize * _size(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(tree))
    )


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for dim in shape:
        size *= dim
    return size
