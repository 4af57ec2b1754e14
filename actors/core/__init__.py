"""The pure core of the run engine: decides from facts and times that it is given.

Its one reason to change: what a run may do next. No Ray, no store, no event loop, no clock, no chance:
the shells around it bring those.
"""
