"""What tests of the Python functions share: a small tokenizer, and the line of a refusal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from test_tokenizer import small

from fqgan.base.errors import UserError
from fqgan.tokenizer.model import FactorizedTokenizer

NAN = float("nan")


def message(call: Callable[..., Any], *values: Any, **options: Any) -> str:
    """The one line of a refusal."""
    with pytest.raises(UserError) as error:
        call(*values, **options)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
    return str(error.value)


@pytest.fixture(scope="module")
def tokenizer() -> FactorizedTokenizer:
    return small(2)
