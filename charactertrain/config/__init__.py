"""Types, units and ranges of every setting. Values live in conf/; nothing here has a default.

Each stage's section holds what decides its result (its identity), under `resources` where and how
it runs, and gates that stop it: neither of these is identity.
"""

from charactertrain.config.control import Control
from charactertrain.config.data import (
    PromptsSection,
    RankerName,
    RankingsSection,
    ResponsesSection,
)
from charactertrain.config.run import RunConfig, validate
from charactertrain.config.section import Section, identity
from charactertrain.config.training import (
    PolicySection,
    PreferenceGates,
    PreferenceModelSection,
    RewardSection,
    WatchSection,
)

__all__ = [
    "Control",
    "PolicySection",
    "PreferenceGates",
    "PreferenceModelSection",
    "PromptsSection",
    "RankerName",
    "RankingsSection",
    "ResponsesSection",
    "RewardSection",
    "RunConfig",
    "Section",
    "WatchSection",
    "identity",
    "validate",
]
