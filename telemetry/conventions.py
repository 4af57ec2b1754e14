"""Names of spans and of their attributes, in one place.

``gen_ai.*`` and ``error.type`` are OpenTelemetry's semantic conventions (those of generative AI are still in
development: they are for interoperability); ``penstock.*`` is ours, and stable.
"""

from typing import Final

# OpenTelemetry's
OPERATION: Final = "gen_ai.operation.name"
AGENT_NAME: Final = "gen_ai.agent.name"
AGENT_VERSION: Final = "gen_ai.agent.version"
TOOL_NAME: Final = "gen_ai.tool.name"
CONVERSATION: Final = "gen_ai.conversation.id"
ERROR_TYPE: Final = "error.type"

INVOKE_AGENT: Final = "invoke_agent"
EXECUTE_TOOL: Final = "execute_tool"

# Ours, of a run
RUN: Final = "penstock.run.id"
CUSTOM_ID: Final = "penstock.job.custom_id"
BATCH: Final = "penstock.batch"
TENANT: Final = "penstock.tenant"
VALUE: Final = "penstock.value"
STATE: Final = "penstock.state"
REASON: Final = "penstock.reason"
STATE_VERSION: Final = "penstock.state_version"
FENCE: Final = "penstock.fence"
MIGRATIONS: Final = "penstock.migrations"
HOST: Final = "penstock.host"
SIMULATED: Final = "penstock.simulated"
INHERITED: Final = "penstock.fork.inherited_entries"

# Ours, of a step
STEP: Final = "penstock.step"
KIND: Final = "penstock.step.kind"
ATTEMPTS: Final = "penstock.attempts"
WAITED_FOR: Final = "penstock.waited_for"
ARGUMENTS_DIGEST: Final = "penstock.arguments.digest"
KEY_DIGEST: Final = "penstock.idempotency_key.digest"
RISK: Final = "penstock.risk"
PERMISSION: Final = "penstock.permission.decision"
PERMISSION_RULE: Final = "penstock.permission.rule"
PERMISSION_VERSION: Final = "penstock.permission.policy_version"
APPROVAL: Final = "penstock.approval.id"
RECEIPT: Final = "penstock.receipt"
RECEIPT_BY: Final = "penstock.receipt.by"
EVIDENCE: Final = "penstock.receipt.has_evidence"
UNDOES: Final = "penstock.undoes_step"
STEP_END: Final = "penstock.step.end"
ENDED_BY: Final = "penstock.step.ended_by"
CHILD_RUN: Final = "penstock.child.run.id"
DUE_MS: Final = "penstock.timer.due_ms"
LEFT_OPEN: Final = "penstock.step.left_open"

# Why a link is there
LINK: Final = "penstock.link"
