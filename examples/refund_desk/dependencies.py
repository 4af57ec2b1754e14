"""The services that the refund desk calls, and what all its agents together keep to when they do.

Whoever runs the desk changes this without the code: in the operators' file, or with `penstock deps set`.
"""

from penstock import Dependency, Limit, RetryBudget, RetryPolicy

# Rate limits and lost answers are everyday events here: be more patient than by default.
PATIENT = RetryPolicy(initial_interval=0.1, maximum_interval=5.0, maximum_attempts=8)

# The world loses up to a fifth of all requests, each by its own bad luck: a fifth that fails makes a quarter that is
# tried again. The usual tenth would give up on work that the next attempt does. Twice the quarter is enough for runs of
# bad luck, and should a service fail for everybody, it still sees no more than half again its usual load. The reserve
# is for the begin, when few calls have paid in and a hundred may fail at once.
FREQUENT = RetryBudget(ratio=0.5, reserve=100.0, per_second=5.0)

# What four hosts with 64 connections each can have under way. Who waits at the gate waits in the order of value and
# in no attempt's time; who waits for a connection does neither.
AT_ONCE = 256

ORDERS = Dependency("orders", max_concurrency=AT_ONCE, retry=PATIENT, retry_budget=FREQUENT)
PAYMENTS = Dependency("payments", max_concurrency=AT_ONCE, retry=PATIENT, retry_budget=FREQUENT)
TICKETS = Dependency("tickets", max_concurrency=AT_ONCE, retry=PATIENT, retry_budget=FREQUENT)

# The world's own model takes far more than a batch of 1,000 asks of it. With a model that is paid for, write down what
# its account allows.
MODEL = Dependency(
    "model",
    rate=[Limit("requests", 120_000, per="1m"), Limit("tokens", 40_000_000, per="1m")],
    max_concurrency=AT_ONCE,
    retry=PATIENT,
    retry_budget=FREQUENT,
)
