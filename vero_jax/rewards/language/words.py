"""Words and punctuation of English text by the Penn Treebank's conventions, as one left-to-right scan.

Punctuation stands alone, clitics are cut off ("can't" -> "ca", "n't"), an opening double quote becomes two backticks
and a closing one two apostrophes, a full stop is its own token at the end of a sentence only.
"""

from __future__ import annotations

import re

from vero_jax.rewards.language.sentences import split_sentences

_FINAL_STOP = re.compile(r"(?<=[^.])\.(?=(?:[\])}>»”’ ]|(?<![ (\[{<])(?:''|\")|'(?!'))*\s*$)")
_STARTS_AT = re.compile(
    r"""
    (?P<dots>\.{2,})
    | (?P<quote>"|'')
    | (?P<alone>``|`|--|[«“‘„»”’;@#$%&\u2012-\u2015?!*\[\](){}<>])
    | (?P<pause>[:,])
    """,
    re.VERBOSE,
)
_OPENS_QUOTE = frozenset(" ([{<«“‘„`")
_LEADING_APOSTROPHE = re.compile(r"(?<!\w)'(?!(?:re|ve|ll|m|t|s|d|n)\b)(?=\w)", re.IGNORECASE)
_SHORT_CLITIC = re.compile(r"(?<=[^' ])(?:'[sSmMdD]|')$")
_LONG_CLITIC = re.compile(r"(?<=[^' ])(?:'ll|'LL|'re|'RE|'ve|'VE|n't|N'T)$")
_FUSED = re.compile(
    r"\b(?:(can)(not)|(d)('ye)|(gim)(me)|(gon)(na)|(got)(ta)|(lem)(me)|(more)('n))\b|\b(wan)(na)$", re.IGNORECASE
)


def tokenize(text: str) -> list[str]:
    """Tokens of all sentences of `text`, in order."""
    return [token for sentence in split_sentences(text) for token in tokenize_sentence(sentence)]


def tokenize_sentence(sentence: str) -> list[str]:
    """Tokens of one sentence."""
    stop = _FINAL_STOP.search(sentence)
    if stop is None:
        return _scan(sentence)
    return [*_scan(sentence, 0, stop.start()), ".", *_scan(sentence, stop.end())]


def _scan(text: str, start: int = 0, end: int | None = None) -> list[str]:
    """Tokens of text[start:end]; what lies outside still counts as context."""
    end = len(text) if end is None else end
    tokens: list[str] = []
    word_start = at = start
    pause_taken = -1  # a colon or comma that the one before it has already used up as its neighbour
    while True:
        match = _STARTS_AT.search(text, at, end)
        if match is None:
            break
        at = match.end()
        token = match.group()
        if match.lastgroup == "pause":
            after = text[at : at + 1]
            if (match.start() == pause_taken and after) or after.isdecimal():
                continue
            pause_taken = at
        elif match.lastgroup == "quote":
            token = "``" if _opens(text, match.start()) else "''"
        tokens += _words(text[word_start : match.start()])
        tokens.append(token)
        word_start = at
    return tokens + _words(text[word_start:end])


def _opens(text: str, at: int) -> bool:
    """Is the double quote at `at` an opening one?"""
    if at == 0 or text[:at] == '"':
        return text[at] == '"'
    return text[at - 1] in _OPENS_QUOTE


def _words(text: str) -> list[str]:
    """Words of a stretch that holds no separate punctuation."""
    pieces = []
    for chunk in _LEADING_APOSTROPHE.sub("' ", text).split():
        tail: list[str] = []
        for clitic in (_SHORT_CLITIC, _LONG_CLITIC):
            match = clitic.search(chunk)
            if match:
                chunk, tail = chunk[: match.start()], [match.group(), *tail]
        for piece in (chunk, *tail):
            pieces += _FUSED.sub(_parted, piece).split()
    return pieces


def _parted(fused: re.Match[str]) -> str:
    first, second = (part for part in fused.groups() if part)
    return f" {first} {second} "
