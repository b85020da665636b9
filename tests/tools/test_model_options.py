"""What the options of --model mean."""

from __future__ import annotations

import pytest

from rnp_deploy.bundle.manifest import Preprocessing
from rnp_deploy.errors import InputError
from rnp_deploy.network.model_sources import LoadedWeights
from rnp_deploy.pruning_settings import PruningSettings
from rnp_deploy.tools.model_options import (
    parse_arguments,
    preprocessing_from,
    report_weights,
    settings_from,
    torch_example,
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
KNOWN = Preprocessing(
    colour="RGB", size=(224, 224), shorter_side=256, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)
)
GREY = Preprocessing(colour="L", size=(28, 28), mean=(0.1,), std=(0.3,))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("10", 10),
        ("0.5", 0.5),
        ("True", True),
        ("None", None),
        ("[1, 'a']", [1, "a"]),
        ("relu", "relu"),
        ("'10'", "10"),
        ("a=b", "a=b"),
        ("", ""),
        ("__import__('os')", "__import__('os')"),
    ],
)
def test_arguments_are_literals_or_else_text(text, value):
    assert parse_arguments((f"name={text}", "other=1")) == {"name": value, "other": 1}


@pytest.mark.parametrize("pair", ["name", "=1", "two words=1", "1a=1", ""])
def test_arguments_without_a_name_are_refused(pair):
    with pytest.raises(InputError, match=f"'{pair}' is not NAME=VALUE"):
        parse_arguments(["good=1", pair])


def settings(*groups_for):
    return settings_from(
        groups_for, ["layer3.*"], groups=4, align=16, granularity="block", min_macs_share=0.01
    )


def test_the_pruning_options_as_settings():
    assert settings("layer1.*=2", "a=b=8") == PruningSettings(
        overrides={"layer1.*": 2, "a=b": 8},
        skip=("layer3.*",),
        align=16,
        granularity="block",
        min_macs_share=0.01,
    )


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("layer1.*", "not PATTERN=NUMBER"),
        ("layer1.*=two", "not PATTERN=NUMBER"),
        ("layer1.*=", "not PATTERN=NUMBER"),
        ("8", "not PATTERN=NUMBER"),
        ("layer1.*=1", r"--groups-for layer1\.\*=1.*greater than or equal to 2"),
    ],
)
def test_groups_for_something_that_is_not_understood_are_refused(pair, words):
    with pytest.raises(InputError, match=words):
        settings(pair)


def options(known=None, **given):
    return preprocessing_from(known, *(given.get(name) for name in ("input_size", "colour", "mean", "std")))


def rgb(size=(224, 224), mean=MEAN, std=STD, **more):
    return Preprocessing(colour=more.pop("colour", "RGB"), size=size, mean=mean, std=std, **more)


@pytest.mark.parametrize(
    ("known", "given", "expected"),
    [
        (None, {}, rgb()),
        (None, {"input_size": "32"}, rgb((32, 32))),
        (None, {"input_size": "32x48"}, rgb((32, 48))),
        (None, {"mean": "0,0,0", "std": "1,2,3"}, rgb(mean=(0.0,) * 3, std=(1.0, 2.0, 3.0))),
        (None, {"colour": "L"}, Preprocessing(colour="L", size=(224, 224), mean=(0.5,), std=(0.5,))),
        (None, {"colour": "BGR"}, rgb(colour="BGR", mean=MEAN[::-1], std=STD[::-1])),
        (KNOWN, {}, KNOWN),
        (KNOWN, {"input_size": "112"}, KNOWN.model_copy(update={"size": (112, 112), "shorter_side": 128})),
        (KNOWN, {"input_size": "112x56"}, KNOWN.model_copy(update={"size": (112, 56), "shorter_side": 128})),
        (KNOWN, {"colour": "BGR"}, KNOWN.model_copy(
            update={"colour": "BGR", "mean": (0.3, 0.2, 0.1), "std": (0.6, 0.5, 0.4)})),
        (KNOWN, {"colour": "BGR", "mean": "1,2,3"}, KNOWN.model_copy(
            update={"colour": "BGR", "mean": (1.0, 2.0, 3.0), "std": (0.6, 0.5, 0.4)})),
        (KNOWN, {"colour": "L"}, KNOWN.model_copy(update={"colour": "L", "mean": (0.5,), "std": (0.5,)})),
        (GREY, {"input_size": "32"}, GREY.model_copy(update={"size": (32, 32)})),
        (GREY, {"colour": "RGB"}, rgb((28, 28))),
    ],
)  # fmt: skip
def test_options_come_before_what_is_known(known, given, expected):
    assert options(known, **given) == expected


@pytest.mark.parametrize(
    ("known", "given", "words"),
    [
        (None, {"input_size": "large"}, "input size 'large' is not H or HxW"),
        (None, {"input_size": ""}, "input size '' is not H or HxW"),
        (None, {"input_size": "32x"}, "'32x' is not H or HxW"),
        (None, {"input_size": "0"}, "preprocessing: "),
        (None, {"input_size": "-32"}, "'-32' is not H or HxW"),
        (None, {"input_size": "32x32x3"}, "32x32x3"),
        (None, {"input_size": "32.5"}, "32.5"),
        (None, {"input_size": "nan"}, "nan"),
        (None, {"mean": "a,b,c"}, "mean 'a,b,c' is not made of numbers"),
        (None, {"mean": "0.5"}, "need 3 values for colour RGB"),
        (None, {"mean": "nan,0,0"}, "finite"),
        (None, {"colour": "L", "std": "1,1,1"}, "need 1 values for colour L"),
        (None, {"std": "0,1,1"}, "greater than 0"),
    ],
)
def test_options_that_are_not_understood_are_refused(known, given, words):
    with pytest.raises(InputError, match=words):
        options(known, **given)


def test_the_example_has_the_shape_of_the_input():
    assert tuple(torch_example(rgb((32, 48))).shape) == (1, 3, 32, 48)
    assert tuple(torch_example(GREY).shape) == (1, 1, 28, 28)


@pytest.mark.parametrize(
    ("loaded", "line"),
    [
        (LoadedWeights(None, ()), "weights: w.pt\n"),
        (LoadedWeights("model_ema", ()), "weights: w.pt, section 'model_ema'\n"),
        (LoadedWeights("model", ("a", "b")), "weights: w.pt, section 'model'; ignored: a, b\n"),
    ],
)
def test_what_was_read_of_a_file_is_told_on_stderr(loaded, line, capsys):
    report_weights("w.pt", loaded)
    assert capsys.readouterr() == ("", line)
