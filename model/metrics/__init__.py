"""Caption scores: BLEU, METEOR, ROUGE_L, CIDEr, SPICE, CLIPScore, and their intervals."""
