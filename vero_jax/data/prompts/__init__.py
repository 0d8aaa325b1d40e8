"""System prompts by name: every .txt file of this folder, and the user's own."""

from __future__ import annotations

from pathlib import Path

from vero_jax.errors import UserError

FOLDER = Path(__file__).parent
MAX_BYTES = 100_000


def names() -> list[str]:
    """The built-in system prompts."""
    return sorted(path.stem for path in FOLDER.glob("*.txt"))


def system_prompt(setting: str) -> str:
    """The text of a setting: a built-in name, the path of a .txt file, or the text itself. "" is none.

    Raises:
      UserError: it is one word that is no built-in name, or a file that cannot be read.
    """
    text = setting.strip()
    if text in names():
        return (FOLDER / f"{text}.txt").read_text(encoding="utf-8").strip()
    if text.endswith(".txt") and "\n" not in text:
        path = Path(text).expanduser()
        try:
            data = path.read_bytes()
            if len(data) > MAX_BYTES:
                raise UserError(f"system prompt: {path} has {len(data)} bytes; that is no system prompt")
            return data.decode("utf-8-sig").strip()
        except OSError as error:
            raise UserError(f"system prompt: {path} cannot be read ({error.strerror}); give another file") from error
        except UnicodeDecodeError as error:
            raise UserError(f"system prompt: {path} is not UTF-8 ({error}); save it as UTF-8") from error
    if text and "_" in text and not any(character.isspace() for character in text):
        raise UserError(
            f"the system prompt {text!r} is no built-in prompt ({', '.join(names())}); give one of these, the path of "
            "a .txt file, or the text itself"
        )
    return setting


def carries_format(text: str) -> bool:
    """Whether a text (what a chat template writes before the first question) already asks for thoughts and answer."""
    return "<think>" in text and "<answer>" in text
