"""What is shown of a place holds no secret, whatever it looks like, and everything else stays as it is."""

from __future__ import annotations

import random
import time

import pytest

from hyena_ds.errors import LocalError, UserError
from hyena_ds.redaction import is_hidden, redacted, shown, without, words_of

SECRET = "hush-hush"


@pytest.mark.parametrize(
    "place",
    [
        "data/mine",
        "/data/v2@genomes",
        "../a b/c",
        "https://host/genomes/mine",
        "http://host:8080/x",
        "s3://bucket/x",
        "https://${USER}:${PASSWORD}@host/x",
        "https://${TOKEN}@host:80/x?signature=${SIGNATURE}&v=${V}",
        "https://host/x?${QUERY}",
        "pipe:${FETCH}",
        "pipe:${FETCH} {shard}",
        "ratio 1:2, see https://host/page.",
    ],
)
def test_what_holds_no_secret_stays(place: str) -> None:
    assert shown(place) == place and redacted(f"found '{place}', wanted") == f"found '{place}', wanted"
    assert not is_hidden(place)


@pytest.mark.parametrize(
    ("place", "wanted"),
    [
        (f"https://{SECRET}@host/x", "https://***@host/x"),
        (f"https://user:{SECRET}@host:80/x", "https://***@host:80/x"),
        (f"HTTPS://user:{SECRET}@host/x", "HTTPS://***@host/x"),
        (f"ftp://user:{SECRET}@host", "ftp://***@host"),
        (f"s3://{SECRET}:b@bucket/x", "s3://***@bucket/x"),
        (f"https://user:a/{SECRET}@host/x", "https://***@host/x"),
        (f"https://user:{SECRET}?a@host/x", "https://***@host/x"),
        (f"https://user:{SECRET}#a@host/x", "https://***@host/x"),
        (f"https://user:a@{SECRET}@host/x", "https://***@host/x"),
        (f"https://${{USER}}:{SECRET}@host/x", "https://***@host/x"),
        (f"https://host/x?a={SECRET}", "https://host/x?***"),
        (f"https://host/x?{SECRET}", "https://host/x?***"),
        (f"https://host/x?a=${{A}}&b={SECRET}", "https://host/x?***"),
        (f"https://host/x#{SECRET}", "https://host/x#***"),
        (f"user:{SECRET}@host/x", "***@host/x"),
        (f"pipe:curl {SECRET} {{shard}}", "pipe:***"),
        (f"pipe:{SECRET}", "pipe:***"),
        (f"pipe: ${{A}} '{SECRET}' {{shard}}", "pipe:***"),
        (f"PIPE:curl {SECRET}", "PIPE:***"),
        (f" pipe:curl {SECRET}", "pipe:***"),
        (f"pipe:a\n{SECRET} {{shard}}", "pipe:***"),
    ],
)
def test_a_secret_goes_and_once_is_enough(place: str, wanted: str) -> None:
    assert shown(place).strip() == wanted and shown(shown(place)) == shown(place)
    assert is_hidden(shown(place)) or not place.startswith(("http", "s3", "pipe")) or "#***" in shown(place)
    for error in (UserError(f"x: found '{place}', wanted 'y'"), LocalError(f"a: {shown(place)}: b")):
        assert SECRET not in str(error)
    assert SECRET not in redacted(f"override 'data.sources.0.shards={place}': found it")
    assert SECRET not in redacted(f"override 'data.sources=[{{shards: \"{place}\"}}]': found it")


def test_random_commands_and_addresses_leave_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    chance, letters = random.Random(20261124), "ab '\"/:@?#&=;|$(){}[],.%+-\\*"
    for _ in range(2000):
        noise = ["".join(chance.choices(letters, k=chance.randrange(8))) for _ in range(2)]
        for place in (f"pipe:{noise[0]}{SECRET}{noise[1]}", f"https://u:{noise[0]}{SECRET}{noise[1]}@host/x"):
            assert SECRET not in shown(place), place
        for said in (
            f"found 'pipe:{noise[0]}{SECRET}{noise[1]}', wanted 'x'",
            f"pipe:{noise[0]}{SECRET}{noise[1]} -> x",
        ):
            assert SECRET not in redacted(said), said


def test_our_own_examples_are_not_taken_for_secrets() -> None:
    for text in (
        "wanted a directory, http://, https://, s3:// or pipe:COMMAND",
        "[Errno 32] Broken pipe: 'somewhere'",
        "pipe:*** (train-000000.tar): the shard cannot be fetched: no byte came; see to the source",
        "data.sources.0.shards: pipe:*** -> pipe:${FETCH} {shard}",
    ):
        assert redacted(text) == text


def test_what_others_say_is_rid_of_the_words_of_the_place() -> None:
    words = words_of("https://us%40er:pass%2Fword@host/x?signature=1a2b3c&expires=17", ["from-a-variable"])
    text = "no us@er with pass/word, pass%2Fword or signature=1a2b3c (1a2b3c), from-a-variable; 17 of 18 bytes"
    assert without(text, words) == "no *** with ***, *** or *** (***), ***; 17 of 18 bytes"
    words = words_of("pipe:curl -H 'Authorization: Bearer abc.def/g' https://me:mine@h/{shard} | gunzip")
    assert without("curl: (22) abc.def/g is no token of me:mine; gunzip: no", words) == (
        "curl: (22) *** is no token of ***; gunzip: no"
    )


@pytest.mark.parametrize(
    "part", ["x", "pipe:a\n", "'pipe:a\n", "'", "http://", "a:", "pipe:${A} ", "https://u:p@h/?q ", "|a "]
)
def test_a_text_of_half_a_megabyte_is_looked_through_in_a_moment(part: str) -> None:
    began = time.process_time()
    redacted(part * (500_000 // len(part)))
    assert time.process_time() - began < 10  # a second here; hours where a search began anew at every character


def test_a_file_called_pipe_is_no_command() -> None:
    assert redacted("/data/pipe: found a pipe, wanted a file") == "/data/pipe: found a pipe, wanted a file"
