"""The refund desk: an example of agents that act on a world outside, and that world itself.

`app` holds the agent, `tools` what it may do, `world` the HTTP server it acts on.
"""
