"""The protocol: one turn, one step, one sweep, on a Store and a Dispatcher.

No Celery, no database and no clock here: the same code runs in a worker and under simulation.
"""

from durable_celery.engine.core import Engine
from durable_celery.engine.limits import HistoryLimits
from durable_celery.engine.outside import Outside
from durable_celery.engine.patience import Patience
from durable_celery.engine.ports import Dispatcher
from durable_celery.engine.turn import Ending

__all__ = ["Dispatcher", "Ending", "Engine", "HistoryLimits", "Outside", "Patience"]
