"""What the world looked like, as values: no behaviour, no I/O. Ports return them; plans and statuses are functions of them."""
