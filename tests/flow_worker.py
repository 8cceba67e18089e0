"""The app that workers of `tests.sites` import; its configuration comes with the environment."""

from __future__ import annotations

import json
import os

from tests.flows import make_app
from tests.quick import take_all_for_quick
from tests.sites import CONFIG_VARIABLE

config = json.loads(os.environ[CONFIG_VARIABLE])
app = make_app(config)
if "durable_run_ahead" in config:
    take_all_for_quick(app)
