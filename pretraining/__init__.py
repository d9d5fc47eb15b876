"""Pretraining of the embedded backbone on images that formulas draw: no photograph, no licence, no download."""
