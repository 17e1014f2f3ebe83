"""Speed, size and memory measurements: each module is a program that prints a table and writes JSON."""
