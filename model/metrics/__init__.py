"""Caption metrics: BLEU, METEOR, ROUGE_L, CIDEr, SPICE, CLIPScore, and their confidence intervals.

`official.py` computes the scores that `showtell eval` reports, with pycocoevalcap. Training uses
`caption_scorer.py`, which computes the same BLEU, ROUGE_L and CIDEr in NumPy. Optional metrics are
subclasses of `metric.Metric`, listed in `registry.py`.
"""
