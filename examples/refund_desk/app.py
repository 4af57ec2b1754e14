"""The agent of the refund desk: reads a ticket, decides, refunds, answers."""

from penstock import Run, agent
from refund_desk.models import Answer, AnswerRequest, Ticket
from refund_desk.tools import decide, get_order, issue_refund, write_answer


@agent("refund-desk", version="1")
async def refund_desk(run: Run, ticket: Ticket) -> Answer:
    """Answer a ticket, with a refund where one is due."""
    order = await run.call(get_order, ticket.order_id)
    decision = await run.call(decide, ticket, order)

    # The model proposes, policy disposes: never more than was paid.
    refund_cents = min(decision.refund_cents, order.total_cents)
    if refund_cents > 0:
        await run.call(issue_refund, order.order_id, refund_cents, decision.reason)
        text = f"We are sorry. We have refunded {refund_cents / 100:.2f}. {decision.reason}."
    else:
        text = f"We are sorry that we cannot offer a refund. {decision.reason}."

    answer = AnswerRequest(ticket_id=ticket.ticket_id, order_id=order.order_id, refund_cents=refund_cents, text=text)
    return await run.call(write_answer, answer)
