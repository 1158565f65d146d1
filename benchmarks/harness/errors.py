"""The one error of a benchmark: a system did not do what it was asked.

The run goes on without that system in that question, and the report says why.
"""


class BenchmarkError(Exception):
    """What happened, in a sentence for the report."""
