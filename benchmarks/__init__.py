"""Benchmarks: what a litereplica mount costs and gives, beside the plain disk and a C pass-through mount.

``python -m benchmarks --help``. Each module beside this one asks one question; ``harness/`` is what they share;
``client.py`` is the program that every system is measured with; ``floor.c`` is the C pass-through. docs/benchmarks.md
says what each figure means.
"""
