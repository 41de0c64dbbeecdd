r"""Splits captions into words exactly as the scorers' PTB tokenizer does, without Java.

pycocoevalcap sends every caption through PTBTokenizer of Stanford CoreNLP 3.4.1 (-preserveLines
-lowerCase) and then drops a list of punctuation. This module describes the same lexer as a table of
rules. At each position, the rule with the longest match wins, including the context it needs after
the token; of equally long matches, the earlier rule wins.

Results on captions: "don't" becomes `do n't`, "cannot" `can not`, and "dog.The" stays one word.
"Mr." and "p.m." keep their period. "(" becomes `-lrb-` and stays, because the list of punctuation
has it only in upper case. "--" and quotes are dropped, "?!" stays. "1 1/2" is one word with a
no-break space inside. Characters unknown to the lexer, such as emoji, are deleted. British spelling
is kept.

Known differences from pycocoevalcap:
- Java reads all captions as one text, so the last word of a caption can depend on the next caption:
  "vitamin C." gives `c` before a sentence that starts with "A", otherwise `c.`; "no." keeps its
  period before a digit; an open tag `<a b="` continues in the next caption. Here each caption is
  tokenized alone, as if a caption that starts with "A" followed.
- A line break within a caption (\r, \v, \f, U+0085, U+2028, U+2029) is a space here. In Java it
  shifts every later caption by one line.
- A URL whose host or path is a single character beyond U+FFFF is a URL in Java only.
- Java accepts a long s and a Kelvin sign as s and k everywhere; here not in "x-U.S.-U.K.".
- Letters newer than Unicode 14 are letters here if Python knows them. Java deletes them.

Source: Marcus et al. 1993, Penn Treebank; the rules of Stanford CoreNLP 3.4.1, PTBLexer.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

# The tokens that pycocoevalcap drops, and the plain double quote, which Java rewrites to `` or ''.
# Its list also has -LRB- and the like, but tokens are in lower case at that point.
PUNCTUATION = frozenset(['"', "''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

# Character classes, as the inside of [...]. The lexer knows Unicode 6.1 below U+10000, so the
# characters added later are removed from Python's letters and digits.
_LATER = """
    37f 528-52f 560 588 5ef 860-88e 8a1 8ad-8c9 978 980 9fc af9 c34 c5a-c5d c80 cdd d04 d54-d5f
    de6-def e86 e89 e8c e8e-e93 e98 ea0 ea8-ea9 eac 13f5-13fd 16f1-16f8 170d 171f 1878 191d-191e
    19b0-19c0 19c8-19c9 1b4c 1c80-1cbf 1cf2-1cf3 1cfa 2c2f 2c5f 312e-312f 31bb-31bf 4db6-4dbf
    9fcd-9fff a698-a69d a78f a794-a79f a7ab-a7f7 a8fd-a8fe a9e0-a9fe aa7e-aa7f ab30-abbf"""
# Marks that may stand anywhere in a word: the soft hyphen, combining accents, vowel signs.
_MARKS = """
    ad 2c2-2c5 2d2-2df 2e5-2eb 2ed 2ef-36f 375 378-379 384-385 3f6 483-487 55a-55f 591-5bd 5bf
    5c1-5c2 5c4-5c5 5c7 615-61a 64b-65e 670 6d6-6e4 6e7-6ed 6fd-6fe 70f 711 730-74c 7a6-7b0
    7eb-7f3 900-903 93c 93e-94e 951-955 962-963 981-983 9bc 9be-9c4 9c7-9c8 9cb-9cd 9d7 9e2-9e3
    a01-a03 a3c a3e-a4f a81-a83 abc abe-acf b82 bbe-bc2 bc6-bc8 bca-bcd c01-c03 c3e-c56 d3e-d44
    d46-d48 e31 e34-e3a e47-e4e eb1 eb4-ebc ec8-ecd"""
# Symbols; each is a word. Characters in none of these classes are deleted.
_SYMBOLS = """
    a1 a6-a9 ac ae-b1 b4 b6-b8 bf d7 f7 37e 387 589 5be 5c0 5c3 5c6 5f3-5f4 600-603 606-60a 60c
    614 61b 61e-61f 66a 66d 6d4 700-70d 7f6-7f8 964-965 e4f 1fbd 2016-2017 2020-2023 2030-2038
    203b 203e-2042 2044 207a-207e 208a-208e 2100-2101 2103-2106 2108-2109 2114 2116-2118
    211e-2123 2125 2127 2129 212e 213a-213b 2140-2144 214a-214d 214f 2190-2bff 3001-3002 3012
    30fb ff01-ff0f ff1a-ff20 ff3b-ff40 ff5b-ff65"""


def _code_points(ranges: str) -> set[int]:
    """Return the code points of hexadecimal ranges such as "ad 2c2-2c5"."""
    pairs = [part.split("-") for part in ranges.split()]
    return {code for pair in pairs for code in range(int(pair[0], 16), int(pair[-1], 16) + 1)}


def _char_class(codes: Iterable[int]) -> str:
    """Return code points as the inside of a regular expression's [...]."""
    runs: list[list[int]] = []
    for code in sorted(codes):
        if runs and runs[-1][1] == code - 1:
            runs[-1][1] = code
        else:
            runs.append([code, code])
    return "".join(f"\\u{first:04x}-\\u{last:04x}" for first, last in runs)


_KNOWN = set(range(0x10000)) - _code_points(_LATER)
# U+1885 and U+1886 became marks in Unicode 9.
_LETTERS = {code for code in _KNOWN if chr(code).isalpha()} | {0x1885, 0x1886}
_DIGITS = {code for code in _KNOWN if chr(code).isdecimal()}
L = _char_class(_LETTERS)
D = _char_class(_DIGITS)
LD = L + D
SPACE = r"[ \t\xa0\u2000-\u200a\u3000]"
BREAK = rf"(?:{SPACE}|\r\n?|[\n\x0b\x0c\x85\u2028\u2029])"
# A letter can be an entity such as &eacute;. A word continues after [.!?] without a space.
ENTITY = r"&[aeiouAEIOU](?i:acute|grave|uml);"
LETTER = rf"(?:[{_char_class(_LETTERS | _code_points(_MARKS))}]|{ENTITY})"
ALNUM = rf"(?:[{_char_class(_LETTERS | _DIGITS | _code_points(_MARKS))}]|{ENTITY})"
WORD = rf"(?>{LETTER}{ALNUM}*+(?:[.!?]{LETTER}{ALNUM}*+)*)"
APOSTROPHE = r"(?:['\x92\u2019]|(?i:&apos;))"
# Including quotes that people type instead of an apostrophe.
ANY_APOSTROPHE = rf"(?:{APOSTROPHE}|[`\x91\u2018\u201b])"
CLITIC = rf"{APOSTROPHE}(?:[msdMSD]|(?i:re|ve|ll))"
NOT = rf"(?i:n){ANY_APOSTROPHE}(?i:t)"
HYPHEN = r"[-_\u058a\u2010\u2011]"
COMMA = r"[,;:\u3001]"
POINT = r"[.:,\xad\u066b\u066c]"
NUMBER = rf"(?:[{D}]+(?:{POINT}[{D}]+)*|(?:{POINT}[{D}]+)+)"
ELIDED = rf"(?:[dDoOlL]{ANY_APOSTROPHE}[{LD}])?"
THING = rf"{ELIDED}[{LD}]+(?:{HYPHEN}{ELIDED}[{LD}]+)*"
CAPITALS = r"[A-Z]+(?:(?:(?i:&amp;)|[+&])[A-Z]+)+"
TAG_NAME = r"[A-Za-z][A-Za-z0-9_:.\-]*"
ATTRIBUTE = rf" +{TAG_NAME}(?: *= *(?:'[^']*'|\"[^\"]*\"))?"
TAG = rf"<(?:[!?][A-Za-z\-][^>\r\n]*|/{TAG_NAME}|{TAG_NAME}(?:{ATTRIBUTE})* */?) *>"
HOST = r"(?:[^ \t\n\f\r\"`'<>|.!?(){},-_$]+\.)+(?i:com|net|org|edu)"
WWW_HOST = r"(?i:www)\.(?:[^ \t\n\f\r\"<>|.!?(){},]+\.)+[a-zA-Z]{2,4}"
URL_END = r"[^ \t\n\f\r\"<>|.!?(){},\-]"
URL_PATH = rf"/[^ \t\n\f\r\"<>|()]+{URL_END}"

# Months, days, states, companies: these always keep their period.
ABBREVIATION = r"""(?:(?i:jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|mon|tues?|wed|thu|thurs|fri
    |ala|ariz|calif|colo|conn|ct|dak|fla|ga|ind|kans?|ky|md|mich|minn|mo|mont|neb|nev|okla|penn|tenn
    |va|vt|wisc?|wyo|inc|cos?|corp|ltd|plc|rt|bancorp|bhd|assn|univ|intl|sys|tel|est|ext|sq|jr|sr
    |bros|(?:ed|ph)\.d|blvd|rd|esq|etc|al|seq|bldg)|(?i:pp?t)[ye](?i:s?)
    |A(?i:z|rk)|D(?i:el)|I(?i:ll)|L(?i:a)|M(?i:ass|iss)|O(?i:re)|P(?i:a)|T(?i:ex)|W(?i:ash))\."""
# Titles and other abbreviations that precede a name.
TITLE = r"""(?:(?i:mr|mrs|ms|drs?|profs?|sens?|reps?|attys?|lt|col|gen|messrs|govs?|adm|rev|maj|sgt
    |cpl|pvt|capt|ste?|ave|pres|lieut|hon|brig|co?mdr|pfc|spc|supts?|det|mt|ft|adj|adv|asst|assoc
    |ens|insp|mlle|mme|msgr|sfc|invt|elec|natl|dept|alex|vs|wm|jos|cie|cf|treas|ph)|(?i:m)[ft](?i:g)
    |M(?i:iss))\."""
ABBREVIATION, TITLE = (re.sub(r"\s", "", pattern) for pattern in (ABBREVIATION, TITLE))
ACRONYM = r"(?i:(?:canada|sino|korean|eu|japan|non)-u\.s|u\.s\.-u\.(?:s\.s\.r|k)|a\.k\.a)"
HYPHENATED = (
    rf"[A-Za-z0-9][A-Za-z0-9.,\xad]*"
    rf"(?:-(?:(?:[A-Za-z](?:\.[A-Za-z])+|{ACRONYM})\.|[A-Za-z0-9\xad]+))+"
)
# Words that start a sentence. A single letter before them ("plan B. The …") loses its period.
STARTERS = r"""A About According Additionally After An As At But Earlier He Her Here However If In
    It Last Many More Mr\. Ms\. Now Once One Other Our She Since So Some Such That The Their Then
    There These They This We What When While Yet You"""
SENTENCE_START = "|".join(f"{word[0]}(?i:{word[1:]})" for word in STARTERS.split())
EXTENSION = """bat|bmp|c|cgi|class|cpp|dll|docx?|exe|gif|gz|h|html?|jar|java|jpe?g|mov|mp3|pdf|php
    |pl|png|ppt|ps|py|sql|tar|txt|wav|x|xml|zip"""
EXTENSION = re.sub(r"\s", "", EXTENSION)


@dataclass(frozen=True)
class Rule:
    """One kind of token.

    Attributes:
        pattern: group 1 is the token, the rest is the context that must follow it.
        normalize: returns the token as it appears in the output.
    """

    pattern: re.Pattern[str]
    normalize: Callable[[str], str]


def _rule(token: str, followed_by: str = "", normalize: Callable[[str], str] = str) -> Rule:
    return Rule(re.compile(f"({token})(?:{followed_by})"), normalize)


def _drop(token: str) -> str:
    """Return a period, which is dropped as punctuation."""
    return "."


def _without_soft_hyphens(token: str) -> str:
    return token.replace("\xad", "") or "-"


def _with_ampersand(token: str) -> str:
    return re.sub("(?i:&amp;)", "&", token)


def _with_hard_spaces(token: str) -> str:
    return token.replace(" ", "\xa0")


def _bracketed(token: str) -> str:
    return token.replace("(", "-LRB-").replace(")", "-RRB-")


def _dash(token: str) -> str:
    return "--" if len(token) < 5 else token


_LATEX_QUOTES = str.maketrans(
    dict.fromkeys("\x91‘‛‹", "`")
    | dict.fromkeys("\x92’›", "'")
    | dict.fromkeys("\x93“«", "``")
    | dict.fromkeys("\x94”»", "''")
)


def _with_latex_quotes(token: str) -> str:
    return token.replace("&apos;", "'").translate(_LATEX_QUOTES)


_CURRENCY = str.maketrans({"¢": "cents", "£": "#"} | dict.fromkeys("\x80¤\u20a0€", "$"))
_FRACTIONS = str.maketrans({"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"})
_BRACKETS = {"(": "-LRB-", ")": "-RRB-", "[": "-LSB-", "]": "-RSB-", "{": "-LCB-", "}": "-RCB-"}
_BRACKETS |= {"&lt;": "<", "&gt;": ">"}

# Earlier rules win ties. Each pattern must find its longest match first: of alternatives that match
# at the same position, the longer one comes first, or each has a rule of its own.
RULES = (
    # Contracted words: the second half becomes a token of its own.
    _rule("(?i:can)", "(?i:not)"),
    _rule("(?i:gon|wan)", "(?i:na)"),
    _rule("(?i:got)", "(?i:ta)"),
    _rule("(?i:lem|gim)", "(?i:me)"),
    _rule("(?i:'t)", "(?i:is|was)"),
    # Markup and entities.
    _rule(TAG, normalize=_with_hard_spaces),
    _rule(r"(?i:&(?:md|mdash|ndash);)|[\x96\x97\u2013-\u2015]", normalize=_drop),
    _rule("(?i:&amp;)", normalize=_with_ampersand),
    _rule("(?i:&(?:ht|tl|ur|lr|qc|ql|qr|odq|cdq|#[0-9]+);)"),
    # Words, and words before a clitic that is split off: dog 's, do n't.
    _rule(WORD, CLITIC, _without_soft_hyphens),
    _rule(r"[A-Za-z\xad]*[A-MO-Za-mo-z]\xad*", NOT, _without_soft_hyphens),
    _rule(WORD, normalize=_without_soft_hyphens),
    # Words that contain an apostrophe: O'Neil, the l' of l'Oreal, 'em, '90s, c'mon.
    _rule(f"[A-HJ-XZn]{ANY_APOSTROPHE}[{L}]{{2,}}"),
    _rule(f"[{L}]+[aeiouyAEIOUY]{ANY_APOSTROPHE}[aeiouA-Z][{L}]*"),
    _rule(rf"(?i:cont'd\.?|nor'easter|c'mon|e'er|s'mores|ev'ry|li'l|nat'l|o{ANY_APOSTROPHE}o)"),
    _rule(f"[lLdDjJ]{APOSTROPHE}|(?i:dunkin|somethin|ol){APOSTROPHE}"),
    _rule(f"{APOSTROPHE}(?:(?i:n){APOSTROPHE}?|[2-9](?i:0s)|(?i:em|till?|cause))"),
    _rule(f"(?i:y){APOSTROPHE}", f"[{L}]"),
    # Addresses. A host may contain slashes, so a host and a host with a path are two rules.
    _rule(rf"(?i:https?)://[^ \t\n\f\r\"<>|()\{{\}}]+{URL_END}"),
    _rule(HOST),
    _rule(HOST + URL_PATH),
    _rule(WWW_HOST),
    _rule(WWW_HOST + URL_PATH),
    _rule(
        r"(?:(?i:&lt;)|<)?[a-zA-Z0-9][^ \t\n\f\r\"<>|()\xa0{}]*@"
        r"(?:[^ \t\n\f\r\"<>|(){}.\xa0]+\.)*[^ \t\n\f\r\"<>|(){}.\xa0]+(?:(?i:&gt;)|>)?"
    ),
    _rule(f"@[a-zA-Z_][a-zA-Z_0-9]*|#{LETTER}+"),
    # A clitic alone. Before a non-letter it wins over an opening quote ('s but not 'sad').
    _rule(CLITIC, "[^A-Za-z]", _with_latex_quotes),
    # Numbers.
    _rule(f"[{D}]{{1,2}}[-/][{D}]{{1,2}}[-/][{D}]{{2,4}}"),
    _rule(f"[-+]?{NUMBER}", normalize=_without_soft_hyphens),
    _rule(r"[\u207a\u207b\u208a\u208b]?(?:[\u2070\xb9\xb2\xb3\u2074-\u2079]+|[\u2080-\u2089]+)"),
    _rule(
        rf"(?:[{D}]{{1,4}}[- \xa0])?[{D}]{{1,4}}(?:\\?/|\u2044)[{D}]{{1,4}}",
        normalize=_with_hard_spaces,
    ),
    _rule(r"[\xbc-\xbe\u2153-\u215e]", normalize=lambda token: token.translate(_FRACTIONS)),
    # Special cases of the treebank, programming languages.
    _rule(
        r"(?i:-(?:rrb|lrb|rcb|lcb|rsb|lsb)-|c\.d\.s|pro-|anti-|s(?:&amp;|&)p-500|s(?:&amp;|&)ls"
        rf"|cap{APOSTROPHE}n|c{APOSTROPHE}est)",
        normalize=_with_ampersand,
    ),
    _rule(r"(?i:[cf]#|c\+\+)"),
    # and/or, man/woman, and currency.
    _rule(r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}"),
    _rule(r"[A-Z]*\$"),
    _rule(
        r"[\x80\xa2-\xa5\u060b\u0e3f\u20a0\u20a4\u20ac\uffe0\uffe1\uffe5\uffe6]",
        normalize=lambda token: token.translate(_CURRENCY),
    ),
    # Abbreviations keep their period; a single letter loses it at the end of a sentence.
    _rule("[A-Za-z]", rf"\.{BREAK}+(?:{SENTENCE_START}|{TAG}){BREAK}"),
    _rule(r"(?i:ca|figs?|prop|nos?|art|bldg|pp|op)\.", f"{BREAK}?[{D}]"),
    _rule(r"(?i:pty|pte|co)\.", f"{SPACE}(?i:ltd|lim)"),
    _rule(ABBREVIATION, r"[\s\S]{2}"),
    _rule(TITLE),
    _rule(r"[A-Za-z](?:\.[A-Za-z])*\."),
    _rule(rf"{ACRONYM}\."),
    _rule(ACRONYM, BREAK),
    _rule(f"{APOSTROPHE}[0-9][0-9]", BREAK),
    _rule(rf"{WORD}\.", COMMA, _without_soft_hyphens),
    # Telephone numbers.
    _rule(
        r"(?:\([0-9]{2,3}\)[ \xa0]?|(?:\+\+?)?(?:[0-9]{2,4}[- \xa0])?[0-9]{2,4}[- \xa0])"
        r"[0-9]{3,4}[- \xa0]?[0-9]{3,5}",
        normalize=lambda token: _bracketed(_with_hard_spaces(token)),
    ),
    _rule(r"(?:(?:\+\+?)?[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5}"),
    # Punctuation, brackets, smileys.
    _rule('"|(?i:&quot;)', normalize=lambda token: token.replace("&quot;", '"')),
    _rule(r"[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]]", "[^A-Za-z0-9]", _bracketed),
    _rule(
        r"[-^x=~<>']_[-^x=~<>']|\([-^x=~<>'][_.]?[-^x=~<>']\)|\([\^x=~<>']-[\^x=~<>'`]\)"
        r"|[\^x=~<>]\.\[\^(?i:x)=[^<]*<>\]",  # a smiley with a mistake, as in Java
        normalize=_bracketed,
    ),
    _rule(r"[()\[\]{}]|(?i:&[lg]t;)", normalize=lambda token: _BRACKETS[token.lower()]),
    _rule("-+", normalize=_dash),
    _rule(r"\.{3,5}|(?:\.[ \xa0]){2,4}\.|[.,:;\x85\u2026]", normalize=_drop),
    _rule(r"@+|#+|_+|\*+|(?:\\\*){1,3}|[?!]+"),
    # Words with hyphens, underscores and digits; AT&T; file names.
    _rule(rf"{HYPHENATED}\.", COMMA, _without_soft_hyphens),
    _rule(HYPHENATED, normalize=_without_soft_hyphens),
    _rule(rf"{THING}\.", COMMA),
    _rule(THING),
    _rule(rf"{CAPITALS}\.", COMMA, _with_ampersand),
    _rule(CAPITALS, normalize=_with_ampersand),
    _rule(rf"{ALNUM}+(?:\.{ALNUM}+)*\.(?i:{EXTENSION})", rf"{BREAK}|[.?!,]"),
    # Quotes. An opening quote before a word is not a clitic ('sad' does not start with 's).
    _rule("'", r"[A-Za-z][^ \t\n\r\xa0]", _drop),
    _rule(f"{CLITIC}|{NOT}", normalize=_with_latex_quotes),
    _rule(
        r"[`\u2018-\u201f\x91-\x94\u2039\u203a\xab\xbb]{1,2}|''|'|(?i:&apos;)",
        normalize=_with_latex_quotes,
    ),
    _rule("<<|>>"),
    _rule(rf"[{_char_class(_code_points(_SYMBOLS))}$%&+/<=>\\^|~]"),
    _rule("(?i:&nbsp;)", normalize=_drop),
)

_SPACES = re.compile(rf"[ \t]{SPACE}*")
# The beginning of the next line, which can decide the last token: a caption that starts with "A".
_NEXT_CAPTION = "\nA "


def _lex(text: str, following: str = _NEXT_CAPTION) -> list[str]:
    """Split `text` into tokens by the rules.

    Args:
        text: the text to tokenize.
        following: text after it, which serves as context only.

    Returns:
        Lowercased tokens without punctuation.
    """
    end = len(text)
    text += following
    tokens = []
    position = 0
    while position < end:
        if spaces := _SPACES.match(text, position):
            position = spaces.end()
            continue
        longest: re.Match[str] | None = None
        best_rule, longest_end = RULES[0], position
        for rule in RULES:
            match = rule.pattern.match(text, position)
            if match and match.end() > longest_end:
                longest, best_rule, longest_end = match, rule, match.end()
        if longest is None:  # a character unknown to the lexer
            position += 1
            continue
        tokens.append(best_rule.normalize(longest[1]).lower())
        position = longest.end(1)
    # As pycocoevalcap does it: this can strip the end of a URL, and drops empty tokens.
    line = " ".join(tokens).rstrip()
    return [token for token in line.split(" ") if token and token not in PUNCTUATION]


# Matches captions in which a token, or its context, may extend across a space: markup, numbers in
# several parts, spaced dots, "no. 5", and rare characters, some of which are spaces. It uses only
# syntax that Python's `re` and pyarrow's RE2 share.
CROSSES_SPACES = r"[^ -;=-~]|[0-9)] +[0-9]|\. +[.0-9]"

# Words of letters that are split, or keep their period. All other words of letters stay as written.
_SPECIAL_WORDS = re.compile(
    r"(?i:cannot|gonna|wanna|gotta|lemme|gimme)[.,]?"
    rf"|{ABBREVIATION}|{TITLE}|[A-Za-z]\.|(?i:ca|figs?|prop|nos?|art|bldg|pp|op|pty|pte|co)\."
)


def tokenize_chunk(chunk: str) -> list[str] | None:
    """Tokenize the text between two spaces of a caption that `CROSSES_SPACES` does not match.

    Returns:
        Its words, as `tokenize` returns them. None if they depend on the next chunk, as for "B.".
    """
    word = chunk[:-1] if chunk[-1:] in (".", ",") else chunk
    if word.isalpha() and not _SPECIAL_WORDS.fullmatch(chunk):
        return [word.lower()]
    tokens = _lex(chunk)
    if chunk[-1:] == "." and any(_lex(chunk, word) != tokens for word in (" a ", " ltd ")):
        return None
    return tokens


def tokenize(caption: str) -> list[str]:
    """Split a caption into words as pycocoevalcap's PTBTokenizer does.

    Args:
        caption: raw text. Line breaks count as spaces.

    Returns:
        Lowercased words without punctuation; empty if the caption has only punctuation.
    """
    return _lex(caption.replace("\n", " "))
