"""Figures of the proxy, for Prometheus.

Knows names and labels. Does not know who counts.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

_HELP: Final = {
    "requests": ("Requests by kind and by where they went.", ("kind", "to")),
    "waits": ("Reads that had to wait or ask for their cookie's position, by outcome.", ("outcome",)),
    "problems": ("Answers that were the proxy's own, by code.", ("code",)),
    "resent": ("Requests that went to another primary because nothing of them had been sent.", ()),
}


class Counts(Collector):
    """What has happened since the start. ``under_way``: requests and WebSockets at this moment."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, ...]] = Counter()
        self.waits: Counter[tuple[str, ...]] = Counter()
        self.problems: Counter[tuple[str, ...]] = Counter()
        self.resent: Counter[tuple[str, ...]] = Counter()
        self.under_way = 0
        self.waiting = 0
        self._registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._registry)
        self._registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Called by the registry."""
        for name, (what, labels) in _HELP.items():
            family = CounterMetricFamily(f"litereplica_proxy_{name}", what, labels=labels)
            counted: Counter[tuple[str, ...]] = getattr(self, name)
            for values, count in sorted((counted or {(): 0} if not labels else counted).items()):
                family.add_metric(values, count)
            yield family
        for name, what in (("under_way", "Requests at this moment."), ("waiting", "Reads that wait at this moment.")):
            gauge = GaugeMetricFamily(f"litereplica_proxy_{name}", what, labels=())
            gauge.add_metric((), getattr(self, name))
            yield gauge

    def text(self, accept: str) -> tuple[bytes, str]:
        """What Prometheus reads, and its content type."""
        encode, kind = choose_encoder(accept)
        return encode(self._registry), kind
