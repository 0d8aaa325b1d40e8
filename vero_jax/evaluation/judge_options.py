"""The judges of an evaluation on the command line: one server, and another one for a judge that sees."""

from __future__ import annotations

import argparse

from vero_jax.config import JudgeConfig
from vero_jax.evaluation.judge_desk import WORDING
from vero_jax.evaluation.judges import VISION_WORDING
from vero_jax.rewards.asking import add_server_arguments, server_config

PREFIX = "judge-"
"""Before the names of the options that concern the judge."""
LEAST_TOKENS = 128
"""That a benchmark gives its judge."""
_DEFAULTS = JudgeConfig(base_url="", max_tokens=LEAST_TOKENS)


def add_judge_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of both judges."""
    # Benchmarks say themselves how long a reply may be, and read it as text.
    add_server_arguments(parser, _DEFAULTS, PREFIX, leave_out=("max-tokens", "no-json-mode"))
    parser.set_defaults(judge_extra_body=_DEFAULTS.extra_body, judge_no_json_mode=True)  # no thinking
    group = parser.add_argument_group("judges")
    group.add_argument(
        "--judge-max-tokens",
        type=int,
        default=LEAST_TOKENS,
        metavar="N",
        help="at least N for each reply, for judges that think; benchmarks give 128 to 4,096 by themselves",
    )
    group.add_argument(
        "--vision-judge-base-url",
        default="",
        metavar="URL",
        help="server of a judge that sees: it judges MM-MT-Bench, MIA-Bench and MMIFEval, and is shown their pictures",
    )
    group.add_argument("--vision-judge-model", default="", help="name that this server knows; default: the only one")
    group.add_argument("--vision-judge-api-key-env", default="", metavar="NAME", help="variable that holds its key")


def judge_configs(arguments: argparse.Namespace) -> tuple[JudgeConfig | None, JudgeConfig | None]:
    """The judge and the one that sees, each None where its server is not named; they share all other options.

    Raises:
      UserError: an option makes no sense.
    """
    judge = server_config(arguments, PREFIX, WORDING) if arguments.judge_base_url else None
    if not arguments.vision_judge_base_url:
        return judge, None
    seeing = server_config(
        arguments,
        PREFIX,
        VISION_WORDING,
        base_url=arguments.vision_judge_base_url,
        model=arguments.vision_judge_model,
        api_key_env=arguments.vision_judge_api_key_env,
    )
    return judge, seeing
