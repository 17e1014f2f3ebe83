"""Structured pruning of a finished classifier: which heads and neurons stay, and how what stays makes up for the rest.

Torch models and batches go in, models come out; nothing here knows of command lines or tasks.
"""
