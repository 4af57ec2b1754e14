"""What must be true of every run of the refund desk, whatever the model said."""

from collections.abc import Iterator

from penstock import RunJournal, invariant


@invariant
def refund_within_order(run: RunJournal) -> Iterator[str]:
    """No refund is more than its order's total."""
    totals = {order.result["order_id"]: order.result["total_cents"] for order in run.calls("get_order") if order.result}
    for step in run.calls("issue_refund"):
        if step.arguments is None:
            continue  # it came to no call
        order_id, amount_cents, _ = step.arguments
        if amount_cents > totals.get(order_id, 0):
            yield f"step {step.path}: {amount_cents} cents for order {order_id} of {totals.get(order_id, 0)}"
