"""EC2's own forms as pure values: what it calls a rule, what its credentials files look like. No I/O."""
