"""Whether rows that are set against each other have equal budgets, and whether memory was what was predicted."""

from reports.table import AblationTable, Row
from reports.text import LISTED, MISSING, Columns, Notes, counted, listed, significant

BOUNDS = {"params": 0.05, "macs": 0.1}  # of the baseline's, within which a budget is called equal
WORDS = {"params": "parameters", "macs": "multiply-adds"}
PREDICTED, MEASURED = "predicted_training_memory", "training_memory"
HELD = 0.25  # of what was measured: a prediction knows no chunks, and nothing of what an allocator loses


def difference(table: AblationTable, row: Row, name: str) -> float | None:
    """By which share of the baseline's count a row's differs; None where there is nothing to set it against."""
    base = table.baseline_of(row)
    if base is None or base is row or not row.value(name) or not base.value(name):
        return None
    return row.value(name) / base.value(name) - 1


def mark(table: AblationTable, row: Row, name: str, notes: Notes) -> str:
    """The mark of a count that is beyond the bound; empty within it."""
    share = difference(table, row, name)
    if share is None or abs(share) <= BOUNDS[name]:
        return ""
    return notes.mark(f"no equal budget: {WORDS[name]} are not within {BOUNDS[name]:.0%} of the baseline's")


def section(table: AblationTable) -> str:
    """Which rows have the budget of their baseline; empty where none has one, or nothing was counted."""
    sentences = []
    for name, bound in BOUNDS.items():
        shares = {row.name: share for row in table.rows if (share := difference(table, row, name)) is not None}
        beyond = sorted((name for name in shares if abs(shares[name]) > bound), key=shares.get)
        if not shares:
            continue
        named = listed([f"{row} ({_signed(shares[row])})" for row in beyond])
        ends = f", from {_signed(shares[beyond[0]])} to {_signed(shares[beyond[-1]])}" if len(beyond) > LISTED else ""
        sentences.append(
            f"{WORDS[name].capitalize()} are within {bound:.0%} of the baseline's in {len(shares) - len(beyond)} of "
            f"{counted(len(shares), 'row')}" + (f"; beyond: {named}{ends}." if beyond else ".")
        )
    if any("beyond" in sentence for sentence in sentences):
        sentences.append("What such a row gains or loses may be of its budget and not of its attention.")
    return "\n\n".join(["### Equal budgets?", " ".join(sentences)]) if sentences else ""


def _signed(share: float) -> str:
    return f"{share:+.0%}".replace("-", "−")


def memory_columns(table: AblationTable) -> Columns:
    """What was predicted over what was measured, with the verdict; nothing where not both are there."""
    if not (table.has(PREDICTED) and table.has(MEASURED)):
        return []
    return [(f"training memory: predicted / measured (holds within {HELD:.0%})", _memory)]


def _memory(row: Row) -> str:
    if not row.value(PREDICTED) or not row.value(MEASURED):
        return MISSING
    ratio = row.value(PREDICTED) / row.value(MEASURED)
    word = "holds" if abs(ratio - 1) <= HELD else "too high" if ratio > 1 else "**too low**"
    return f"{significant(ratio)}, {word}"
