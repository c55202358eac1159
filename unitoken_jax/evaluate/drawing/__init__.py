"""Benchmarks of images drawn from prompts: files where their authors' scorers look, and their scores."""
