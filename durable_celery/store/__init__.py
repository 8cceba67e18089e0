"""Where runs live: the Store protocol, its records, and the implementations."""
