"""Steps whose outcome is part of a transaction in the user's own database: they take effect exactly once.

``exactly_once`` has the protocol, over a port; ``sql`` speaks it with SQLAlchemy, and
:mod:`durable_celery.contrib.django` with Django's ORM.
"""

from durable_celery.transactions.exactly_once import Ledger, Lost, perform
from durable_celery.transactions.sql import outcome_table, transactional_step

__all__ = ["Ledger", "Lost", "outcome_table", "perform", "transactional_step"]
