"""The judge of an evaluation: asked while the device still answers, each request once, its replies kept on disk."""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vero_jax.config import JudgeConfig
from vero_jax.errors import UserError
from vero_jax.evaluation.benchmark import Answer, Benchmark, Row
from vero_jax.rewards.asking import Ask, collect
from vero_jax.rewards.judge import strip_thinking
from vero_jax.rewards.judge_server import JudgeServer, Wording
from vero_jax.rewards.replies import ReplyFile, reply_key

PREFIX = "judge-"
"""Before the names of the options that concern the judge."""
WORDING = Wording(
    setting="--judge-{}", settings="the --judge-... options", without=", or leave it out: judged benchmarks are not run"
)
PROBE = 'Is "four" a right answer to "What is 2 + 2?"? Reply with {"is_correct": "yes"} or {"is_correct": "no"}.'


class JudgeDesk:
    """Takes requests to a judge, at any time; another thread asks them. A context manager, for one process.

    Args:
      config: the server and how its tokens are drawn.
      path: file of the replies.
      model: the judge's name where the config has none, as an earlier run found it.
      say: told how it goes.
      wording: names the settings.

    Raises:
      UserError: the file or the key cannot be used.
    """

    def __init__(
        self,
        config: JudgeConfig,
        path: Path,
        *,
        model: str = "",
        say: Callable[[str], None],
        wording: Wording = WORDING,
    ) -> None:
        self._config = dataclasses.replace(config, model=config.model or model)
        self._say = say
        self._server = JudgeServer(self._config, say, wording)
        self._replies: ReplyFile[str] = ReplyFile(path, lambda record: str(record["reply"]))
        self._waiting: queue.SimpleQueue[Ask | None] = queue.SimpleQueue()
        self._taken: set[str] = set()
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._error: UserError | None = None

    def __enter__(self) -> JudgeDesk:
        return self

    def __exit__(self, *_: object) -> None:
        self._replies.__exit__()

    @property
    def model(self) -> str:
        """The judge's name, as given or as found at its server; "" before either."""
        return self._server.model

    def start(self) -> None:
        """Finds out whether the judge can be used, and its name.

        Raises:
          UserError: it cannot.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="judge-desk", daemon=True)
            self._thread.start()
        self._ready.wait()
        if self._error is not None:
            raise self._error

    def submit(self, prompt: str, *, max_new_tokens: int, readable: Callable[[str], bool], about: str) -> None:
        """Has a request asked, if it was not before. Returns at once; only the first request of all waits for a server.

        Args:
          readable: whether a reply can be read; one that cannot is asked for once more.
          about: the question's id, for people who read the file of replies.

        Raises:
          UserError: the judge cannot be used, found out by the first request of all.
        """
        if not self.model:
            self.start()
        key = self._key(prompt, max_new_tokens)
        if key in self._taken or self._replies.get(key) is not None:
            return
        self._taken.add(key)
        if self._thread is None:
            self.start()
        asked = Ask(about, key, lambda: prompt, lambda reply: readable(strip_thinking(reply)), max_new_tokens)
        self._waiting.put(asked)

    def reply(self, prompt: str, max_new_tokens: int) -> str | None:
        """The judge's reply without its thoughts, None where it gave none."""
        kept = self._replies.get(self._key(prompt, max_new_tokens))
        return None if kept is None else strip_thinking(kept)

    def finish(self, wait: Callable[[], None] = lambda: None) -> None:
        """Waits until all that was submitted has been asked.

        Args:
          wait: called now and then meanwhile; what it raises ends the waiting.

        Raises:
          UserError: the judge stopped answering; what it answered is kept.
        """
        if self._thread is None:
            return
        self._waiting.put(None)
        while self._thread.is_alive():
            self._thread.join(0.2)
            wait()
        if self._error is not None:
            raise self._error

    def _key(self, prompt: str, max_new_tokens: int) -> str:
        return reply_key("", self._server.request(prompt, max_new_tokens), 0)

    # What follows runs in the desk's own thread.

    def _run(self) -> None:
        try:
            collect(self._server, PROBE, self._asks, self._replies, concurrency=self._config.concurrency, say=self._say)
        except UserError as error:
            self._error = error
            if self._ready.is_set():
                self._say(f"judge: {error}")
        except Exception as error:  # whatever it is, nobody may wait for this thread for ever
            self._error = UserError(f"asking the judge failed ({type(error).__name__}: {error})")
        finally:
            self._ready.set()

    def _asks(self) -> Iterator[Ask]:
        self._ready.set()  # the server has answered the probe
        while (ask := self._waiting.get()) is not None:
            yield ask


def submit(desk: JudgeDesk, benchmark: Benchmark, answer: Answer, row: Row, about: str) -> None:
    """Has the judge asked about an answer.

    Raises:
      UserError: as `JudgeDesk.submit`.
    """
    judge = benchmark.judge
    if judge is None:
        return
    prompts = benchmark.requests(answer, row)

    def readable(reply: str) -> bool:
        # Which part of several replies belongs to which request is the benchmark's own knowledge.
        return len(prompts) > 1 or benchmark.score(answer, row, [reply]).strict is not None

    for prompt in prompts:
        desk.submit(prompt, max_new_tokens=judge.max_new_tokens, readable=readable, about=about)


def replies(desk: JudgeDesk | None, benchmark: Benchmark, prompts: Sequence[str]) -> list[str | None] | None:
    """The judge's replies to those requests; None without a judge."""
    if desk is None or benchmark.judge is None or not desk.model:
        return None
    return [desk.reply(prompt, benchmark.judge.max_new_tokens) for prompt in prompts]


_KEPT = (
    "base_url",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "extra_body",
)


def described(config: JudgeConfig, model: str) -> dict[str, Any]:
    """What is said of a judge beside the results: all that its replies are kept under."""
    return {"model": model} | {name: getattr(config, name) for name in _KEPT}


def former(described: Mapping[str, Any]) -> JudgeConfig:
    """The judge of earlier results, to find its replies again; it cannot be asked without a key that it may need."""
    known = {name: described[name] for name in ("model", *_KEPT) if name in described}
    return JudgeConfig(**known, json_mode="off", sleep="never")
