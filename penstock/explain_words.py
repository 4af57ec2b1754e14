"""Moments and lengths of time in explanations."""

from datetime import UTC, datetime


def moment(epoch_ms: int) -> str:
    """A moment in UTC."""
    return datetime.fromtimestamp(epoch_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def after(moment_ms: int, now_ms: int) -> str:
    """How far away a moment is."""
    left_s = (moment_ms - now_ms) / 1000
    return f"in {left_s:.1f} s" if left_s > 0 else f"{-left_s:.1f} s ago"
