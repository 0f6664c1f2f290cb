"""The tests: unit, properties, contracts, faults, simulation, compat, fuzz, golden, and what supports them."""
