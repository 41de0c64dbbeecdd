"""From captions to token ids: tokenizer, subword pieces and vocabulary."""
