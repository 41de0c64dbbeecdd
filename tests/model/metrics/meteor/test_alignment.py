"""The search over many pairs at once against plain loops over one pair."""

import random
from typing import NamedTuple

import numpy as np

from showtell.model.metrics.meteor.alignment import BEAM_SIZE, align
from showtell.model.metrics.meteor.matches import EXACT, PARAPHRASE, Matches


class Span(NamedTuple):
    start: int
    end: int
    reference_start: int
    reference_end: int
    matcher: int


class Path(NamedTuple):
    """A partial alignment."""

    next_word: int = 0
    covered: int = 0
    chunks: int = 0
    distance: int = 0
    end: int | None = None
    used: frozenset[int] = frozenset()
    chosen: tuple[Span, ...] = ()

    def rank(self):
        return -self.covered, self.chunks, self.distance


def align_one(spans: list[Span], reference_length: int) -> list[Span]:
    """Align one pair by the rules in the docstring of `alignment.py`."""
    words = [word for span in spans for word in range(span.start, span.end)]
    others = [w for span in spans for w in range(span.reference_start, span.reference_end)]
    fixed = [
        span
        for span in spans
        if all(words.count(w) == 1 for w in range(span.start, span.end))
        and all(others.count(w) == 1 for w in range(span.reference_start, span.reference_end))
    ]
    paths = [Path(used=frozenset(w for span in fixed for w in range(span.start, span.end)))]
    for word in range(reference_length):
        following = []
        for path in sorted(paths, key=Path.rank)[:BEAM_SIZE]:
            if path.next_word > word:
                following.append(path)
                continue
            distance = path.distance
            for span in spans:
                if span.reference_start != word:
                    continue
                covered = set(range(span.start, span.end))
                if span not in fixed and covered & path.used:
                    continue
                own = abs(span.start - span.reference_start)
                following.append(
                    Path(
                        next_word=span.reference_end,
                        covered=path.covered + value(span),
                        chunks=path.chunks + (path.end is not None and path.end != span.start),
                        distance=distance + (own if span in fixed else 0),
                        end=span.end,
                        used=path.used | covered,
                        chosen=(*path.chosen, span),
                    )
                )
                distance += own
            if not any(span.reference_start == word for span in fixed):
                chunks = path.chunks + (path.end is not None)
                following.append(
                    path._replace(next_word=word + 1, chunks=chunks, distance=distance, end=None)
                )
        paths = following
    best = sorted(paths, key=Path.rank)[:BEAM_SIZE]
    closed = [path._replace(chunks=path.chunks + (path.end is not None)) for path in best]
    return list(min(closed, key=Path.rank).chosen)


def value(span: Span) -> int:
    if span.matcher == EXACT:
        return 2
    return (span.end - span.start) // 2 + (span.reference_end - span.reference_start) // 2


def draw_spans(rng: random.Random, length: int, reference_length: int) -> list[Span]:
    spans = set()
    for _ in range(rng.randint(0, 12)):
        matcher = rng.choice((EXACT, PARAPHRASE))
        most = 1 if matcher == EXACT else 3
        start, reference_start = rng.randrange(length), rng.randrange(reference_length)
        end = min(length, start + rng.randint(1, most))
        reference_end = min(reference_length, reference_start + rng.randint(1, most))
        spans.add(Span(start, end, reference_start, reference_end, matcher))
    ordered = list(spans)
    rng.shuffle(ordered)
    return sorted(ordered, key=lambda span: span.reference_start)


def to_matches(pairs: list[list[Span]]) -> Matches:
    rows = [
        (
            number,
            span.matcher,
            span.start,
            span.end - span.start,
            span.reference_start,
            span.reference_end - span.reference_start,
        )
        for number, spans in enumerate(pairs)
        for span in spans
    ]
    return Matches(*np.array(rows, np.int64).reshape(-1, 6).T)


def test_alignments_equal_those_of_a_plain_loop():
    rng = random.Random(0)
    # Captions beyond 64 words need several numbers for the words that are used.
    sizes = [(rng.randint(1, 8), rng.randint(1, 8)) for _ in range(1500)]
    sizes += [(rng.randint(60, 140), rng.randint(1, 9)) for _ in range(50)]
    pairs = [draw_spans(rng, *size) for size in sizes]
    lengths, reference_lengths = np.array(sizes).T
    chosen = align(to_matches(pairs), lengths, reference_lengths)
    spans = [(number, span) for number, spans in enumerate(pairs) for span in spans]
    found = [span for span, is_chosen in zip(spans, chosen, strict=True) if is_chosen]
    expected = [
        (number, span)
        for number, (spans, size) in enumerate(zip(pairs, sizes, strict=True))
        for span in align_one(spans, size[1])
    ]
    assert found == expected and len(found) > 2000


def test_beam_prunes_as_a_plain_loop_does():
    rng = random.Random(1)
    for _ in range(5):
        # Every word matches every word: more than 40 paths from the second word on.
        length, reference_length = rng.randint(5, 9), rng.randint(5, 9)
        spans = [
            Span(start, start + 1, place, place + 1, EXACT)
            for place in range(reference_length)
            for start in rng.sample(range(length), rng.randint(3, length))
        ]
        chosen = align(to_matches([spans]), np.array([length]), np.array([reference_length]))
        found = [span for span, is_chosen in zip(spans, chosen, strict=True) if is_chosen]
        assert found == align_one(spans, reference_length)


def test_pairs_without_matches_have_empty_alignments():
    assert not align(to_matches([[], []]), np.array([3, 0]), np.array([0, 2])).any()
