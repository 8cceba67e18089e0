"""What belongs to one framework each, and is imported only by who uses it."""
