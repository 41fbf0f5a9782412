"""Metrics against brute force and hand-computed values. No model is trained here."""
