"""Split captions into words as METEOR's option `-norm` does.

METEOR splits words further than the PTB tokenizer: "t-shirt" becomes `t shirt`, "u.s." becomes
`us`, and "'s" becomes `' s`. The rules are those of Moses' tokenizer with a few of METEOR's own,
found by comparing the program's output on generated text.

Source: Koehn et al. 2007, ACL P07-2045 (tokenizer.perl); Denkowski and Lavie 2014, ACL W14-3348.
"""

import re
from itertools import pairwise

# Letters by METEOR's rules; Greek and CJK, for example, are symbols, and each is a word.
LETTERS = "A-Za-zÀ-ÖØ-öø-žЀ-ԧᴀ-ᵿꙀ-ꙮ꙾-ꚗ"
WORD = f"{LETTERS}0-9"
SPACE = r" \t\n\r\f\xa0\u2000-\u200a\u202f\u205f\u3000"
QUOTES = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "–": " - "})
# Words in lower case that keep their period, the second group only before a number.
ABBREVIATIONS = frozenset(["v", "vs", "rev", "i.e", "e.g"])
ABBREVIATIONS_BEFORE_NUMBERS = frozenset(["pp"])

# Applied in this order. A match consumes its neighbors, as in the original: "a-b-c" is `a b-c`.
RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (rf"([^{WORD}{SPACE}.'`,\-])", r" \1 "),
        (r"(\.\.+)", r" \1 "),
        (r"([^0-9]),([^0-9])", r"\1 , \2"),
        (r"([0-9]),([^0-9])", r"\1 , \2"),
        (r"([^0-9]),([0-9])", r"\1 , \2"),
        (r"--", "-"),
        (rf"([{WORD}]|(?<!\.)\.)-([{WORD}])", r"\1 \2"),
        (r"`", "'"),
        (r"''", ' " '),
        (rf"([^{LETTERS}])'([^{LETTERS}])", r"\1 ' \2"),
        (rf"([^{WORD}])'([{LETTERS}])", r"\1 ' \2"),
        (rf"([{LETTERS}])'([^{LETTERS}])", r"\1 ' \2"),
        (rf"([{LETTERS}])'([{LETTERS}])", r"\1 '\2"),
        (r"([0-9])'(s)", r"\1 '\2"),
    )
)
SPACES = re.compile(f"[{SPACE}]+")
LETTER = re.compile(f"[{LETTERS}]")
LOWER_CASE, DIGIT = re.compile("[a-z]"), re.compile("[0-9]")


def normalize(caption: str) -> list[str]:
    """Split a caption into METEOR's words.

    Args:
        caption: in lower case, e.g. PTB words joined by spaces.
    """
    if caption.isascii() and caption.replace(" ", "").isalnum():
        return caption.split()  # no rule applies
    text = f" {caption.translate(QUOTES)} "
    for pattern, replacement in RULES:
        text = pattern.sub(replacement, text)
    words = [word for word in SPACES.split(text) if word]
    split = [
        part
        for word, following in pairwise([*words, ""])
        for part in _split_period(word, following)
    ]
    return [word.lower() for word in split]


def _split_period(word: str, following: str) -> list[str]:
    """Split off a final period, or drop the periods of an acronym."""
    stem = word[:-1]
    if not stem.strip(".") or not word.endswith("."):
        return [word]
    if "." in stem and LETTER.search(stem):
        return [word.replace(".", "")]
    if stem in ABBREVIATIONS or LOWER_CASE.match(following):
        return [word]
    if stem in ABBREVIATIONS_BEFORE_NUMBERS and DIGIT.match(following):
        return [word]
    return [stem, "."]


def remove_separator(caption: str) -> str:
    """Remove the separator of METEOR's program, as pycocoevalcap removes it from captions."""
    return caption.replace("|||", "").replace("  ", " ")
