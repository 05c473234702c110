"""Tests over seeds and objects, sequential rule, Shapley shares, power."""
