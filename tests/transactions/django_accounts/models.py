"""An account."""

from django.db import models


class Account(models.Model):
    """What is paid into."""

    id = models.IntegerField(primary_key=True)
    balance = models.IntegerField()

    class Meta:
        app_label = "django_accounts"

    def __str__(self) -> str:
        return f"{self.id}: {self.balance}"
