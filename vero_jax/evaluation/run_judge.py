"""The judge of a run's rewards, asked what VeroEval's benchmarks want to know.

The same server and model, but other requests: the replies are free text of any length, so that nothing asks for JSON,
and no penalty keeps the judge from repeating a form.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from vero_jax.config import JudgeConfig
from vero_jax.errors import UserError
from vero_jax.evaluation.judge_desk import JudgeDesk, Request
from vero_jax.rewards.judge_server import Wording


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

    def check(self) -> None:
        """Asks a first question, so that a judge that can't be asked is found out before the run begins.

        Raises:
          UserError: the server cannot be used; one sentence says what to do.
        """
        with self._desk(self._say) as desk:
            desk.start()
            desk.finish()
            self._config = dataclasses.replace(self._config, model=desk.model)

    def replies(self, prompts: Sequence[str], max_new_tokens: int) -> dict[str, str | None]:
        """The reply to each request, None where there is none. A server that has gone is said, and is no error."""
        try:
            # What the server does not offer was said when it was first asked.
            with self._desk(lambda text: None) as desk:
                try:
                    for prompt in dict.fromkeys(prompts):
                        desk.submit(Request(prompt, max_new_tokens), readable=_not_empty, about="")
                    desk.finish()
                except UserError as error:
                    self._say_missing(error)
                return {prompt: desk.reply(Request(prompt, max_new_tokens)) for prompt in prompts}
        except UserError as error:
            self._say_missing(error)
            return {}

    def _desk(self, say: Callable[[str], None]) -> JudgeDesk:
        return JudgeDesk(self._config, self._file, say=say, wording=Wording())

    def _say_missing(self, error: UserError) -> None:
        self._say(f"validation goes on without some judgements: {error}")


def _not_empty(reply: str) -> bool:
    return bool(reply.strip())
