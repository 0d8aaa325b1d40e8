"""Text of an answer while its tokens come in: whole characters only, and nothing behind a stop text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "�"
"""What a decoder writes for bytes that are no character (yet)."""


class TextStream:
    """Turns tokens into text, piece by piece; the pieces together are the decoder's text of all tokens.

    Args:
      decode: token ids to text, special tokens left out.
      stop: texts that end the answer; they and what follows are left out.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode, self._stop = decode, tuple(stop)
        self._ids: list[int] = []
        self._start = 0
        """First token of the text that is decoded anew; tokens before it are done with."""
        self._read = 0
        """Tokens whose text is whole."""
        self._pending = ""
        """Text that might be the start of a stop text."""
        self.stopped = False
        """Whether a stop text has come."""

    def add(self, ids: Sequence[int], *, last: bool = False) -> str:
        """Takes further tokens and gives the text that is certain now; all of it with the last ones."""
        if self.stopped:
            return ""
        self._ids += ids
        before = self._decode(self._ids[self._start : self._read])
        now = self._decode(self._ids[self._start :])
        if not last and now.endswith(REPLACEMENT):
            return ""  # the bytes of a character are not all here
        new = self._pending + now[len(before) :]
        # The tokens before stay in front of the next ones once more: a decoder may treat a first token differently.
        self._start, self._read = self._read, len(self._ids)
        found = [at for at in (new.find(text) for text in self._stop) if at >= 0]
        if found:
            self.stopped, self._pending = True, ""
            return new[: min(found)]
        held = 0 if last else self._held(new)
        self._pending = new[len(new) - held :] if held else ""
        return new[: len(new) - held]

    def _held(self, text: str) -> int:
        """Length of the longest end of the text that begins a stop text."""
        longest = 0
        for stop in self._stop:
            for size in range(min(len(stop) - 1, len(text)), longest, -1):
                if stop.startswith(text[len(text) - size :]):
                    longest = size
                    break
        return longest
