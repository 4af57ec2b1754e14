"""What clients get to see of the rules for admission. Times are epoch milliseconds by the store's clock."""

from typing import Any, Final

import msgspec

from admission.admission_definition import AdmissionDefinition
from cluster.documents import DocumentRecord

DEFAULT_RULES: Final = """\
# No rules were set. What holds then: nothing is bounded, nobody is preferred, and a job waits for at most 24 h.
"""


class AdmissionView(msgspec.Struct, frozen=True, kw_only=True):
    """Rules that are, or were, in force. ``number`` grows with each change; 0 is the default, which nobody has set."""

    version: str
    text: str
    number: int = 0
    in_force: bool = True
    since_ms: int | None = None
    by: str = ""
    why: str = ""


class AdmissionAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of rules that were set: in force now (``changed``), or they were before. ``says`` is what they say,
    in a line each, and ``dry_run`` that nothing is refused by them.
    """

    rules: AdmissionView
    changed: bool
    dry_run: bool
    says: list[str] = []


def admission_view(record: DocumentRecord | None, *, in_force: bool = True) -> AdmissionView:
    """The view of a record; None: nobody has set rules."""
    if record is None:
        return AdmissionView(version=AdmissionDefinition().version, text=DEFAULT_RULES)
    return AdmissionView(
        version=record.version,
        text=record.text,
        number=record.number,
        in_force=in_force,
        since_ms=record.since,
        by=record.by,
        why=record.why,
    )


def says(definition: AdmissionDefinition) -> list[str]:
    """What rules say beyond the defaults, a line for each class and each tenant, for people."""
    said = definition.model_dump(mode="json", exclude_defaults=True)
    lines = [f"class {name}: {_fields(fields)}" for name, fields in said.get("classes", {}).items() if fields]
    lines += [f"tenant {name}: {_fields(fields)}" for name, fields in said.get("tenants", {}).items() if fields]
    if fields := said.get("other_tenants"):
        lines.append(f"every other tenant: {_fields(fields)}")
    lines += [f"{name}: {said[name]:,}" for name in ("max_queued", "max_queued_bytes") if name in said]
    if definition.dry_run:
        lines.append(
            "dry run: nothing is refused or evicted; what would have been is counted (penstock queue). Runs that have "
            "waited for their max_wait are shed all the same"
        )
    return lines


def _fields(fields: dict[str, Any]) -> str:
    return ", ".join(f"{name} {_text(name, value)}" for name, value in fields.items())


def _text(name: str, value: Any) -> str:
    if isinstance(value, list):
        return " ".join(str(each) for each in value)
    unit = " s" if name in ("max_wait", "cost_per_hour") else ""
    return f"{value:,g}{unit}" if isinstance(value, float) else f"{value:,}{unit}"
