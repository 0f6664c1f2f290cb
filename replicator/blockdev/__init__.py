"""The door to the disk: `interface` (the contract), `file` (files and block devices), `memory`, and `faulty` for tests."""
