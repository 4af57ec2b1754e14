"""Who of a level is served next: start-time fair queueing over estimated cost. Pure.

Each tenant has a counter of the cost that it was given, over its weight: the virtual time at which it is due again.
What arrives is due when its tenant is, but never before what is being served now, so that who was idle has saved up
nothing. When a run has ended, its tenant's counter is put right by what it really cost.

Sources: Goyal, Vin, Cheng, "Start-time Fair Queueing" (SIGCOMM 1996); Sheng et al., "Fairness in Serving Large Language
Models" (VTC, OSDI 2024), whose counters are lifted on idle and settled by real cost as well. Virtual times are whole
numbers: milliseconds of a host's slot for a weight of 1.
"""

import math

from admission.values import LATEST


def charge(cost_ms: float, weight: float) -> int:
    """What a run of this cost adds to its tenant's counter, at least 1: a tenant's runs keep their order."""
    return max(1, math.floor(cost_ms / weight + 0.5))


def start_of(virtual: int, finish: int) -> int:
    """When a run is due whose tenant's counter is ``finish``, while the level is served at ``virtual``."""
    return min(max(virtual, finish), LATEST)


def given_back(virtual: int, finish: int, charged: int) -> int:
    """The counter after a run has left the queue unserved. It never falls below what is being served."""
    return max(virtual, finish - charged)


def settled(virtual: int, finish: int, charged: int, cost_ms: float, weight: float) -> int:
    """The counter after a run has ended that cost ``cost_ms`` in the end."""
    return max(virtual, finish + charge(cost_ms, weight) - charged)
