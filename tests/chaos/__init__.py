"""Real workers and real servers under seeded faults, with an offline checker of what they did."""
