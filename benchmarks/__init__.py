"""What the operator costs, and whom it lets down: measured, not judged. See README.md."""
