"""What lives in Ray processes: the contract that users write against, the run engine, host and supervisor.

Its one reason to change: how a run is executed, and by whom.
It may import `cluster`, `admission` and `telemetry`.
"""
