"""What the operator needs from the world, as Protocols with written contracts. Adapters implement them; `tests/fakes/`
does, too.

Every method says whether it looks only or changes something, and then names its effect (`ec2.run_instances`): the
composition root wraps ports by those names. See `nixops_operator.effects`. All methods raise only
classes of `nixops_operator.errors`.
"""
