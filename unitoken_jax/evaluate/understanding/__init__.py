"""Benchmarks of questions about images: VLMEvalKit's files, its prompts and its answer matching."""
