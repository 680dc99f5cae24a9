"""Nothing is lost: the accounts of a shard and of a run, and the limit of what may be broken."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from mimo_jax.preparation.chain import Key
from mimo_jax.preparation.elements import Dropped, Element, Outcome


@dataclasses.dataclass(frozen=True)
class Limits:
    """When a run is refused.

    Attributes:
        bad_share: of quarantined items above which the run stops ...
        bad_records: ... once there are more than this many.
    """

    bad_share: float = 0.2
    bad_records: int = 100


class TooManyBadRecords(Exception):
    """More records were quarantined than the limits allow; the message says how many, for what reasons."""


@dataclasses.dataclass
class Account:
    """Where items went. ``items_in == written + filtered + quarantined``, and for the pieces they were cut into, too.

    An item counts as written if one of its pieces was written, else as quarantined if one was, else as filtered.

    Attributes:
        items_in, written, filtered, quarantined: items of the source.
        pieces: what became of the pieces (one each unless a stage cuts), by "written", "filtered", "quarantined".
        reasons: of pieces that were filtered or quarantined.
        seconds: of audio that was written.
    """

    items_in: int = 0
    written: int = 0
    filtered: int = 0
    quarantined: int = 0
    pieces: Counter[str] = dataclasses.field(default_factory=Counter)
    reasons: Counter[str] = dataclasses.field(default_factory=Counter)
    seconds: float = 0.0

    @classmethod
    def of(cls, outcomes: Sequence[tuple[Key, Outcome]]) -> Account:
        """The account of a shard."""
        account = cls()
        by_item: dict[int, set[str]] = {}
        for key, outcome in outcomes:
            fate = "written" if isinstance(outcome, Element) else outcome.kind
            by_item.setdefault(key[0], set()).add(fate)
            account.pieces[fate] += 1
            if isinstance(outcome, Dropped):
                account.reasons[outcome.reason] += 1
            else:
                account.seconds += getattr(outcome.record, "duration", None) or 0.0
        account.items_in = len(by_item)
        for fates in by_item.values():
            fate = next(f for f in ("written", "quarantined", "filtered") if f in fates)
            setattr(account, fate, getattr(account, fate) + 1)
        return account

    @classmethod
    def total(cls, accounts: Iterable[Account]) -> Account:
        """The sum."""
        result = cls()
        for account in accounts:
            for name in ("items_in", "written", "filtered", "quarantined", "seconds"):
                setattr(result, name, getattr(result, name) + getattr(account, name))
            result.pieces += account.pieces
            result.reasons += account.reasons
        return result

    @property
    def balanced(self) -> bool:
        """Whether nothing is lost."""
        return self.items_in == self.written + self.filtered + self.quarantined

    def to_json(self) -> dict[str, Any]:
        """As written to disk; keys in a fixed order."""
        return {
            "in": self.items_in,
            "written": self.written,
            "filtered": self.filtered,
            "quarantined": self.quarantined,
            "pieces": dict(sorted(self.pieces.items())),
            "reasons": dict(sorted(self.reasons.items())),
            "seconds": round(self.seconds, 6),
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Account:
        """As read from disk."""
        return cls(
            items_in=fields["in"],
            written=fields["written"],
            filtered=fields["filtered"],
            quarantined=fields["quarantined"],
            pieces=Counter(fields["pieces"]),
            reasons=Counter(fields["reasons"]),
            seconds=fields["seconds"],
        )

    def __str__(self) -> str:
        pieces = ""
        if self.pieces.total() != self.items_in:
            pieces = f"; in pieces: {', '.join(f'{n} {fate}' for fate, n in sorted(self.pieces.items()))}"
        return (
            f"{self.items_in} in = {self.written} written + {self.filtered} filtered + {self.quarantined} quarantined "
            f"{dict(sorted(self.reasons.items())) or ''}{pieces}"
        ).rstrip()

    def check(self, limits: Limits, source: str, listed: str, first: Callable[[], str] = str) -> None:
        """Stops a run with too much that is broken.

        Args:
            limits: of what may be broken.
            source, listed: for the message: what is read, and where the broken items are listed.
            first: gives the first broken item, for the message; asked only where the run stops.

        Raises:
            TooManyBadRecords: see `Limits`.
        """
        if self.quarantined > limits.bad_records and self.quarantined > limits.bad_share * self.items_in:
            reasons = dict(sorted(self.reasons.items()))
            example = f"; the first: {found}" if (found := first()) else ""
            raise TooManyBadRecords(
                f"{source}: {self.quarantined} of {self.items_in} records are bad ({reasons}{example}), more than "
                f"the limit of {limits.bad_share:.0%}; see {listed}, then mend the data or raise "
                "accounts.Limits.bad_share: what is finished is kept"
            )
