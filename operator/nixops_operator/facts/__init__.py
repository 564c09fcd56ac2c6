"""What the world looked like, as values: no behaviour, no I/O. Ports return them; plans are functions of them."""
