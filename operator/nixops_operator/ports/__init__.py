"""What the operator needs from the world, as Protocols with written contracts. Adapters implement them; `tests/fakes/`
does, too.

Every method that changes something names its effect (`ec2.run_instances`): the composition root wraps ports by those
names.
All methods raise only classes of `nixops_operator.errors`.
"""
