"""Tests of the compiled core: rule by rule, against a model, and under every interleaving that matters."""
