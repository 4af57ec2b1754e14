"""The nouns of the refund desk, shared by its agents and by the world outside. Money is in cents."""

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

OrderId = Annotated[str, Field(pattern=r"^O-[0-9]{1,12}$", description="O- and up to twelve digits")]
TicketId = Annotated[str, Field(pattern=r"^T-[0-9]{1,12}$", description="T- and up to twelve digits")]
Cents = Annotated[int, Field(ge=0, le=100_000_000)]


class Record(BaseModel):
    """A value that never changes and has no fields but those named."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class OrderStatus(StrEnum):
    """Where an order is, as the shop knows it."""

    DELIVERED = "delivered"
    IN_TRANSIT = "in_transit"
    LOST = "lost"
    DAMAGED = "damaged"


class Ticket(Record):
    """What a customer wrote about an order; the input of the agent."""

    ticket_id: TicketId
    order_id: OrderId
    message: str = Field(min_length=1, max_length=2_000)


class Order(Record):
    """An order, as the shop's order service tells it."""

    order_id: OrderId
    customer: str
    status: OrderStatus
    total_cents: Cents


class Decision(Record):
    """What the model proposes. A proposal only: the agent's own policy has the last word."""

    refund_cents: Cents
    reason: str = Field(min_length=1, max_length=500)


class RefundRequest(Record):
    """What is sent to the payment service to move money."""

    order_id: OrderId
    amount_cents: Annotated[int, Field(gt=0, le=100_000_000)]
    reason: str = Field(min_length=1, max_length=500)


class Refund(Record):
    """A refund that the payment service applied."""

    refund_id: str
    order_id: OrderId
    amount_cents: Cents


class AnswerRequest(Record):
    """What is sent to the ticket service to answer a customer."""

    ticket_id: TicketId
    order_id: OrderId
    refund_cents: Cents
    text: str = Field(min_length=1, max_length=2_000)


class Answer(AnswerRequest):
    """An answer that the ticket service wrote; the output of the agent."""

    answer_id: str


class PaymentRequest(Record):
    """What is sent to a payment service. `action` is what is to happen once, whoever asks for it and how often."""

    action: str = Field(min_length=1, max_length=100)
    amount_cents: Annotated[int, Field(gt=0, le=100_000_000)]
    reference: str = Field(default="", max_length=255)


class Payment(Record):
    """A payment that was made."""

    payment_id: str
    action: str
    amount_cents: Cents
