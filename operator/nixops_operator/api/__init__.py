"""The contract: models of spec and status, conditions and reasons, names, canonical forms. Pure: no I/O, no clock."""
