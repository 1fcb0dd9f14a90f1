import inspect

import pytest

from shipnet.runtime import errors


def test_every_error_is_a_shipnet_error() -> None:
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)]
    assert len(kinds) >= 10
    assert all(issubclass(kind, errors.ShipnetError) and kind.__doc__ for kind in kinds)


def test_a_library_that_is_there_is_given() -> None:
    assert errors.require("numpy").__name__ == "numpy"


@pytest.mark.parametrize("module", ["onnxruntime", "sklearn", "sklearn.datasets"])
def test_a_library_that_is_not_there_is_named_with_its_extra(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    for name in [name for name in sys.modules if name.partition(".")[0] == module.partition(".")[0]]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    with pytest.raises(
        errors.MissingExtraError, match=r"is not installed: run  pip install 'shipnet\[(cpu|train)\]'"
    ):
        errors.require(module)
