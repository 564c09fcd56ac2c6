"""kubectl-nixops."""
