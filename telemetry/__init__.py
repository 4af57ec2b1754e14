"""How Penstock is seen: logging, redaction and the names of what is measured.

Its one reason to change: what an operator can observe. It imports libraries only, never another room.
"""
