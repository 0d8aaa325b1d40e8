"""Serves a checkpoint through OpenAI's chat API.

    python -m vero_jax.serve FOLDER [--port 8000]

Then any OpenAI client may ask `http://127.0.0.1:8000/v1`, and so may `reward.judge=openai`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import uvicorn

from vero_jax.config import DataConfig, RolloutConfig
from vero_jax.data.processor import Processor
from vero_jax.data.prompts import system_prompt
from vero_jax.errors import UserError, friendly
from vero_jax.generate import default_sampling, open_engine, policy_folder, policy_parts
from vero_jax.models.config import ModelConfig
from vero_jax.runtime.compilation import enable_compilation_cache, spare_host_threads
from vero_jax.sampling.room import SMALLEST_IMAGE, SMALLEST_PROMPT, ladder
from vero_jax.sampling.session import Session
from vero_jax.serve.app import ServedModel, make_app
from vero_jax.serve.protocol import MOST_ALTERNATIVES
from vero_jax.serve.worker import DeviceWorker

GRACE_SECONDS = 30
"""How long answers that are on their way may take when the server is told to stop."""


def open_session(
    folder: str | Path,
    *,
    dtype: str | None = None,
    system: str = "",
    lanes: int = 16,
    max_tokens: int = 4096,
    max_prompt_tokens: int = 8192,
    max_pixels: int | None = None,
) -> tuple[Session, Processor]:
    """A checkpoint on all devices of this machine, ready for requests of any kind, and its processor.

    Args:
      folder: a checkpoint in either format, its id on the hub, or a PEFT folder.
      dtype: of weights and activations; None is float32 on a CPU and bfloat16 elsewhere.
      system: text of a system prompt that every conversation gets.
      lanes: answers that are drawn side by side.
      max_tokens, max_prompt_tokens: most tokens of an answer and of a prompt, images included.
      max_pixels: larger images are made smaller; None takes the checkpoint's limit.

    Raises:
      UserError: the folder cannot be used.
    """
    folder, adapter = policy_parts(policy_folder(folder))
    processor = Processor.from_folder(
        folder, system_prompt=system, max_prompt_length=max_prompt_tokens, max_pixels=max_pixels
    )
    per_token = ModelConfig.from_folder(folder).patch_layout.patches_per_token
    rollout = RolloutConfig(
        concurrent_responses=lanes,
        prompt_buckets=ladder(SMALLEST_PROMPT, max_prompt_tokens, 4),
        patch_buckets=ladder(SMALLEST_IMAGE, max_prompt_tokens * per_token, 4),
        prompt_kv_tokens=max(max_prompt_tokens, lanes * max_prompt_tokens // 4),
    )
    engine, params = open_engine(folder, adapter, processor, rollout, dtype=dtype)
    session = engine.session(
        params, n=1, max_new_tokens=max_tokens, truncated=True, penalties=True, alternatives=MOST_ALTERNATIVES
    )
    return session, processor


class Server(uvicorn.Server):
    """Says when it is ready, and leaves with status 0 on SIGINT and SIGTERM, behind the last answer."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but the signal is not raised once more in the end: there is a worker to wait for."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            print(f"ready: http://{host}:{port}/v1", flush=True)


@friendly
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m vero_jax.serve", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folder", help="checkpoint folder, PEFT adapter folder, run directory, or id of the model hub")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    parser.add_argument("--model-name", help="that clients ask for; the folder's name otherwise")
    parser.add_argument("--api-key-env", default="", metavar="NAME", help="environment variable that holds the key")
    parser.add_argument("--lanes", type=int, default=16, help="answers that are drawn side by side")
    parser.add_argument("--max-waiting", type=int, default=256, help="requests that may be on their way at a time")
    parser.add_argument("--max-tokens", type=int, default=4096, help="most tokens of an answer")
    parser.add_argument("--default-tokens", type=int, default=1024, help="where a request does not say")
    parser.add_argument("--max-prompt-tokens", type=int, default=8192, help="images included")
    parser.add_argument("--max-pixels", type=int, help="larger images are made smaller")
    parser.add_argument("--system", default="", help="text, .txt file or built-in name of a system prompt")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="float32 on a CPU, bfloat16 elsewhere")
    parser.add_argument("--warm-up", action="store_true", help="compile everything before the first request")
    args = parser.parse_args(argv)
    for name in ("lanes", "max_waiting", "max_tokens", "default_tokens", "max_prompt_tokens"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)} must be at least 1")
    key = os.environ.get(args.api_key_env, "") if args.api_key_env else ""
    if args.api_key_env and not key:
        raise UserError(f"the environment variable {args.api_key_env} of --api-key-env is not set or empty")
    spare_host_threads()
    enable_compilation_cache(DataConfig().cache_dir)
    folder = policy_folder(args.folder)
    sampling = default_sampling(policy_parts(folder)[0])
    session, processor = open_session(
        folder,
        dtype=args.dtype,
        system=system_prompt(args.system),
        lanes=args.lanes,
        max_tokens=args.max_tokens,
        max_prompt_tokens=args.max_prompt_tokens,
        max_pixels=args.max_pixels,
    )
    if args.warm_up:
        print("compiling", flush=True)
        session.warm_up()
    worker = DeviceWorker(session, max_waiting=args.max_waiting)
    model = ServedModel(
        name=args.model_name or Path(args.folder).name,
        read=processor.chat,
        decode=processor.decode,
        spell=lambda token: processor.tokenizer.decode([token], skip_special_tokens=False),
        sampling=sampling,
        max_tokens=args.max_tokens,
        default_tokens=min(args.default_tokens, args.max_tokens),
        api_key=key,
    )
    try:
        listener = socket.create_server((args.host, args.port))
    except OSError as error:
        raise UserError(
            f"cannot listen on {args.host}:{args.port} ({error.strerror}); choose another --port"
        ) from error
    settings = uvicorn.Config(
        make_app(model, worker), log_level="warning", timeout_graceful_shutdown=GRACE_SECONDS, lifespan="off"
    )
    server = Server(settings)
    worker.start()
    threading.Thread(target=_watch, args=(worker, server), daemon=True).start()
    server.run(sockets=[listener])
    worker.close(GRACE_SECONDS)
    if worker.failure is not None:
        print(f"error: the device has failed: {worker.failure}", file=sys.stderr)
        return 1
    return 0


def _watch(worker: DeviceWorker, server: uvicorn.Server) -> None:
    """Ends the server when the device has failed: it could only refuse."""
    while worker.failure is None:
        time.sleep(0.5)
    server.should_exit = True


if __name__ == "__main__":
    sys.exit(main())
