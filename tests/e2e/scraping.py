"""Values on the server's /metrics."""

import urllib.request

from prometheus_client.parser import text_string_to_metric_families

# What says that requests are in the server.
_GAUGES_OF_WORK = ("ddl_requests_in_flight", "ddl_requests_running", "ddl_requests_waiting",
                   "ddl_waiting_tokens", "ddl_kv_cache_usage_ratio")


class Scrape:
    """One look at /metrics: text, and samples by name and labels."""

    def __init__(self, text):
        self.text = text
        self.types = {}
        self.samples = []
        for family in text_string_to_metric_families(text):
            self.types[family.name] = family.type
            self.samples += family.samples

    @classmethod
    def of(cls, address):
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as response:
            return cls(response.read().decode())

    def value(self, name, **labels):
        """The sum of the series of this name that carry these labels; 0 without any."""
        return sum(sample.value for sample in self.samples
                   if sample.name == name and labels.items() <= sample.labels.items())

    def by(self, label, name, **labels):
        """{value of the label: sum of the series that carry it}, without the zeros."""
        values = {}
        for sample in self.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                key = sample.labels[label]
                values[key] = values.get(key, 0) + sample.value
        return {key: value for key, value in values.items() if value}

    def busy(self):
        """The gauges of work that are not zero, blocks in use among them."""
        gauges = {name: self.value(name) for name in _GAUGES_OF_WORK}
        gauges["ddl_kv_blocks used"] = self.value("ddl_kv_blocks", state="used")
        return {name: value for name, value in gauges.items() if value}
