import math

import numpy as np
import torch

from showtell.model.retrieval.search import NeighborSearch
from showtell.model.retrieval.words import WordRetriever
from showtell.pipeline.text.vocab import SPECIALS, UNK, Vocab

WORDS = ["a", "dog", "cat", "runs", "sleeps", "grass", "the"]
VOCAB = Vocab((*SPECIALS, *WORDS))
CAPTIONS = {
    7: ["a dog runs", "the dog runs runs", "a dog zzz"],
    3: ["a cat sleeps"],
    9: ["the dog sleeps", "the grass"],
    5: ["the cat runs"],
}
IDS = np.array([*CAPTIONS])


def features_of(seed: int, count: int) -> torch.Tensor:
    return torch.rand(count, 6, generator=torch.Generator().manual_seed(seed))


def make(num_neighbors: int = 3, num_words: int = len(VOCAB)) -> WordRetriever:
    search = NeighborSearch(IDS.tolist(), features_of(0, len(IDS)), num_neighbors)
    encoded = [[VOCAB.encode(text.split()) for text in texts] for texts in CAPTIONS.values()]
    return WordRetriever(search, encoded, len(VOCAB), num_words)


def expected_words(retriever: WordRetriever, features: torch.Tensor, ids: np.ndarray) -> np.ndarray:
    """The weight of every token for each image, by plain loops over neighbors and captions."""
    tokens = [VOCAB.encode(text.split()) for texts in CAPTIONS.values() for text in texts]
    images = [image_id for image_id, texts in CAPTIONS.items() for _ in texts]
    weights = np.zeros((len(features), len(VOCAB)))
    rows, shares = retriever.search.find(features, ids)
    for image, (neighbors, alphas) in enumerate(zip(rows, shares, strict=True)):
        for row, alpha in zip(neighbors.tolist(), alphas, strict=True):
            own = [t for t, i in zip(tokens, images, strict=True) if i == IDS[row]]
            for token in range(len(SPECIALS), len(VOCAB)):
                share = sum(token in caption for caption in own) / len(own)
                having = {i for caption, i in zip(tokens, images, strict=True) if token in caption}
                weights[image, token] += alpha * share * math.log(len(IDS) / max(1, len(having)))
    return weights.clip(min=0)


def test_weights_equal_plain_loops() -> None:
    retriever, features, ids = make(), features_of(1, 5), np.array([7, 1, 2, 4, 6])
    words = retriever.retrieve(features, ids)
    found = torch.zeros(5, len(VOCAB)).scatter_(1, words.token_ids.long(), words.weights.float())
    np.testing.assert_allclose(found, expected_words(retriever, features, ids), atol=2e-3)
    assert words.weights.dtype == torch.float16 and words.token_ids.dtype == torch.int32


def test_best_words_come_first_and_the_others_are_dropped() -> None:
    every, few = (make(num_words=n).retrieve(features_of(1, 5)) for n in (len(VOCAB), 2))
    assert (every.weights.diff(dim=1) <= 0).all() and (every.weights >= 0).all()
    assert torch.equal(few.weights, every.weights[:, :2])
    assert torch.equal(few.token_ids, every.token_ids[:, :2])


def test_unknown_words_and_words_of_all_images_have_no_weight() -> None:
    captions = [[VOCAB.encode(["a", "zzz", word])] for word in ("dog", "cat")]
    search = NeighborSearch([1, 2], features_of(0, 2), 2)
    words = WordRetriever(search, captions, len(VOCAB)).retrieve(features_of(1, 3))
    found = torch.zeros(3, len(VOCAB)).scatter_(1, words.token_ids.long(), words.weights.float())
    assert not found[:, UNK].any() and not found[:, VOCAB.ids["a"]].any()
    assert found[:, VOCAB.ids["dog"]].all()


def test_own_captions_are_left_out() -> None:
    """An image whose captions are unlike all others does not find its own words."""
    retriever, features = make(num_neighbors=4), features_of(0, 4)
    dog = VOCAB.ids["grass"]
    others = retriever.retrieve(features, IDS)
    with_own = retriever.retrieve(features)
    row = [*CAPTIONS].index(9)  # the only image with grass
    assert dog not in others.token_ids[row][others.weights[row] > 0].tolist()
    assert dog in with_own.token_ids[row][with_own.weights[row] > 0].tolist()


def test_images_do_not_depend_on_their_batch() -> None:
    retriever, features = make(), features_of(1, 150)
    together = retriever.retrieve(features)
    alone = [retriever.retrieve(row[None]) for row in features]
    np.testing.assert_allclose(
        together.weights.float(), torch.cat([w.weights for w in alone]).float(), atol=2e-3
    )
