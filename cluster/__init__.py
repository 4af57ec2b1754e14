"""What Penstock stands on: settings, the embedded server, the Ray session and the store.

Its one reason to change: where and how bytes are kept and processes are found. It knows keys and bytes, not agents.
It may import `telemetry` only.
"""
