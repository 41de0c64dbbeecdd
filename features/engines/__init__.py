"""Engines of the features stage: what computes the shards, on one machine or on many."""
