"""Overload in virtual time, through the same pure code as the real doors, queues and controller: ``make sim``."""
