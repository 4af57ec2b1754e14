"""What can go wrong between a process and the store."""


class StoreError(Exception):
    """Base of the errors that the store's room raises."""


class StoreUnavailable(StoreError):
    """The store could not be reached or did not answer in time; what was asked may or may not have been done.

    Every script may be sent again, so the same call is a safe answer to it.
    """


class StoreUnsuitable(StoreError):
    """The store is there but cannot be used: too old, other settings than ours, no authority. The text says the fix."""


class StoreFull(StoreError):
    """The store refused a write for want of memory (``maxmemory`` with ``noeviction``)."""
