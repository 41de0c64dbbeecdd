"""METEOR 1.5 for English without Java, with the same counts as pycocoevalcap's program.

A caption goes through `normalize.py` (words), `lexicon.py` (stems, synonyms, phrases), `matches.py`
(all matches with a reference), `alignment.py` (the best of them) and `meteor.py` (counts).
`counts.py` computes the score of any set of captions from their counts.

Synonyms and paraphrases come from pycocoevalcap's files by way of an index in the cache folder:
`build_index.py` builds it, `index.py` reads it. `java.py` runs the original program.
"""
