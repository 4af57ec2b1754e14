"""A provider of a paid service, a process of its own: it limits, fails and drops as told, and counts who called when.

It knows nothing of Penstock. What it has counted is the evidence of the figures about dependencies.
"""
