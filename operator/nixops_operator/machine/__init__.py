"""The life of one machine: observe, plan, apply, status."""
