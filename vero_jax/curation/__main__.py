"""Curation commands: `python -m vero_jax.curation <command> --help`.

In the order of the paper's pipeline:

    screen         drops whole sources by rules of thumb
    review         makes a sheet for people, who look at 50 rows of each source
    filter         asks a vision model about every question and drops the flawed ones
    canonicalise   gives every answer one form that a verifier can compare
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from vero_jax.curation import canonicalise, question_filter, review, screen
from vero_jax.errors import friendly

_COMMANDS = (screen, review, question_filter, canonicalise)


@friendly
def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; its exit status."""
    about, _, details = str(__doc__).partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m vero_jax.curation",
        description=about,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for module in _COMMANDS:
        command = commands.add_parser(
            module.NAME,
            help=module.HELP,
            description=str(module.__doc__),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    arguments = parser.parse_args(argv)
    return arguments.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
