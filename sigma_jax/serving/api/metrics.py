"""Metrics of a service, as Prometheus reads them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily, HistogramMetricFamily, Metric

from sigma_jax.serving.api.service import TenantService
from sigma_jax.serving.nearline import REPORT, STALENESS
from sigma_jax.serving.stores.base import StoreError, steady_time

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
SIZES = (1, 2, 4, 8, 16, 32, 64)
# Gauge -> (what it says, the field of a worker's report).
OF_WORKERS = {
    "sigma_worker_users": ("Users whose lists were computed.", "users"),
    "sigma_worker_shed": ("Users who were left out, since too many waited.", "shed"),
    "sigma_worker_failed": ("Lists that could not be computed.", "failed"),
    "sigma_worker_compute_seconds": ("Seconds of computing.", "seconds"),
    "sigma_worker_batches": ("Batches that were computed.", "batches"),
    "sigma_worker_batch_users": ("Users of the last batch.", "last_batch"),
    "sigma_worker_renewed": ("Users whose lists another model or version had made.", "renewed"),
    "sigma_worker_kept_columns": ("Columns of prompts that were kept.", "kept_columns"),
    "sigma_worker_new_columns": ("Columns of prompts that were computed.", "new_columns"),
    "sigma_staleness_seconds": ("From an event to its list, the longest of a batch.", "staleness"),
}


class Metrics:
    """Counters of this process, and gauges that are read from the store when they are asked for."""

    def __init__(self, services: Mapping[str, TenantService]):
        """Args:
        services: tenant -> what answers its calls.
        """
        self.registry = CollectorRegistry()
        self.latency = Histogram(
            "sigma_request_seconds",
            "Time of a request.",
            ("method", "route", "status"),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.answers = Counter(
            "sigma_answers",
            "Answers by where they came from.",
            ("tenant", "source"),
            registry=self.registry,
        )
        self.late = Counter(
            "sigma_late_answers",
            "Requests whose deadline passed, answered by the index.",
            ("tenant",),
            registry=self.registry,
        )
        self.num_beams = Counter(
            "sigma_computed_answers",
            "Answers that were computed, by their number of beams: fewer under load.",
            ("tenant", "beams"),
            registry=self.registry,
        )
        self.batch_sizes = Histogram(
            "sigma_compute_batch_requests",
            "Requests that were computed together.",
            buckets=SIZES,
            registry=self.registry,
        )
        self._services = services
        self.registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """The gauges of queue, index and workers."""
        size = GaugeMetricFamily("sigma_queue_size", "Users who wait.", labels=["tenant"])
        oldest = GaugeMetricFamily(
            "sigma_queue_oldest_seconds", "How long the first of them waits.", labels=["tenant"]
        )
        listed = GaugeMetricFamily("sigma_index_users", "Users with lists.", labels=["tenant"])
        answers = GaugeMetricFamily(
            "sigma_store_up", "Whether the store answers.", labels=["tenant"]
        )
        warmed = GaugeMetricFamily(
            "sigma_warmed_up",
            "Whether programs for requests of all lengths are loaded.",
            labels=["tenant"],
        )
        running = GaugeMetricFamily(
            "sigma_workers", "Workers that have reported within a minute.", labels=["tenant"]
        )
        stale = HistogramMetricFamily(
            "sigma_event_to_list_seconds",
            "From a user's event to the new lists.",
            labels=["tenant", "worker"],
        )
        workers = {
            name: GaugeMetricFamily(name, text, labels=["tenant", "worker"])
            for name, (text, _) in OF_WORKERS.items()
        }
        for tenant, service in self._services.items():
            store = service.store
            warmed.add_metric([tenant], float(service.is_warmed_up))
            try:
                queue = store.queue()
                size.add_metric([tenant], queue.size)
                waits = steady_time() - queue.oldest if queue.oldest is not None else 0.0
                oldest.add_metric([tenant], max(waits, 0.0))
                listed.add_metric([tenant], store.count_lists())
                reports = store.documents(REPORT)
                running.add_metric([tenant], len(reports))
                for worker, report in reports.items():
                    counts = itertools.accumulate(report["stale"])
                    buckets = list(zip([*map(str, STALENESS), "+Inf"], counts, strict=True))
                    stale.add_metric([tenant, worker], buckets, report["stale_seconds"])
                    for name, (_, field) in OF_WORKERS.items():
                        workers[name].add_metric([tenant, worker], report[field])
                answers.add_metric([tenant], 1.0)
            except StoreError:
                answers.add_metric([tenant], 0.0)
        return [size, oldest, listed, answers, warmed, running, stale, *workers.values()]
