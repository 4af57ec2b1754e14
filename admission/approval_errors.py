"""Why an approval, or a decision on one, does not count: an error of its own for each reason. Pure."""


class ApprovalRefused(Exception):
    """Base of all of them. ``approval`` is its id, ``why`` the reason without it, ``by`` who has caused it."""

    def __init__(self, approval: str, why: str, by: tuple[str, ...] = ()) -> None:
        super().__init__(f"approval {approval}: {why}" if approval else why)
        self.approval = approval
        self.why = why
        self.by = by

    def __reduce__(self) -> tuple[type["ApprovalRefused"], tuple[str, str, tuple[str, ...]]]:
        return (type(self), (self.approval, self.why, self.by))


class Denied(ApprovalRefused):
    """Somebody who may has said no."""


class ActionChanged(ApprovalRefused):
    """The action is another one than the one that was asked about, or that was shown: its arguments, say."""


class DecisionReplayed(ApprovalRefused):
    """A decision that was made already: on another approval, or by the same person on this one."""


class ApprovalExpired(ApprovalRefused):
    """Its time is over: nobody can decide it, and what was approved and not used does not count any more."""


class ApprovalUsed(ApprovalRefused):
    """It is single use, and has been used."""


class ForgedApproval(ApprovalRefused):
    """A signature does not hold: the request, a decision or a use is not what a holder of a key has signed."""


class UnknownApprovalKey(ApprovalRefused):
    """It was signed with a key that this process does not have (any more)."""


class NotAnApprover(ApprovalRefused):
    """The terms name others."""


class SelfApproval(NotAnApprover):
    """Whoever submitted the job may not decide it."""


class AlreadyApproved(ApprovalRefused):
    """It has been approved: there is nothing left to decide."""


class AlreadyDenied(ApprovalRefused):
    """It has been denied: there is nothing left to decide."""


class RunIsOver(ApprovalRefused):
    """Its run has ended, or is to be cancelled: nothing would come of a decision."""


class ApprovalVoid(ApprovalRefused):
    """Its run has ended before it was used, or it belongs to the run that this one is a fork of."""


class NoSuchApproval(ApprovalRefused):
    """The store knows no such approval: it was never asked, or its run's retention is over."""


class NoApprovalKeys(ApprovalRefused):
    """This process has no key to sign and to verify with."""
