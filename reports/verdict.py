"""Whether a measured count is what a paper printed, by the paper's own rounding.

The papers round the operations of one view to whole G and multiply by the number of views; comparing exact totals
would call most of their tables wrong. Rounding is half up on exact integers.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from reports.text import MISSING, Notes, rounded

REPRODUCED = "reproduced"
EXPLAINED = "explained"
NOT_REPRODUCED = "not reproduced"
PUBLISHED_ONLY = "published only"
NOT_COMPARED = "not compared"
VERDICTS = (REPRODUCED, EXPLAINED, NOT_REPRODUCED, PUBLISHED_ONLY, NOT_COMPARED)


@dataclass(frozen=True)
class Verdict:
    """One published cell judged. `kind` is None where nothing was published; `reason` is why it is not compared."""

    kind: str | None
    reason: str | None = None

    def __str__(self) -> str:
        return (self.kind or "") + (f" ({self.reason})" if self.reason else "")

    def cell(self, notes: Notes, before: str = "") -> str:
        """As it stands in a table, its reason, which `before` introduces, in a footnote."""
        if self.kind == NOT_REPRODUCED:
            return f"**{self.kind}**"
        return (self.kind or MISSING) + (notes.mark(f"{before}{self.reason}") if self.reason else "")


NOTHING_PUBLISHED = Verdict(None)


def counts(verdicts: Iterable[Verdict]) -> dict[str, int]:
    """How many got each verdict."""
    kinds = [judged.kind for judged in verdicts]
    return {kind: kinds.count(kind) for kind in VERDICTS if kind in kinds}


def printed_flops(count: int, views: int, per_view_decimals: int, total_decimals: int | None = None) -> Decimal:
    """What a paper prints for `count` operations per view: rounded to the table's precision in G, times the views.

    Where it rounds all views together, `total_decimals` says to which precision: -1 for tens of G.
    """
    if total_decimals is not None:
        return rounded(count * views, 10**9, total_decimals)
    return rounded(count, 10**9, per_view_decimals) * views


def printed_params(count: int, decimals: int) -> Decimal:
    """What a paper prints for a number of parameters, in millions."""
    return rounded(count, 10**6, decimals)


def judge(
    published: Any,
    measured: Any,
    *,
    explanation: str | None = None,
    comparable: bool | str = True,
    not_comparable: str | None = None,
    missing: str | None = None,
    model_here: bool = True,
) -> Verdict:
    """The verdict on one cell.

    `measured` is already rounded as the paper rounds. `comparable` is True or why this case may not stand beside the
    paper, `not_comparable` why this cell cannot be compared (an unknown counting rule), `missing` why there is no
    measurement; `model_here=False` marks a row that only the paper has.
    """
    if published is None:
        return NOTHING_PUBLISHED
    if not model_here:
        return Verdict(PUBLISHED_ONLY)
    if comparable is not True:
        return Verdict(NOT_COMPARED, str(comparable) if comparable else "not the published setting")
    if not_comparable:
        return Verdict(NOT_COMPARED, not_comparable)
    if measured is None:
        return Verdict(NOT_COMPARED, missing or "not measured")
    if isinstance(measured, Decimal):
        published = Decimal(str(published))
    if published != measured:
        return Verdict(NOT_REPRODUCED)
    return Verdict(EXPLAINED if explanation else REPRODUCED)
