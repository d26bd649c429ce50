"""Downloads from a server on this machine that misbehaves in every way a server can."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from data_prep.config import DownloadConfig
from data_prep.download import ASSEMBLIES, fetch
from hyena_ds.errors import UserError
from tests.data_prep.workshop import Outcome, Workshop, bgzip, fasta_text, random_bases

BODY = bgzip(fasta_text({"a": random_bases(20_000)}).encode())
DIGEST = hashlib.md5(BODY).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves BODY as /genome.fa.gz, with faults."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body = BODY
        self.listing = f"{'0' * 32}  other.fa.gz\n{DIGEST}  genome.fa.gz\n"
        self.drop_after: list[int] = []
        """For the next answers: bytes of the body after which the connection breaks."""
        self.statuses: list[int] = []
        """Codes of the next answers, before any 200."""
        self.ignores_range = False
        self.states_length = True
        self.wrong_range = False
        self.asked: list[str | None] = []
        """The Range header of every request for the genome."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/genome.fa.gz"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        if self.path == "/md5sum.txt":
            self._answer(200, self.server.listing.encode(), None)
            return
        if self.path != "/genome.fa.gz":
            self.send_error(404)
            return
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        if self.server.statuses:
            self.send_error(self.server.statuses.pop(0))
            return
        begin = 0
        if wanted and not self.server.ignores_range:
            begin = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if begin >= len(self.server.body):
                self.send_error(416)
                return
        self._answer(206 if begin else 200, self.server.body[begin:], begin)

    def _answer(self, status: int, body: bytes, begin: int | None) -> None:
        self.send_response(status)
        if self.server.states_length:
            self.send_header("Content-Length", str(len(body)))
        if status == 206 and begin is not None:
            shown = begin + 1 if self.server.wrong_range else begin
            self.send_header("Content-Range", f"bytes {shown}-{begin + len(body) - 1}/{begin + len(body)}")
        self.end_headers()
        drop = self.server.drop_after.pop(0) if begin is not None and self.server.drop_after else None
        self.wfile.write(body[:drop])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def run(workshop: Workshop, server: Server, **download: object) -> Outcome:
    keys = {"name": "tiny", "url": server.url, "attempts": 3, "first_pause": 0.001, **download}
    return workshop.run("download", workshop.config(fasta=str(place(workshop)), download=keys))


def place(workshop: Workshop) -> Path:
    return workshop.directory / "genomes" / "tiny.fa.gz"


def part(workshop: Workshop) -> Path:
    return place(workshop).with_name("tiny.fa.gz.part")


def test_a_download_lands_where_the_config_names_it_and_builds(workshop, server):
    outcome = run(workshop, server)
    assert outcome.code == 0 and place(workshop).read_bytes() == BODY and not part(workshop).exists()
    assert DIGEST in outcome.out
    assert workshop.run("build", workshop.config(fasta=str(place(workshop)))).code == 0


def test_broken_connections_are_resumed_from_the_last_byte(workshop, server):
    server.drop_after = [1000, 500, 2000]
    assert run(workshop, server).code == 0
    assert place(workshop).read_bytes() == BODY
    assert server.asked == [None, "bytes=1000-", "bytes=1500-", "bytes=3500-"]


def test_a_later_run_goes_on_with_the_part_of_an_earlier_one(workshop, server):
    server.drop_after = [1000, 0, 0, 0]
    outcome = run(workshop, server)
    assert outcome.code == 2 and "no byte came in 3 attempts" in outcome.sentence and "to resume" in outcome.sentence
    assert part(workshop).read_bytes() == BODY[:1000] and not place(workshop).exists()
    server.drop_after, server.asked = [], []
    assert run(workshop, server).code == 0
    assert place(workshop).read_bytes() == BODY and server.asked == ["bytes=1000-"]


def test_a_server_that_ignores_range_is_read_from_the_start(workshop, server):
    server.ignores_range, server.drop_after = True, [1000, 3000]
    assert run(workshop, server).code == 0
    assert place(workshop).read_bytes() == BODY and server.asked == [None, "bytes=1000-", "bytes=3000-"]


@pytest.mark.slow
def test_a_server_that_ignores_range_and_always_breaks_is_given_up(workshop, server):
    server.ignores_range, server.drop_after = True, [1000] * 50
    outcome = run(workshop, server)
    assert outcome.code == 2 and "no byte came in 3 attempts" in outcome.sentence
    assert len(server.asked) == 4


def test_a_server_that_answers_another_range_is_not_believed(workshop, server):
    server.drop_after, server.wrong_range = [1000], True
    outcome = run(workshop, server)
    assert outcome.code == 2 and "another range" in outcome.sentence and part(workshop).read_bytes() == BODY[:1000]


def test_wrong_bytes_are_refused_and_not_kept(workshop, server):
    server.body = BODY[:50] + b"?" + BODY[51:]
    outcome = run(workshop, server)
    assert outcome.code == 2 and DIGEST in outcome.sentence and server.url in outcome.sentence
    assert list(place(workshop).parent.iterdir()) == []


def test_a_part_of_an_older_file_is_thrown_away_and_fetched_anew(workshop, server):
    place(workshop).parent.mkdir()
    part(workshop).write_bytes(b"older" * 100)
    assert run(workshop, server).code == 0
    assert place(workshop).read_bytes() == BODY and server.asked == ["bytes=500-", None]


def test_a_part_that_is_already_whole_needs_no_more_bytes(workshop, server):
    place(workshop).parent.mkdir()
    part(workshop).write_bytes(BODY)
    assert run(workshop, server).code == 0 and place(workshop).read_bytes() == BODY


def test_an_answer_without_a_length_that_was_cut_is_found_by_its_checksum(workshop, server):
    server.states_length, server.drop_after = False, [1000]
    outcome = run(workshop, server)
    assert outcome.code == 2 and "found MD5" in outcome.sentence and not place(workshop).exists()


@pytest.mark.parametrize(
    ("url", "wanted"),
    [("/nowhere/genome.fa.gz", "the server answers 404"), ("/md5sum.txt", "found no MD5 of md5sum.txt")],
)
def test_an_address_that_does_not_exist_is_named_at_once(workshop, server, url, wanted):
    address = server.url.replace("/genome.fa.gz", url)
    outcome = run(workshop, server, url=address)
    assert outcome.code == 2 and wanted in outcome.sentence
    assert not place(workshop).parent.exists()


def test_a_file_that_is_listed_but_gone_is_named_at_once(workshop, server):
    server.statuses = [404]
    outcome = run(workshop, server)
    assert outcome.code == 2 and f"{server.url}: the server answers 404" in outcome.sentence
    assert len(server.asked) == 1


def test_a_server_that_is_busy_for_a_while_is_asked_again(workshop, server):
    server.statuses = [503, 500]
    assert run(workshop, server).code == 0 and place(workshop).read_bytes() == BODY


def test_pauses_grow_and_end(server, tmp_path):
    pauses: list[float] = []
    server.drop_after = [0] * 20
    with pytest.raises(UserError, match="no byte came in 9 attempts"):
        fetch(DownloadConfig("x", server.url, attempts=9), tmp_path / "x.fa.gz", pauses.append)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]


def test_no_server_at_all_is_one_sentence(workshop, server):
    url = "http://127.0.0.1:9/genome.fa.gz"
    outcome = run(workshop, server, url=url)
    assert outcome.code == 2 and "no byte came in 3 attempts" in outcome.sentence


def test_a_file_that_is_there_is_checked_and_not_fetched_again(workshop, server):
    assert run(workshop, server).code == 0
    server.asked = []
    outcome = run(workshop, server)
    assert outcome.code == 0 and "nothing to do" in outcome.out and not server.asked
    place(workshop).write_bytes(b"mine")
    outcome = run(workshop, server)
    assert outcome.code == 2 and "exists with another MD5" in outcome.sentence
    assert place(workshop).read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"url": None, "name": "hg99"}, "found 'hg99', wanted hg38 or hs1"),
        ({"url": "genome.fa.gz"}, "not an address"),
    ],
)
def test_a_config_that_names_no_address_is_refused(workshop, server, changes, wanted):
    outcome = run(workshop, server, **changes)
    assert outcome.code == 2 and wanted in outcome.sentence


def test_names_and_configs_that_cannot_be_fetched_are_refused(workshop):
    assert "found neither a config nor an assembly" in workshop.run("download", "hg99").sentence
    assert "found no key 'download'" in workshop.run("download", workshop.config()).sentence
    assert "found overrides beside a name" in workshop.run("download", "hg38", "a=b").sentence


def test_a_place_that_cannot_be_written_is_named(workshop, server):
    workshop.write("genomes", "mine")
    outcome = run(workshop, server)
    assert outcome.code == 2 and "cannot write" in outcome.sentence and str(part(workshop)) in outcome.sentence


@pytest.mark.parametrize("states_length", [True, False])
def test_a_genome_beyond_its_bound_is_stopped_and_not_kept(workshop, server, states_length):
    server.states_length = states_length
    server.body = BODY + bytes(1 << 20)
    outcome = run(workshop, server, gib=(len(BODY) + 1) / 2**30)
    assert outcome.code == 2 and "it has" in outcome.sentence and "download.gib" in outcome.sentence
    assert not place(workshop).exists() and (not part(workshop).exists() or part(workshop).stat().st_size == 0)


def test_a_genome_that_the_disk_has_no_room_for_is_not_begun(workshop, server, monkeypatch):
    monkeypatch.setattr("data_prep.download.shutil.disk_usage", lambda _: SimpleNamespace(free=len(BODY) - 1))
    outcome = run(workshop, server)
    assert outcome.code == 2 and f"{len(BODY):,} bytes are to come, and the disk has room for" in outcome.sentence
    assert not part(workshop).exists()


def test_a_list_of_checksums_without_end_is_stopped(workshop, server, monkeypatch):
    monkeypatch.setattr("data_prep.download.MOST_LIST_BYTES", 1000)
    server.listing = "x" * 2_000
    outcome = run(workshop, server)
    assert outcome.code == 2 and "bytes, wanted at most 1,000; correct the address" in outcome.sentence


@pytest.mark.parametrize("which", [place, part])
@pytest.mark.parametrize("kind", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_in_the_place_of_one_is_named(workshop, server, which, kind):
    place(workshop).parent.mkdir()
    kind(which(workshop))
    outcome = run(workshop, server)
    assert outcome.code == 2 and f"{which(workshop)}: exists and is no file" in outcome.sentence


def test_a_named_assembly_goes_to_the_directory_of_the_command_line(workshop, server, monkeypatch):
    monkeypatch.setitem(ASSEMBLIES, "hg38", server.url)
    outcome = workshop.run("download", "hg38", "--directory", str(workshop.directory / "g"))
    assert outcome.code == 0 and (workshop.directory / "g" / "genome.fa.gz").read_bytes() == BODY


def test_the_published_addresses_are_https():
    assert all(url.startswith("https://") and url.endswith(f"{name}.fa.gz") for name, url in ASSEMBLIES.items())
