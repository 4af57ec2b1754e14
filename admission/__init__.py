"""May it go ahead now? Pure decisions: retries, value, fairness, limits and authority.

Its one reason to change: the rules by which work is let through. Time and facts are arguments;
it imports the standard library and pydantic only.
"""
