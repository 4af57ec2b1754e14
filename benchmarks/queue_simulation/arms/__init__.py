"""Who decides: the product's law, and what others do. One interface for all."""
