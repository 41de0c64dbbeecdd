"""Features to captions: beam search, sampling and re-ranking."""
