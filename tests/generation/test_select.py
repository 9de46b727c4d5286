"""ADAPTIDE_ENGINE: what cannot work is said before the first request, in one line."""

from importlib.util import find_spec

import pytest

from service.app import create_app
from service.errors import ConfigurationError
from service.settings import EngineName, Settings


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vllm is installed here")
def test_vllm_without_its_package_is_refused_when_the_service_is_made(settings: Settings) -> None:
    wanted = settings.model_copy(update={"engine": EngineName.VLLM})
    with pytest.raises(ConfigurationError, match="pip install vllm"):
        create_app(wanted)
