"""Recorded experiments, one module each; :mod:`cua.experiments.registry` lists them all."""
