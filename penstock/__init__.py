"""The face: the public names, the client, batch files and the command line.

Its one reason to change: what a user writes, types or reads. Users import only this package.
It may import every other room.
"""
