"""How long Hypothesis looks; ``pytest tests/property --hypothesis-profile=long`` takes hours."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]

settings.register_profile("bounded", deadline=None, suppress_health_check=_SLOW)
settings.register_profile("long", settings.get_profile("bounded"), max_examples=20_000)
settings.load_profile("bounded")
