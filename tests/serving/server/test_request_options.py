import pytest

from showtell.model.generation.options import DecodingOptions
from showtell.serving.server.limits import RequestError
from showtell.serving.server.request_options import read_options, schema_of

DEFAULTS = DecodingOptions(beam=5)


@pytest.mark.parametrize(
    "given, expected",
    [
        ({}, DEFAULTS),
        ({"beam": "8", "n_best": " 2 "}, DecodingOptions(beam=8, n_best=2)),
        ({"beam": 8, "n_best": 2}, DecodingOptions(beam=8, n_best=2)),
        ({"sample": "true", "top_p": "0.9"}, DecodingOptions(beam=5, sample=True, top_p=0.9)),
        ({"sample": "0", "max_length": ""}, DEFAULTS),
        ({"max_length": None, "length_penalty": 1}, DecodingOptions(beam=5, length_penalty=1.0)),
    ],
)
def test_text_and_json_give_the_same_options(given, expected: DecodingOptions) -> None:
    assert read_options(DEFAULTS, given, 20) == expected


@pytest.mark.parametrize(
    "given, message",
    [
        ({"beem": 3}, "'beem' is not an option of a request. Did you mean 'beam'?"),
        ({"preset": "consensus"}, "'preset' is not an option"),
        ({"beam": "many"}, "beam must be an integer, got 'many'."),
        ({"beam": 2.5}, "beam must be an integer"),
        ({"beam": 0}, "beam must be at least 1, got 0."),
        ({"beam": 21}, "beam must be at most 20 on this server, got 21."),
        ({"sample": True, "n_best": 21}, "n_best must be at most 20"),
        ({"max_length": 101}, "max_length must be at most 100"),
        ({"sample": "maybe"}, "sample must be true or false"),
        ({"n_best": 6}, "n_best must be at most beam 5, got 6."),
        ({"top_p": 0.5}, "top_p only applies with sample."),
        ({"temperature": "nan"}, "temperature must be"),
        ({"consensus": 100}, "started without --consensus"),
    ],
)
def test_invalid_option_is_named_as_in_the_request(given, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        read_options(DEFAULTS, given, 20)
    assert caught.value.status == 422 and message in caught.value.message


def test_consensus_can_be_turned_off_but_not_changed() -> None:
    defaults = DecodingOptions(beam=50, consensus=1000, views=4)
    assert read_options(defaults, {"consensus": 0, "views": 1}, 20).consensus == 0
    for given in ({"consensus": 500}, {"views": 2}):
        with pytest.raises(RequestError, match=r"on this server|with consensus"):
            read_options(defaults, given, 20)
    assert read_options(defaults, {"beam": 40}, 20).beam == 40  # up to the server's own


CONSENSUS = {"beam": 50, "consensus": 1000}
SAMPLE = {"sample": True, "n_best": 5}
GROUPS = {"beam": 4, "beam_groups": 2}


@pytest.mark.parametrize(
    "server, given, expected",
    [
        (CONSENSUS | {"consensus_precision": 0.5}, {"consensus": 0}, {"beam": 50}),
        (SAMPLE | {"temperature": 0.7}, {"sample": False}, {"n_best": 3}),
        (SAMPLE | {"top_p": 0.9}, {"sample": "0", "n_best": 1}, {}),
        (SAMPLE | {"top_p": 0.9}, {"top_p": 0.5}, SAMPLE | {"top_p": 0.5}),
        (GROUPS | {"diversity": 0.9}, {"beam_groups": 1}, {"beam": 4}),
        (GROUPS | {"diversity": 0.9}, {"sample": True}, {"beam": 4, "sample": True}),
        (GROUPS | {"diversity": 0.9}, {"beam": 6}, GROUPS | {"beam": 6, "diversity": 0.9}),
    ],
)
def test_switch_turns_off_the_server_s_options_that_depend_on_it(server, given, expected) -> None:
    defaults = DecodingOptions(**server)
    assert read_options(defaults, given, 20) == DecodingOptions(**expected)


@pytest.mark.parametrize(
    "server, given, message",
    [
        (SAMPLE, {"sample": False, "temperature": 0.5}, "temperature only applies with sample."),
        (GROUPS, {"sample": True, "beam_groups": 2}, "sample and beam_groups exclude each other"),
    ],
)
def test_useless_option_of_a_request_is_named(server, given, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        read_options(DecodingOptions(**server), given, 20)
    assert message in caught.value.message


def test_schema_has_the_defaults_of_the_server() -> None:
    schema = schema_of(DEFAULTS)
    assert schema["beam"]["default"] == 5 and schema["beam"]["type"] == "integer"
    assert schema["max_length"]["type"] == ["integer", "null"]
    assert "beam must be a multiple" in schema["beam_groups"]["description"]
    assert "preset" not in schema
