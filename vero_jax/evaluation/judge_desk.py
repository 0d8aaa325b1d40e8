"""A judge of an evaluation: asked while the device still answers, each request once, its replies kept on disk."""

from __future__ import annotations

import dataclasses
import functools
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vero_jax.config import JudgeConfig
from vero_jax.errors import UserError
from vero_jax.rewards.asking import Ask, collect, with_pictures
from vero_jax.rewards.judge import strip_thinking
from vero_jax.rewards.judge_server import JudgeServer, Question, Wording
from vero_jax.rewards.replies import ReplyFile, reply_key

PICTURE_PIXELS = 2**22
"""Of a picture that the judge is shown; larger ones are made smaller."""
WORDING = Wording(
    setting="--judge-{}", settings="the --judge-... options", without=", or leave it out: judged benchmarks are not run"
)
PROBE = 'Is "four" a right answer to "What is 2 + 2?"? Reply with {"is_correct": "yes"} or {"is_correct": "no"}.'


@dataclasses.dataclass(frozen=True)
class Request:
    """One request to the judge."""

    prompt: str
    max_new_tokens: int
    """That the benchmark gives; a judge whose settings allow more has more."""
    pictures: tuple[str, ...] = ()
    """Files in the desk's folder, named by their content, that the judge is shown before the prompt."""


class JudgeDesk:
    """Takes requests to a judge, at any time; another thread asks them. A context manager, for one process.

    Args:
      config: the server and how its tokens are drawn.
      path: file of the replies.
      model: the judge's name where the config has none, as an earlier run found it.
      say: told how it goes.
      wording: names the settings.
      pictures: where the files lie that requests name; None for a judge that does not see.

    Raises:
      UserError: the file or the key cannot be used.
    """

    KEPT = (
        "base_url",
        "max_tokens",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "presence_penalty",
        "frequency_penalty",
        "extra_body",
    )
    """Settings that are written beside the results."""

    def __init__(
        self,
        config: JudgeConfig,
        path: Path,
        *,
        model: str = "",
        say: Callable[[str], None],
        wording: Wording = WORDING,
        pictures: Path | None = None,
    ) -> None:
        self._pictures = pictures
        self._config = dataclasses.replace(config, model=config.model or model)
        self._say = say
        self._server = JudgeServer(self._config, say, wording)
        self._replies: ReplyFile[str | None] = ReplyFile(
            path, lambda record: None if "error" in record else str(record["reply"])
        )
        self._waiting: queue.SimpleQueue[Ask | None] = queue.SimpleQueue()
        self._taken: set[str] = set()
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._error: UserError | None = None
        self._failures: Counter[str] = Counter()

    def __enter__(self) -> JudgeDesk:
        return self

    def __exit__(self, *_: object) -> None:
        self._replies.__exit__()

    @property
    def model(self) -> str:
        """The judge's name, as given or as found at its server; "" before either."""
        return self._server.model

    @property
    def sees(self) -> bool:
        """Whether the judge is shown pictures."""
        return self._pictures is not None

    def described(self) -> dict[str, Any]:
        """What is said of the judge beside the results: all that its replies are kept under."""
        return {"model": self.model} | {name: getattr(self._config, name) for name in self.KEPT}

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

    def submit(self, request: Request, *, readable: Callable[[str], bool], about: str) -> None:
        """Has a request asked, if it was not before. Returns at once; only the first request of all waits for a server.

        Args:
          readable: whether a reply can be read; one that cannot is asked for once more.
          about: the question's id, for people who read the file of replies.

        Raises:
          UserError: the judge cannot be used, found out by the first request of all.
        """
        if not self.model:
            self.start()
        key = self._key(request)
        if key in self._taken or self._replies.get(key) is not None:
            return
        self._taken.add(key)
        if self._thread is None:
            self.start()
        self._waiting.put(
            Ask(
                about,
                key,
                functools.partial(self._question, request),
                lambda reply: readable(strip_thinking(reply)),
                self._tokens(request),
            )
        )

    def reply(self, request: Request) -> str | None:
        """The judge's reply without its thoughts, None where it gave none."""
        kept = self._replies.get(self._key(request))
        return None if kept is None else strip_thinking(kept)

    def finish(self, wait: Callable[[], None] = lambda: None) -> None:
        """Waits until all that was submitted has been asked.

        Args:
          wait: called now and then meanwhile; what it raises ends the waiting.

        Raises:
          UserError: the judge stopped answering, or gave no reply to some requests; what it answered is kept.
        """
        if self._thread is None:
            return
        self._waiting.put(None)
        while self._thread.is_alive():
            self._thread.join(0.2)
            wait()
        if self._error is not None:
            raise self._error
        if self._failures:
            reasons = ", ".join(f"{count:,} x {reason}" for reason, count in self._failures.most_common(3))
            raise UserError(
                f"the judge gave no reply to {self._failures.total():,} requests ({reasons}), to be asked again"
            )

    def _tokens(self, request: Request) -> int:
        return max(request.max_new_tokens, self._config.max_tokens)

    def _key(self, request: Request) -> str:
        asked = self._server.request(request.prompt, self._tokens(request))
        if request.pictures:
            asked |= {"pictures": list(request.pictures), "max_pixels": PICTURE_PIXELS}
        return reply_key("", asked, 0)

    def _question(self, request: Request) -> Question:
        if not request.pictures or self._pictures is None:
            return request.prompt
        images = []
        for name in request.pictures:
            try:
                images.append((self._pictures / name).read_bytes())
            except OSError as error:
                raise UserError(
                    f"cannot read {self._pictures / name} ({error.strerror}), which the judge is to be shown: evaluate "
                    "into another --output, or leave out the vision judge"
                ) from error
        return with_pictures(request.prompt, images, PICTURE_PIXELS)

    # What follows runs in the desk's own thread.

    def _run(self) -> None:
        try:
            self._failures = collect(
                self._server, PROBE, self._asks, self._replies, concurrency=self._config.concurrency, say=self._say
            ).failures
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
