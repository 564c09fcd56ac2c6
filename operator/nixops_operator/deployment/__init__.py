"""What machines share, and the machines themselves: observe, plan, apply, status."""
