"""What tools call out with: HTTP clients and model clients whose failures say what is known of the world.

`penstock.adapters.http` is for httpx and httpx2, `penstock.adapters.openai` for the package openai. Neither imports its
library: whoever calls it has done so.
"""
