"""The model of the world outside: an OpenAI-compatible chat completion that is decided by a seed, not by a network."""

import hashlib
import json
import re

from pydantic import BaseModel, ConfigDict, Field

TOTAL = re.compile(r'"total_cents":\s*(\d{1,9})')
STATUS = re.compile(r'"status":\s*"(\w{1,20})"')
CHARACTERS_PER_TOKEN = 4
TOKENS_PER_MESSAGE = 4
REASONS = {
    "lost": "The parcel was lost on its way",
    "damaged": "The goods arrived damaged",
    "in_transit": "The parcel is late",
    "delivered": "The customer is not content with what was delivered",
}


class ChatMessage(BaseModel):
    """One message of a conversation."""

    role: str
    content: str


class ChatRequest(BaseModel):
    """The part of a chat completion request that matters here; other parameters are accepted and ignored."""

    model_config = ConfigDict(extra="ignore")

    model: str = Field(min_length=1, max_length=200)
    messages: list[ChatMessage] = Field(min_length=1)
    seed: int | None = None
    stream: bool = False


def digest_of(world_seed: int, request: ChatRequest) -> bytes:
    """16 bytes that depend on the world's seed, the request's seed, and every message."""
    conversation = [[message.role, message.content] for message in request.messages]
    text = json.dumps([world_seed, request.seed, conversation])
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def decide(text: str, digest: bytes) -> dict[str, int | str]:
    """A plausible refund for the order that `text` shows. One in fifty is over the order's total, as models err."""
    total = TOTAL.search(text)
    total_cents = int(total[1]) if total else 0
    status = STATUS.search(text)
    draw = digest[0] % 50
    if draw == 0:
        percent = 120
    elif status and status[1] in ("lost", "damaged"):
        percent = 100
    else:
        percent = (0, 0, 25, 50)[digest[1] % 4]
    reason = REASONS.get(status[1] if status else "", "No order was shown")
    return {"refund_cents": total_cents * percent // 100, "reason": f"{reason}: {percent} % of the total"}


def complete(world_seed: int, request: ChatRequest) -> dict[str, object]:
    """The whole answer; the same for the same seeds and messages."""
    digest = digest_of(world_seed, request)
    content = json.dumps(decide(request.messages[-1].content, digest))
    prompt_tokens = sum(
        TOKENS_PER_MESSAGE + -(-len(message.content) // CHARACTERS_PER_TOKEN) for message in request.messages
    )
    completion_tokens = -(-len(content) // CHARACTERS_PER_TOKEN)
    return {
        "id": f"chatcmpl-{digest.hex()}",
        "object": "chat.completion",
        "created": 1_700_000_000 + int.from_bytes(digest[2:5]),
        "model": request.model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": content, "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
        "system_fingerprint": f"world-{world_seed}",
    }
