"""Pruning of a finished classifier without training: choose what stays, and refit it to make up for what was cut.

Torch models and batches go in, models come out; nothing here knows of command lines or tasks.
"""
