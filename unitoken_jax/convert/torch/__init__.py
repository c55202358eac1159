"""Torch's files without torch: readers of safetensors and .ckpt files, name tables, settings, writers."""
