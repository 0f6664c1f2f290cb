"""The door to the disk: `interface` (the contract), `file`, `nbd*`, `memory`, and `faulty` for the tests."""
