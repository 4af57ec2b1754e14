"""Logging without secrets."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry.log import configure_logging
from telemetry.redaction import redact

# What people put into a URL as it is, percent-encoded or not.
passwords = st.text(st.characters(categories=("L", "N", "P", "S"), max_codepoint=0x2FF), min_size=4).filter(
    lambda text: not text.isspace()
)


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("PENSTOCK_LOG_JSON", raising=False)
    monkeypatch.delenv("PENSTOCK_LOG_LEVEL", raising=False)
    logger = logging.getLogger("penstock")
    before = list(logger.handlers), logger.propagate, logger.level
    yield
    logger.handlers, logger.propagate, logger.level = before


@given(
    st.sampled_from(["redis", "rediss", "REDIS", "postgresql+psycopg", "http"]),
    st.sampled_from(["", "user"]),
    passwords,
    st.sampled_from(["host", "host:6379/0", "[::1]:6379"]),
    st.text("abc .,:", max_size=8),
)
def test_no_password_of_a_url_survives(scheme: str, user: str, password: str, host: str, around: str) -> None:
    secret = f"<{password}>"
    said = redact(f"{around} {scheme}://{user}:{secret}@{host} {around}")
    assert secret not in said
    assert said == f"{around} {scheme}://***@{host} {around}"


@given(st.text())
def test_redacting_twice_changes_nothing(text: str) -> None:
    assert redact(redact(text)) == redact(text)


@pytest.mark.parametrize(
    "text", ["plain", "a@b.example", "redis://host:6379/0", "see https://example.org/x for a@b", "://", "x://"]
)
def test_what_has_no_credentials_stays(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize("text", ["x" * 300_000, "a://" * 100_000, "a@" * 150_000, "x" * 300_000 + "://u:secret@host"])
def test_long_texts_take_no_longer_than_their_length(text: str) -> None:
    started = time.perf_counter()
    assert "secret" not in redact(text)
    assert time.perf_counter() - started < 2


def test_several_urls_in_one_text() -> None:
    said = redact("from redis://:one@a to rediss://u:two@b:1/0, then http://c/d")
    assert said == "from redis://***@a to rediss://***@b:1/0, then http://c/d"


@pytest.mark.parametrize("as_json", [False, True])
def test_secrets_are_hidden_wherever_they_are(
    as_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if as_json:
        monkeypatch.setenv("PENSTOCK_LOG_JSON", "1")
    configure_logging()
    log = logging.getLogger("penstock.test")
    url = "redis://:hunter2@host:1/0"
    log.warning("lost %s", url)
    log.warning("lost %r", {"nested": [url]})
    try:
        raise ConnectionError(f"no answer from {url}")
    except ConnectionError:
        log.exception("failed")
    log.debug("not shown")
    said = capsys.readouterr().err
    assert "hunter2" not in said
    assert said.count("redis://***@host:1/0") == 3
    assert "ConnectionError" in said
    assert "not shown" not in said
    if as_json:
        lines = [json.loads(line) for line in said.splitlines()]
        assert [line["level"] for line in lines] == ["warning", "warning", "error"]
        assert {line["logger"] for line in lines} == {"penstock.test"}


def test_values_of_structured_events_are_redacted_at_any_depth(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import structlog

    monkeypatch.setenv("PENSTOCK_LOG_JSON", "1")
    configure_logging("DEBUG")
    url = "redis://:hunter2@host:1/0"

    class Odd:
        def __repr__(self) -> str:
            return f"Odd({url})"

    log = structlog.wrap_logger(
        logging.getLogger("penstock.test"), processors=[structlog.stdlib.ProcessorFormatter.wrap_for_formatter]
    )
    log.info("event", url=url, deep={"list": [url, (url, 1)]}, odd=Odd(), number=3, nothing=None, error=OSError(url))
    said = capsys.readouterr().err
    assert "hunter2" not in said
    line = json.loads(said)
    assert (line["number"], line["nothing"]) == (3, None)
    assert line["deep"] == {"list": ["redis://***@host:1/0", ["redis://***@host:1/0", 1]]}


def test_the_level_is_what_was_asked_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PENSTOCK_LOG_LEVEL", "ERROR")
    configure_logging()
    logging.getLogger("penstock.test").warning("quiet")
    logging.getLogger("penstock.test").error("loud")
    configure_logging("WARNING")
    logging.getLogger("penstock.test").warning("once")
    said = capsys.readouterr().err
    assert "quiet" not in said
    assert said.count("loud") == said.count("once") == 1
