"""The app that workers of a soak import; its configuration comes with the environment."""

from __future__ import annotations

import json
import os

from tests.chaos.programs import make_app
from tests.sites import CONFIG_VARIABLE

app = make_app(json.loads(os.environ[CONFIG_VARIABLE]))
