"""Alerts to a Slack-compatible webhook: one POST each, which never raises and always ends."""

import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from typing import Any
from urllib.parse import urlsplit

from platform_assets.domain.digests import digest_of
from resources.ledger.records import AlertRecord

URL_VARIABLE = "SIGNALBOX_ALERT_WEBHOOK"
SECONDS = 3.0
"""How long a receiver has for one alert, from the name look-up to its answer."""

MOST_TEXT = 2900
"""Characters of a block: Slack refuses more than 3000."""


@dataclass(frozen=True)
class Answer:
    """What came of one POST.

    Attributes:
        taken: the receiver has it.
        error: why not, without the URL, which is a secret.
        down: nothing else would be taken now either.
        retry_after: seconds that the receiver asks to be left alone for.
    """

    taken: bool
    error: str = ""
    down: bool = False
    retry_after: float | None = None


@dataclass(frozen=True)
class Webhook:
    """A receiver of alerts."""

    url: str
    seconds: float = SECONDS

    @classmethod
    def from_environment(cls) -> "Webhook | None":
        """The receiver that SIGNALBOX_ALERT_WEBHOOK names, if it names one."""
        url = os.environ.get(URL_VARIABLE, "").strip()
        return cls(url) if url else None

    def post(self, document: Mapping[str, Any]) -> Answer:
        """Send one document. A 2xx is taken; redirects are not followed."""
        import httpx

        try:
            parts = urlsplit(self.url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError("it is no URL that starts with http:// or https://")
            return asyncio.run(self._post(json.dumps(document).encode()))
        except TimeoutError:
            return Answer(False, f"no answer within {self.seconds:g} s", down=True)
        except httpx.TransportError as error:
            return Answer(False, self._said(error), down=True)
        except Exception as error:  # noqa: BLE001 - whatever is wrong, the alert waits
            return Answer(False, f"{URL_VARIABLE} cannot be used: {self._said(error)}")

    def _said(self, error: Exception) -> str:
        """What an error says, without the URL."""
        return f"{type(error).__name__}: {error}".replace(self.url, "…")

    async def _post(self, content: bytes) -> Answer:
        import httpx

        headers = {"Content-Type": "application/json"}
        async with (
            # Over all of it: a receiver that sends a byte now and then keeps to httpx's time-outs.
            asyncio.timeout(self.seconds),
            httpx.AsyncClient() as client,
            # The status is all that counts: an endless body is not read.
            client.stream("POST", self.url, content=content, headers=headers) as response,
        ):
            status = response.status_code
            after = response.headers.get("Retry-After", "")
        if 200 <= status < 300:
            return Answer(True)
        seconds = float(after) if after.isascii() and after.isdigit() else None
        return Answer(False, f"it answered HTTP {status}", status == 429 or status >= 500, seconds)


def alert_id(record: AlertRecord) -> str:
    """The same for every delivery of an alert, and of no other one."""
    raised = record.raised_at.astimezone(UTC).isoformat()
    return digest_of([record.number, record.key, raised])[:24]


def payload(record: AlertRecord) -> dict[str, Any]:
    """An alert as Slack reads it (`text`, `blocks`), and with fields for programs."""
    title = f"[{record.pipeline}] {record.kind}: {record.subject}"
    body = f"*{_escaped(title)}*\n{_escaped(record.text)}"
    return {
        "text": _cut(_escaped(f"{title} - {record.text}")),
        "blocks": [
            {"type": "section", "text": {"type": "mrkdwn", "text": _cut(body)}},
            {
                "type": "context",
                "elements": [{"type": "mrkdwn", "text": _cut(_escaped(record.advice))}],
            },
        ],
        "id": alert_id(record),
        "pipeline": record.pipeline,
        "kind": record.kind,
        "subject": record.subject,
        "key": record.key,
        "advice": record.advice,
        "raised_at": record.raised_at.astimezone(UTC).isoformat(),
    }


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _cut(text: str) -> str:
    return text if len(text) <= MOST_TEXT else text[: MOST_TEXT - 2] + " …"
