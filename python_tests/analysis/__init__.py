"""Analyses against double loops, hand-computed values, scipy and numpy. No model is needed here."""
