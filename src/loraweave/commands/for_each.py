"""`--set` for several methods at once."""

from collections.abc import Collection, Sequence
from typing import Any

from ..errors import MethodError


def by_method(
    names: Sequence[str], settings: dict[str, Any], without: Collection[str] = ()
) -> dict[str, dict[str, Any]]:
    """Settings by method, from `method.key` for one and `key` for all that have it.

    Args:
        names: of the methods.
        settings: as `options.read_settings` reads them.
        without: names that are no methods and have no settings.

    Raises:
        MethodError: no such method, or a setting that none has.
    """
    from ..methods import get_method

    known = {
        name: type(get_method(name).settings).model_fields for name in names if name not in without
    }
    given: dict[str, dict[str, Any]] = {name: {} for name in names}
    for key, value in settings.items():
        method, dot, own = key.partition(".")
        takers = [method] if dot else [name for name in known if key in known[name]]
        if not takers or takers[0] not in known:
            raise MethodError(f"--set {key}: none of the methods {', '.join(names)} has it")
        for name in takers:
            given[name][own if dot else key] = value
    return given
