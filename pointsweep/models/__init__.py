"""Tokenizer + backbone + method + head, and whole networks."""
