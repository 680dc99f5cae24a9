"""Counts of the endpoint, in the text format of Prometheus."""

from __future__ import annotations

from collections import Counter


class Metrics:
    """Counted in the event loop alone.

    Args:
      paths: that are counted by name.
    """

    def __init__(self, paths: tuple[str, ...]) -> None:
        self.paths = paths
        self._requests: Counter[tuple[str, int]] = Counter()
        self._seconds: Counter[str] = Counter()
        self._totals: Counter[str] = Counter()

    def count(self, path: str, status: int, seconds: float) -> None:
        """One request that has ended; status 499 = the client hung up."""
        self._requests[path, status] += 1
        self._seconds[path] += seconds  # type: ignore[assignment]

    def add(self, name: str, amount: float) -> None:
        """Adds to a total, such as `audio_in_seconds`."""
        self._totals[name] += amount  # type: ignore[assignment]

    def text(self, gauges: dict[str, float]) -> str:
        """Everything, with the present values of `gauges`."""
        lines = ["# TYPE mimo_requests_total counter"]
        for (path, status), count in sorted(self._requests.items()):
            lines.append(f'mimo_requests_total{{path="{path}",status="{status}"}} {count}')
        lines.append("# TYPE mimo_request_seconds_total counter")
        for path, seconds in sorted(self._seconds.items()):
            lines.append(f'mimo_request_seconds_total{{path="{path}"}} {seconds:.3f}')
        for name, amount in sorted(self._totals.items()):
            lines += [f"# TYPE mimo_{name}_total counter", f"mimo_{name}_total {amount:g}"]
        for name, value in sorted(gauges.items()):
            lines += [f"# TYPE mimo_{name} gauge", f"mimo_{name} {value:g}"]
        return "\n".join(lines) + "\n"
