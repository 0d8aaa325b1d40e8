"""English sentence boundaries by the decisions of Punkt, with a word list of our own in place of a corpus's statistics.

Kiss & Strunk 2006, "Unsupervised multilingual sentence boundary detection".

A question or exclamation mark ends a sentence, and so does a full stop, unless it belongs to an abbreviation, an
initial, an ordinal or an ellipsis: then the next word decides.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from vero_jax.rewards.language.vocabulary import ABBREVIATIONS, LOWER_CASE_WORDS, NAME_WORDS, SENTENCE_STARTERS

_AFTER = "[)\";}\\]*:@'({\\[\u2018\u2019\u201c\u201d\xab\xbb?!]"
_CANDIDATE = re.compile(rf"[.?!](?=(?P<after>{_AFTER}|\s+(?P<next>\S+)))")
_MARKS = r"(?:-{2,}|\.{2,}|(?:\.\s){2,}\.)"
_TOKEN = re.compile(
    rf"{_MARKS}|(?=[^(\"`{{\[:;&#*@)}}\]\-,])\S+?(?=\s|$|{_AFTER}|{_MARKS}|,(?=$|\s|{_AFTER}|{_MARKS}))|\S"
)
_NUMBER = re.compile(r"-?[.,]?\d[\d,.\-]*\.?$")
_INITIAL = re.compile(r"[^\W\d]\.$")
_ELLIPSIS = re.compile(r"\.\.+$")
_CLOSING = re.compile("[\"')\\]}\u2018\u2019\u201c\u201d\xab\xbb]+?(?:\\s+|(?=--)|$)", re.MULTILINE)
_PUNCTUATION = frozenset(";:,.!?")
_NUMBER_TYPE = "<number>"


def split_sentences(text: str) -> list[str]:
    """The sentences of `text`, without the white space between them. Blank text has none."""
    pieces = list(_pieces(text))
    sentences = []
    moved = 0  # closing quotes and brackets at the head of a piece that belong to the sentence before
    for index, (start, end) in enumerate(pieces):
        start += moved
        moved = 0
        if index + 1 < len(pieces):
            next_start, next_end = pieces[index + 1]
            closing = _CLOSING.match(text[next_start:next_end])
            if closing:
                moved = closing.end()
                sentences.append(text[start : next_start + len(closing.group().rstrip())])
                continue
        if text[start:end]:
            sentences.append(text[start:end])
    return sentences


def _pieces(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    for match, context in _candidates(text):
        if _breaks(context):
            yield start, match.end()
            start = match.start("next") if match.group("next") else match.end()
    yield start, len(text.rstrip())


def _candidates(text: str) -> Iterator[tuple[re.Match[str], str]]:
    """The last possible sentence end of each word, with the word before it and what comes after it."""
    held: re.Match[str] | None = None
    word_start = word_end = 0
    for match in _CANDIDATE.finditer(text):
        before = text[word_end : match.start()]
        space = next((i for i in range(len(before) - 1, -1, -1) if before[i].isspace()), 0)
        start = word_end + space + 1 if space else word_start
        if held is not None and word_end <= start:
            yield held, text[word_start:word_end] + held.group() + held.group("after")
        held, word_start, word_end = match, start, match.start()
    if held is not None:
        yield held, text[word_start:word_end] + held.group() + held.group("after")


def _breaks(context: str) -> bool:
    """Does a sentence end before the last token of `context`?"""
    tokens = [token for line in context.split("\n") for token in _TOKEN.findall(line.strip())]
    return any(_ends_sentence(token, following) for token, following in itertools.pairwise(tokens))


def _ends_sentence(token: str, following: str) -> bool:
    if token in "?!":
        return True
    if not token.endswith("."):
        return False
    kind = _type(token)
    following_type = _following_type(following)
    ellipsis = bool(_ELLIPSIS.match(token))
    bare = token[:-1].lower()
    abbreviation = (
        token != "."
        and not token.endswith("..")
        and (bare in ABBREVIATIONS or bare.rsplit("-", 1)[-1] in ABBREVIATIONS)
    )
    ends = token == "." or not (token.endswith("..") or abbreviation)
    initial = bool(_INITIAL.match(token))
    starter = _starts_sentence(following, following_type)
    if (abbreviation or ellipsis) and not initial:
        if starter is True:
            return True
        if following[:1].isupper() and following_type in SENTENCE_STARTERS:
            return True
    if initial or kind == _NUMBER_TYPE:
        if starter is False:
            return False
        if initial and starter is None and following[:1].isupper() and not _seen_in_lower_case(following_type):
            return False
    return ends


def _starts_sentence(token: str, kind: str) -> bool | None:
    """What capitals say: True, False, or None when they say nothing."""
    if token in _PUNCTUATION:
        return False
    if token[:1].isupper() and kind in LOWER_CASE_WORDS:
        return True
    if token[:1].islower():
        return False
    return None


def _seen_in_lower_case(kind: str) -> bool:
    return (
        (len(kind) == 1 and kind != "i") or kind in LOWER_CASE_WORDS or kind in NAME_WORDS or kind in SENTENCE_STARTERS
    )


def _type(token: str) -> str:
    kind = _NUMBER_TYPE if _NUMBER.match(token) else token.lower()
    return kind[:-1] if len(kind) > 1 and kind.endswith(".") else kind


def _following_type(token: str) -> str:
    """Type of the next token; it keeps its full stop unless that would end a sentence."""
    if _NUMBER.match(token):
        return _NUMBER_TYPE
    lower = token.lower()
    if len(lower) > 1 and lower.endswith(".") and not lower.endswith("..") and lower[:-1] not in ABBREVIATIONS:
        return lower[:-1]
    return lower
