"""What /metrics tells Prometheus: requests and their times; the engine's queue, rows, tokens and memory."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from unitoken_jax.serve.requests import ServingEngine

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """The server's counters; the engine's are read when somebody asks (`text`)."""

    def __init__(self, engine: ServingEngine):
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(engine))
        self.requests = Counter(
            "unitoken_http_requests", "Requests answered", ["path", "status"], registry=self._registry
        )
        self.seconds = Histogram(
            "unitoken_http_request_seconds",
            "From a request's headers to the last byte of its answer",
            ["path"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.first_token = Histogram(
            "unitoken_first_token_seconds",
            "From taking a request to the first of its answer's text, or of its image",
            ["kind"],
            buckets=_SECONDS,
            registry=self._registry,
        )

    def text(self) -> bytes:
        """Everything, in Prometheus' format."""
        return generate_latest(self._registry)


class _EngineCollector(Collector):
    """The engine's statistics, as Prometheus' metrics."""

    def __init__(self, engine: ServingEngine):
        self._engine = engine

    def describe(self) -> Iterator[Metric]:
        return iter(())  # else registering would ask the engine

    def collect(self) -> Iterator[Metric]:
        stats = self._engine.stats()
        yield GaugeMetricFamily("unitoken_ready", "Whether requests are taken", value=self._engine.ready)
        gauges = {
            "rows": "Answers or images that can be written at one time",
            "occupied": "Of these, in use",
            "waiting": "Requests in the queue",
            "slots": "Tokens that a row has room for",
            "cache_bytes": "Memory of the keys and values",
        }
        for name, about in gauges.items():
            gauge = GaugeMetricFamily(f"unitoken_pool_{name}", about, labels=["pool"])
            for pool, values in stats.pools.items():
                gauge.add_metric([pool], getattr(values, name))
            yield gauge
        totals = {
            "tokens": "Tokens written",
            "passes": "Passes of the decoder",
            "seconds": "Time of these passes",
        }
        for name, about in totals.items():
            total = CounterMetricFamily(f"unitoken_pool_{name}", about, labels=["pool"])
            for pool, values in stats.pools.items():
                total.add_metric([pool], getattr(values, name))
            yield total
        outcomes = CounterMetricFamily(
            "unitoken_requests", "Answers and images, by what became of them", labels=["outcome"]
        )
        for outcome in ("taken", "finished", "cancelled", "failed", "refused"):
            outcomes.add_metric([outcome], getattr(stats, outcome))
        yield outcomes
