"""Strict YAML: what is wrong is said with file, line, path, what was found and what was wanted."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from hyena_ds.config.loading import Invalid, dump_yaml, load_yaml, parse_yaml, to_plain
from hyena_ds.errors import UserError


@dataclass(frozen=True)
class Wheel:
    inches: int
    spokes: int = 32

    def __post_init__(self) -> None:
        if self.inches <= 0:
            raise Invalid("inches", f"found {self.inches}, wanted at least 1")
        if self.spokes % 2:
            raise Invalid("spokes", f"found {self.spokes}, wanted an even number")


@dataclass(frozen=True)
class Bicycle:
    name: str
    wheels: tuple[Wheel, ...]
    price: float = 1.0
    electric: bool = False
    gears: int | None = None
    kind: Literal["race", "city"] = "city"
    parts: dict[str, int] = field(default_factory=dict)


GOOD = """\
name: swift
wheels:
  - inches: 28
  - inches: 26
    spokes: 36
price: 6e-4
"""


def parse(text: str, *overrides: str) -> Bicycle:
    return parse_yaml(text, "bike.yaml", Bicycle, list(overrides))


def problem(text: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        parse(text, *overrides)
    return str(caught.value)


def test_a_good_file_becomes_the_dataclass_with_its_defaults() -> None:
    assert parse(GOOD) == Bicycle("swift", (Wheel(28), Wheel(26, 36)), price=0.0006)


def test_an_alias_within_itself_is_refused_in_a_file_and_in_an_override() -> None:
    says = "found an alias of a value within that value, wanted one that ends"
    assert problem("name: a\nwheels: &a [*a]\n") == f"bike.yaml:2: {says}"
    assert says in problem("name: a\nwheels: []\n", "parts=&a {b: *a}")


def test_values_nested_without_reason_are_refused() -> None:
    assert "found more than 50 levels" in problem(f"name: a\nwheels: {'[' * 5000}{']' * 5000}\n")


@pytest.mark.parametrize(("text", "value"), [("6e-4", 6e-4), ("1E3", 1000.0), ("2", 2.0), ("-.5", -0.5), ("3.", 3.0)])
def test_every_way_to_write_a_number_is_a_float_where_a_float_is_wanted(text: str, value: float) -> None:
    price = parse(f"name: a\nwheels: []\nprice: {text}\n").price
    assert type(price) is float and price == value


@pytest.mark.parametrize(("text", "value"), [("28", 28), ("1_000", 1000)])
def test_whole_numbers_are_read_as_int(text: str, value: int) -> None:
    assert parse(f"name: a\nwheels: [{{inches: {text}}}]\n").wheels[0].inches == value


@pytest.mark.parametrize(("text", "value"), [("true", True), ("No", False), ("YES", True), ("False", False)])
def test_booleans_are_words(text: str, value: bool) -> None:
    assert parse(f"name: a\nwheels: []\nelectric: {text}\n").electric is value


@pytest.mark.parametrize("text", ["no", "6e-4", "12", "'null'", "2024-01-01"])
def test_text_stays_text_whatever_it_looks_like(text: str) -> None:
    assert parse(f"name: {text}\nwheels: []\n").name == text.strip("'")


def test_a_character_that_json_escapes_in_two_halves_is_one_character() -> None:
    assert parse(json.dumps({"wheels": [{"inches": 28}], "name": "a \U0001f9ec b"})).name == "a \U0001f9ec b"
    assert "found the character 0xdc00" in problem('{"wheels": [{"inches": 28}], "name": "\\udc00\\ud800"}')


def test_null_is_none_only_where_it_may_be() -> None:
    assert parse("name: a\nwheels: []\ngears: null\n").gears is None
    assert parse("name: a\nwheels: []\ngears: 7\n").gears == 7
    assert problem("name: a\nwheels: []\nprice: null\n") == "bike.yaml:3: price: found 'null', wanted a number"


def test_an_unknown_key_is_named_with_its_line_and_the_nearest_known_key() -> None:
    assert problem(GOOD + "prize: 3\n") == "bike.yaml:7: prize: found an unknown key; did you mean 'price'?"
    nested = problem("name: a\nwheels:\n  - inches: 28\n    spoke: 32\n")
    assert nested == "bike.yaml:4: wheels.0.spoke: found an unknown key; did you mean 'spokes'?"


def test_an_unknown_key_like_no_other_gets_the_list_of_keys() -> None:
    assert problem("name: a\nwheels:\n  - inches: 28\n    xyz: 1\n") == (
        "bike.yaml:4: wheels.0.xyz: found an unknown key; known keys: inches, spokes"
    )


def test_a_duplicate_key_is_named_with_both_lines() -> None:
    assert problem(GOOD + "name: slow\n") == "bike.yaml:7: name: found the key twice (first on line 1)"


def test_a_missing_key_is_named_with_the_line_of_its_block() -> None:
    assert problem("price: 1\nname: a\n") == "bike.yaml:1: the file: wanted the key 'wheels', found price, name"
    nested = problem("name: a\nwheels:\n  - spokes: 2\n")
    assert nested == "bike.yaml:3: wheels.0: wanted the key 'inches', found spokes"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("name: [a]", "name: found a list, wanted text"),
        ("name: {a: 1}", "name: found keys, wanted text"),
        ("wheels: 3", "wheels: found '3', wanted a list"),
        ("wheels: {inches: 3}", "wheels: found keys, wanted a list"),
        ("wheels: [3]", "wheels.0: found '3', wanted the keys of Wheel"),
        ("wheels: [{inches: 28.0}]", "wheels.0.inches: found '28.0', wanted a whole number"),
        ("wheels: [{inches: 2e1}]", "wheels.0.inches: found '2e1', wanted a whole number"),
        ("wheels: [{inches: true}]", "wheels.0.inches: found 'true', wanted a whole number"),
        ("wheels: [{inches: '28'}]", "wheels.0.inches: found '28', wanted a whole number (without quotes)"),
        ("price: cheap", "price: found 'cheap', wanted a number"),
        ("price: inf", "price: found 'inf', wanted a number"),
        ("price: nan", "price: found 'nan', wanted a number"),
        ("price: [1]", "price: found a list, wanted a number"),
        ("price:", "price: found '', wanted a number"),
        ("electric: 1", "electric: found '1', wanted true or false"),
        ("electric: maybe", "electric: found 'maybe', wanted true or false"),
        ("gears: many", "gears: found 'many', wanted a whole number"),
        ("kind: tandem", "kind: found 'tandem', wanted race or city"),
        ("kind: [race]", "kind: found a list, wanted race or city"),
        ("parts: [bell]", "parts: found a list, wanted keys"),
        ("parts: {bell: loud}", "parts.bell: found 'loud', wanted a whole number"),
    ],
)
def test_a_mistyped_value_says_what_was_found_and_what_was_wanted(line: str, complaint: str) -> None:
    others = {"name": "name: a", "wheels": "wheels: []"}
    others.pop(line.partition(":")[0], None)
    text = "\n".join([*others.values(), line]) + "\n"
    assert problem(text) == f"bike.yaml:{len(others) + 1}: {complaint}"


def test_a_check_of_the_dataclass_carries_the_line_of_the_value() -> None:
    assert problem("name: a\nwheels:\n  - spokes: 4\n    inches: -1\n") == (
        "bike.yaml:4: wheels.0.inches: found -1, wanted at least 1"
    )


def test_overrides_replace_values_reach_into_lists_and_add_keys() -> None:
    bicycle = parse(
        GOOD, "price=2e-3", "wheels.1.inches=20", "wheels.0.spokes=8", "parts.bell=2", "kind=race", "gears=3"
    )
    assert bicycle == Bicycle("swift", (Wheel(28, 8), Wheel(20, 36)), 0.002, False, 3, "race", {"bell": 2})


def test_an_override_may_hold_a_whole_list_and_the_last_one_wins() -> None:
    assert parse(GOOD, "wheels=[{inches: 10}]", "name=x", "name=y") == Bicycle("y", (Wheel(10),), 0.0006)


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("price", "override 'price': wanted key.path=value, for instance stages.0.steps=100"),
        ("=3", "override '=3': wanted key.path=value, for instance stages.0.steps=100"),
        ("wheels.2.inches=3", "override 'wheels.2.inches=3': found '2', wanted an index below 2 in the list 'wheels'"),
        ("wheels.x=3", "override 'wheels.x=3': found 'x', wanted an index below 2 in the list 'wheels'"),
        ("price.a=3", "override 'price.a=3': 'price' holds a single value, not keys"),
        ("prize=3", "override 'prize=3': prize: found an unknown key; did you mean 'price'?"),
        ("price=dear", "override 'price=dear': price: found 'dear', wanted a number"),
        ("price=", "override 'price=': price: found 'null', wanted a number"),
        ("wheels.0.inches=0", "override 'wheels.0.inches=0': wheels.0.inches: found 0, wanted at least 1"),
    ],
)
def test_a_bad_override_is_named_as_it_was_typed(override: str, complaint: str) -> None:
    assert problem(GOOD, override) == complaint


def test_an_override_that_is_not_yaml_is_an_error_of_the_user() -> None:
    assert problem(GOOD, "price=[1").startswith("override 'price=[1'")


@pytest.mark.parametrize("text", ["name: [a\nprice: 1\n", "name: a\n\tprice: 1\n", "a: b: c\n"])
def test_broken_yaml_is_named_with_its_line(text: str) -> None:
    assert "not valid YAML" in problem(text) and problem(text).startswith("bike.yaml:")


def test_an_empty_file_says_so() -> None:
    assert problem("") == "bike.yaml:1: found an empty file, wanted the keys of a Bicycle"
    assert problem("- 1\n") == "bike.yaml:1: the file: found a list, wanted the keys of Bicycle"


def test_control_characters_are_an_error_of_the_user() -> None:
    assert problem("name: a\x00b\n").startswith("bike.yaml")


def test_a_file_whose_name_begins_with_override_keeps_its_line_numbers() -> None:
    with pytest.raises(UserError, match=r"^overrides\.yaml:1: name: found a list"):
        parse_yaml("name: []\nwheels: []\n", "overrides.yaml", Bicycle)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.yaml: cannot read the config \(No such file or directory\)"):
        load_yaml(tmp_path / "nothing.yaml", Bicycle)
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(UserError, match=r"latin\.yaml: found bytes that are not UTF-8"):
        load_yaml(tmp_path / "latin.yaml", Bicycle)


def test_what_is_dumped_is_read_back_as_it_was() -> None:
    bicycle = parse(GOOD, "price=6e-5", "parts.bell=2", "name='no'")
    assert parse(dump_yaml(bicycle)) == bicycle
    assert to_plain(bicycle)["wheels"][1] == {"inches": 26, "spokes": 36}
