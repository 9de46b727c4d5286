"""Whatever the environment says: the settings are read, or the process does not start and names what is wrong."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from hypothesis import example, given
from hypothesis import strategies as st

from service.errors import ConfigurationError
from service.settings import PREFIX, Settings, load_settings
from tests.fuzz.inputs import fuzz, worded

NAMES = [PREFIX + name.upper() for name in Settings.model_fields]
values = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(
        ["", "true", "auto", "PT1H", "-PT1H", "P999999999999Y", "1e999", "9" * 5_000, "[", '["a"]', "{}", "null"]
    ),
    st.sampled_from(
        ["~nobody-of-this-name", "//[", "file://[", "s3://k:v@b/p", "s3://", "sqlite:///x", "redis://:p@h:x/y", "/"]
    ),
)


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            os.environ.pop(name, None)


@fuzz(250)
@given(
    st.dictionaries(st.sampled_from(NAMES) | st.from_regex("ADAPTIDE_[A-Z_]{1,9}", fullmatch=True), values, max_size=4)
)
@example({"ADAPTIDE_IGNORED_EVENT_TYPES": "click"})
@example({"ADAPTIDE_IGNORED_EVENT_TYPES": "["})
@example({"ADAPTIDE_HOME": "~nobody-of-this-name"})
@example({"ADAPTIDE_ARTIFACTS_URL": "//["})
@example({"ADAPTIDE_ARTIFACTS_URL": "~nobody-of-this-name/artifacts"})
@example({"ADAPTIDE_DRAIN": "nan"})
def test_any_environment_is_read_or_refused_with_the_name_of_what_is_wrong(variables: dict[str, str]) -> None:
    with environment(variables):
        try:
            settings = load_settings()
        except ConfigurationError as refused:
            worded(refused)
            return
    assert settings.store_url
    assert settings.home_dir.is_absolute()
    assert settings.artifacts_dir.is_absolute()
    assert (settings.artifacts_remote is None) or "://" in settings.artifacts_remote
