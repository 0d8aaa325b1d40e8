"""The judge of a run's rewards, asked what VeroEval's benchmarks want to know.

The same server and model, but other requests: the replies are free text of any length, so that nothing asks for JSON,
and no penalty keeps the judge from repeating a form.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from vero_jax.config import JudgeConfig
from vero_jax.errors import UserError
from vero_jax.rewards.asking import Ask, collect
from vero_jax.rewards.judge import strip_thinking
from vero_jax.rewards.judge_server import JudgeServer
from vero_jax.rewards.replies import ReplyFile, reply_key

PROBE = "Is four the same as 4? Reply with yes or no."
"""The first request, which shows whether the server can be asked."""


class RunJudge:
    """Asks the server of `reward.judge_server`. What it was asked before comes from a file of the run.

    Args:
      config: of the run's judge.
      file: where the replies are kept; they are private to the run.
      say: told what the server does not offer, and when it fails.
    """

    def __init__(self, config: JudgeConfig, file: Path, say: Callable[[str], None]) -> None:
        self._config = dataclasses.replace(config, json_mode="off", presence_penalty=0.0, frequency_penalty=0.0)
        self._file = file
        self._say = say
        self._asked_before = False

    def check(self) -> None:
        """Asks a first question, so that a judge that can't be asked is found out before the run begins.

        Raises:
          UserError: the server cannot be used; one sentence says what to do.
        """
        self._collect([], self._config.max_tokens, {})

    def replies(self, prompts: Sequence[str], max_new_tokens: int) -> dict[str, str]:
        """The replies by prompt; a prompt without one is absent. A server that has gone is said, and is no error."""
        found: dict[str, str] = {}
        try:
            self._collect(list(dict.fromkeys(prompts)), max_new_tokens, found)
        except UserError as error:
            self._say(f"validation goes on without judgements: {error}")
        return found

    def _collect(self, prompts: Sequence[str], max_new_tokens: int, found: dict[str, str]) -> None:
        # A judge that thinks has been given more.
        config = dataclasses.replace(self._config, max_tokens=max(self._config.max_tokens, max_new_tokens))
        keys: dict[str, str] = {}

        def missing() -> list[Ask]:
            # Here, because the key depends on the model, whose name the server may have to tell.
            keys.update((prompt, reply_key("", server.request(prompt), 0)) for prompt in prompts)
            return [
                Ask(id=key, key=key, build=functools.partial(str, prompt), readable=lambda reply: bool(reply.strip()))
                for prompt, key in keys.items()
                if kept.get(key) is None
            ]

        with ReplyFile(self._file, lambda record: strip_thinking(str(record["reply"]))) as kept:
            # What a server refuses is said when it is first asked, and not in every validation.
            server = JudgeServer(config, (lambda text: None) if self._asked_before else self._say)
            self._asked_before = True
            try:
                collect(server, PROBE, missing, kept, concurrency=config.concurrency, say=self._say)
            finally:
                for prompt, key in keys.items():
                    if (reply := kept.get(key)) is not None:
                        found[prompt] = reply
