"""What the models take, what the machine has, and the plan that fits one into the other.

`footprint` and `activations` count bytes, `plans` chooses, `budget` looks at the machine, `residency` carries it out.
`footprint`, `activations`, `plans` and `table` are torch-free.
"""
