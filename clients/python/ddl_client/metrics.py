"""Reads the server's /metrics and says what moved between two looks at it."""

import dataclasses
import urllib.request

from prometheus_client.parser import text_string_to_metric_families


@dataclasses.dataclass(frozen=True)
class Change:
    """A series that moved: a counter, or a histogram with its observations and their sum."""
    name: str
    labels: str
    before: float
    after: float
    mean: float | None = None  # of what a histogram observed in between


def scrape(address, timeout=10):
    """The metric families at http://ADDRESS/metrics (or at a whole URL), by name."""
    url = address if "://" in address else f"http://{address}/metrics"
    with urllib.request.urlopen(url, timeout=timeout) as response:
        text = response.read().decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def changes(before, after):
    """Counters and histograms that grew between two scrapes, as a list of Change."""
    found = []
    for name, family in after.items():
        suffix = {"counter": "_total", "histogram": "_count"}.get(family.type)
        if suffix is None:
            continue
        old = _series(before.get(name))
        new = _series(family)
        for (sample, labels), value in new.items():
            start = old.get((sample, labels), 0.0)
            if sample != name + suffix or value == start:
                continue
            mean = None
            if family.type == "histogram":
                total = (name + "_sum", labels)
                mean = (new[total] - old.get(total, 0.0)) / (value - start)
            shown = ",".join(f'{key}="{text}"' for key, text in labels)
            found.append(Change(sample, shown, start, value, mean))
    return found


def _series(family):
    samples = family.samples if family is not None else []
    return {(sample.name, tuple(sample.labels.items())): sample.value for sample in samples}
