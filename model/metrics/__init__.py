"""Caption metrics: BLEU, METEOR, ROUGE_L, CIDEr, SPICE, CLIPScore, and their confidence intervals.

`scorer.py` computes the scores that `showtell eval` and `score` report; `official.py` computes them
with pycocoevalcap and Java, for comparison. Training uses `caption_scorer.py`, which has BLEU,
ROUGE_L and CIDEr. Optional metrics are subclasses of `metric.Metric`, listed in `registry.py`.
"""
