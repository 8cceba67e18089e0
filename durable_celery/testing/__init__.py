"""Testing workflows without a server: the real engine, the memory store, and a clock that a test moves."""
