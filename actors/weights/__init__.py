"""Weights on their way from the learner to the engines, without a word about how they travel."""
