"""Register LoLDU with PEFT: an entry in three of its tables, no patch."""

from typing import Any, cast

from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)

from loldu.adapter.config import LoLDUConfig, LoLDUPeftType
from loldu.adapter.model import LoLDUModel


def register() -> None:
    """Add LoLDU to PEFT's tables; a second call changes nothing.

    PEFT's own `register_peft_method` accepts only names that PEFT itself ships.

    Raises:
        RuntimeError: If PEFT has another method of this name.
    """
    # PEFT's annotations say PeftType, whose members are all equal to their names as strings.
    name: Any = LoLDUPeftType.LOLDU
    entries: list[tuple[dict[Any, Any], object]] = [
        (cast("dict[Any, Any]", PEFT_TYPE_TO_CONFIG_MAPPING), LoLDUConfig),
        (cast("dict[Any, Any]", PEFT_TYPE_TO_TUNER_MAPPING), LoLDUModel),
        (cast("dict[Any, Any]", PEFT_TYPE_TO_PREFIX_MAPPING), LoLDUModel.prefix),
    ]
    if any(table.get(name, ours) != ours for table, ours in entries):
        raise RuntimeError(
            "this version of peft ships a LOLDU method of its own: use that one, or install an "
            "earlier peft"
        )
    for table, ours in entries:
        table[name] = ours
