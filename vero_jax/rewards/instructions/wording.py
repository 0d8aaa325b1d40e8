"""Checks of single words and characters: language, case, first and last words, forbidden punctuation."""

from __future__ import annotations

import itertools
import re

from vero_jax.rewards.instructions.arguments import Arguments, Check
from vero_jax.rewards.language.detect import detect_language
from vero_jax.rewards.language.sentences import split_sentences
from vero_jax.rewards.language.words import tokenize

_NOT_WORD = re.compile(r"[^\w]")
_CONSTRAINED_ANSWERS = frozenset({"My answer is yes.", "My answer is no.", "My answer is maybe."})
REFERENCE_LANGUAGES = frozenset({"en", "zh", "fr", "es", "de", "it", "pt", "ru", "ja", "ko"})


def language(text: str, arguments: Arguments) -> bool:
    """The text's most likely language is the wanted one; "zh" stands for both Chinese scripts."""
    wanted = arguments.text("language").strip().lower()
    found = detect_language(text)
    return found is None or found == wanted or (wanted == "zh" and found in ("zh-cn", "zh-tw"))


def reference_language(text: str, arguments: Arguments) -> bool:
    """The reference knows ten codes, of which "zh" never matches what its detector says."""
    wanted = arguments.text("language")
    return wanted in REFERENCE_LANGUAGES and detect_language(text) in (None, wanted)


def constrained_answer(text: str, arguments: Arguments) -> bool:
    return text.strip() in _CONSTRAINED_ANSWERS


def constrained_start(text: str, arguments: Arguments) -> bool:
    return text.lstrip().startswith(arguments.text("starter").strip())


def end_phrase(text: str, arguments: Arguments) -> bool:
    return text.strip().strip('"').lower().endswith(arguments.text("end_phrase").strip().lower())


def english_capitals(text: str, arguments: Arguments) -> bool:
    return text.isupper() and detect_language(text) in (None, "en")


def english_small_letters(text: str, arguments: Arguments) -> bool:
    return text.islower() and detect_language(text) in (None, "en")


def no_comma(text: str, arguments: Arguments) -> bool:
    return "," not in text


def no_full_stop(text: str, arguments: Arguments) -> bool:
    return "." not in text


def no_exclamation_mark(text: str, arguments: Arguments) -> bool:
    return "!" not in text


def first_word_of_sentences(text: str, arguments: Arguments) -> bool:
    wanted = arguments.text_or_first("first_word").strip().lower()
    return all(sentence.split()[0].lower() == wanted for sentence in split_sentences(text))


def first_word_of_answer(text: str, arguments: Arguments) -> bool:
    return text.split()[0].lower() == arguments.text("first_word", empty=False).strip().lower()


def last_word_of_sentences(text: str, arguments: Arguments) -> bool:
    wanted = arguments.text_or_first("last_word").strip().lower()
    return all(_last_word(sentence) == wanted for sentence in split_sentences(text))


def last_word_of_answer(text: str, arguments: Arguments) -> bool:
    return _last_word(text) == arguments.text("last_word", empty=False).strip().lower()


def adjacent_letters(text: str, arguments: Arguments) -> bool:
    """No word's first letter is the one right after the first letter of the word before."""
    firsts = [ord(word.lower()[0]) for word in text.split()]
    return all(second - first != 1 for first, second in itertools.pairwise(firsts))


def palindrome(text: str, arguments: Arguments) -> bool:
    return any(word == word[::-1] for word in text.split())


def same_start_and_end(text: str, arguments: Arguments) -> bool:
    tokens = tokenize(text)
    return len(tokens) >= 2 and tokens[0].lower() == tokens[-1].lower()


def _last_word(text: str) -> str:
    return _NOT_WORD.sub("", text.split()[-1]).lower()


CHECKS: dict[str, Check] = {
    "ResponseLanguageChecker": language,
    "ConstrainedResponseChecker": constrained_answer,
    "ConstrainedStartChecker": constrained_start,
    "EndChecker": end_phrase,
    "CapitalLettersEnglishChecker": english_capitals,
    "LowercaseLettersEnglishChecker": english_small_letters,
    "CommaChecker": no_comma,
    "PunctuationDotChecker": no_full_stop,
    "PunctuationExclamationChecker": no_exclamation_mark,
    "FirstWordSentChecker": first_word_of_sentences,
    "FirstWordAnswerChecker": first_word_of_answer,
    "LastWordSentChecker": last_word_of_sentences,
    "LastWordAnswerChecker": last_word_of_answer,
    "AdjacentLetterChecker": adjacent_letters,
    "PalindromeBasicChecker": palindrome,
    "StartEndChecker": same_start_and_end,
}
