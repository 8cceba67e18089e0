"""Where Celery finds the app: `celery -A shop.worker worker`."""

from shop import create_app

app = create_app()
