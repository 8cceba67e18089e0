"""Django's migrations of the table of outcomes. A released one is never changed."""
