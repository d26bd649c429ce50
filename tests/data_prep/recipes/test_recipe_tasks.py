"""What recipes make, held against sequences, labels and splits that were worked out by hand."""

from __future__ import annotations

import gzip
import itertools
import random
from typing import Any

import pytest

from tests.data_prep.recipes.making import SPLITS, Recipes, other_strand
from tests.data_prep.workshop import random_bases
from tests.paths import DATA

WINDOW = ("--window", "24")
HELD_OUT = ("--valid", "c:4000-5000", "--test", "c:5000-")


def two_genes(at: int) -> list[tuple[Any, ...]]:
    """A gene on either strand, each of two exons with an intron of 100 bases."""
    forward = [("c", at + 100, at + 150, "+", f"f{at}", "t"), ("c", at + 250, at + 300, "+", f"f{at}", "t")]
    return [*forward, ("c", at + 400, at + 450, "-", f"r{at}", "t"), ("c", at + 550, at + 600, "-", f"r{at}", "t")]


def two_genes_genome(count: int) -> str:
    """C and G but at the sites of `two_genes(1000 * k)`, and at a look-alike of each kind in each gene."""
    letters = [*random_bases(1000 * count, letters="CG")]
    forward = ((150, "GT"), (248, "AG"), (200, "GT"), (220, "AG"))
    reverse = ((548, "AC"), (450, "CT"), (500, "AC"), (520, "CT"))
    for at in range(0, len(letters), 1000):
        for place, pair in (*forward, *reverse):
            letters[at + place : at + place + 2] = pair
    return "".join(letters)


def test_splice_sites_are_read_on_their_strand_and_decoys_are_none_of_them(recipes: Recipes) -> None:
    bases = two_genes_genome(6)
    exons = recipes.exons("e.tsv", [row for at in range(0, 6000, 1000) for row in two_genes(at)])
    task = recipes.make("splice", "--exons", exons, "--genome", recipes.fasta("g.fa", {"c": bases}), *WINDOW, *HELD_OUT)
    found = {(row["label"], row["strand"], int(row["start"])): row["sequence"] for row in task.rows("train")}
    assert found["donor", "+", 138] == bases[138:150] + "GT" + bases[152:162]
    assert found["acceptor", "+", 238] == bases[238:248] + "AG" + bases[250:262]
    # 548 and 549 are AC, so the other strand's GT begins left of the boundary at 550.
    assert found["donor", "-", 538] == other_strand(bases[550:562]) + "GT" + other_strand(bases[538:548])
    assert found["acceptor", "-", 438] == other_strand(bases[452:462]) + "AG" + other_strand(bases[438:450])
    decoys = {key[1:] for key in found if key[0] == "neither"}
    assert {(strand, start % 1000) for strand, start in decoys} == {("+", 188), ("-", 490)}
    assert all(found["neither", strand, start][12:14] == "GT" for strand, start in decoys)
    assert task.card["counts"]["train"] == {"rows": 24, "acceptor": 8, "donor": 8, "neither": 8}
    assert {int(row["start"]) // 1000 for row in task.rows("valid")} == {4}
    assert {int(row["start"]) // 1000 for row in task.rows("test")} == {5}
    task.check({"c": bases}, gap=24)


def test_what_is_at_two_places_is_one_row_and_of_two_labels_none(recipes: Recipes) -> None:
    bases = two_genes_genome(9)
    # 0 is a copy of 5000, which is test; 2000 of 1000; 8000 of 7000, whose first gene splices at the look-alike of the other.
    bases = bases[5000:6000] + bases[1000:2000] * 2 + bases[3000:8000] + bases[7000:8000]
    rows = [row for at in range(0, 9000, 1000) for row in two_genes(at)]
    rows[14 * 2] = ("c", 7100, 7200, "+", "f7000", "t")
    exons, genome = recipes.exons("e.tsv", rows), recipes.fasta("g.fa", {"c": bases})
    words = ("--valid", "c:4000-5000", "--test", "c:5000-7000")
    task = recipes.make("splice", "--exons", exons, "--genome", genome, *WINDOW, *words)
    found = {split: {int(row["start"]) // 1000 for row in task.rows(split)} for split in SPLITS}
    assert found == {"train": {1, 3, 7}, "valid": {4}, "test": {5, 6}}
    # Donor at 8150 and none at 7150, donor at 7200 and none at 8200: four rows of two sequences, each with two labels.
    sevens = {(row["label"], int(row["start"])) for row in task.rows("train") if row["start"] > "7"}
    assert sevens == {("acceptor", 7238), ("donor", 7538), ("acceptor", 7438), ("neither", 7490)}
    (repeats,) = [count for why, count in task.card["left_out"].items() if "two labels" in why]
    assert repeats == 6 + 6 + 4 + 4


def random_genes(seed: int, length: int) -> list[tuple[Any, ...]]:
    """Genes of two transcripts, on both strands, of which some overlap."""
    rng = random.Random(seed)
    rows: list[tuple[Any, ...]] = []
    at = 200
    for gene in range(length):
        cuts = sorted(rng.sample(range(at, at + 1500, 40), 8))
        if cuts[-1] > length - 300:
            return rows
        strand = rng.choice("+-")
        pairs = [*zip(cuts[::2], cuts[1::2], strict=True)]
        rows += [("c", start, end, strand, f"gene{gene}", f"{gene}.1") for start, end in pairs]
        rows += [("c", start, end, strand, f"gene{gene}", f"{gene}.2") for start, end in pairs[1:]]
        at += rng.choice([700, 1600, 2500])
    return rows


@pytest.mark.parametrize("recipe", ["splice", "exons"])
def test_genes_that_overlap_stay_together_and_splits_are_a_gap_apart(recipes: Recipes, recipe: str) -> None:
    bases = random_bases(90_000, 1)
    genome = recipes.fasta("g.fa.gz", {"c": bases})
    rows = random_genes(2, len(bases))
    exons = recipes.exons("e.tsv.gz", rows)
    task = recipes.make(recipe, "--exons", exons, "--genome", genome, "--window", "60", "--gap", "90")
    task.check({"c": bases}, gap=90)
    homes: dict[str, set[str]] = {}
    for split in SPLITS:
        for row in task.rows(split):
            inside = {gene for _, start, end, _, gene, _ in rows if int(row["start"]) < end and start < int(row["end"])}
            for gene in inside if recipe == "exons" else {row["group"]}:
                homes.setdefault(gene, set()).add(split)
    assert homes and all(len(splits) == 1 for splits in homes.values())


def test_the_letters_of_a_site_do_not_tell_it_from_a_decoy(recipes: Recipes) -> None:
    bases = random_bases(90_000, 1)
    exons = recipes.exons("e.tsv", random_genes(2, len(bases)))
    genome = recipes.fasta("g.fa", {"c": bases})
    task = recipes.make("splice", "--exons", exons, "--genome", genome, "--window", "60")
    rows = [row for split in SPLITS for row in task.rows(split)]
    sites = {(row["start"], row["strand"]) for row in rows if row["label"] != "neither"}
    for row in rows:
        donor_like, acceptor_like = row["sequence"][30:32] == "GT", row["sequence"][28:30] == "AG"
        assert donor_like or acceptor_like
        assert row["label"] != "neither" or (row["start"], row["strand"]) not in sites
    assert "without GT" in " ".join(task.card["left_out"])


def test_every_base_is_labelled_on_its_own_strand(recipes: Recipes) -> None:
    letters = [*random_bases(6000, 3)]
    letters[105] = "N"
    bases = "".join(letters)
    genome = recipes.fasta("g.fa", {"c": bases})
    exons = recipes.exons("e.tsv", [row for at in range(0, 6000, 1000) for row in two_genes(at)])
    task = recipes.make("exons", "--exons", exons, "--genome", genome, "--window", "500", *HELD_OUT)
    task.check({"c": bases}, gap=500)
    found = {(row["strand"], int(row["start"])): row["label"] for split in SPLITS for row in task.rows(split)}
    forward = "0" * 100 + "2" * 5 + "." + "2" * 44 + "1" * 100 + "2" * 50 + "0" * 200
    assert found["+", 0] == forward
    # On the reverse strand the window [500, 1000) begins at 999: outside, then the gene's first exon, then half of its intron.
    assert found["-", 500] == "0" * 400 + "2" * 50 + "1" * 50
    assert found["-", 0] == "1" * 50 + "2" * 50 + "0" * 294 + "." + "0" * 105
    only = recipes.make(
        "exons", "--exons", exons, "--genome", genome, "--window", "500", "--strand", "+", *HELD_OUT, out="one"
    )
    assert {row["strand"] for row in only.rows("train")} == {"+"}


def gene_table(genes: list[tuple[Any, ...]]) -> str:
    head = "ensgene\tsymbol\tchr\tstart\tend\tstrand\tbiotype\n"
    return head + "".join(
        f"{name}\ts\t{chrom}\t{start}\t{end}\t{strand}\t{kind}\n" for name, chrom, start, end, strand, kind in genes
    )


def test_biotypes_count_from_one_and_are_cut_at_their_3_prime_end(recipes: Recipes) -> None:
    bases = random_bases(9000, 4)
    genome = recipes.fasta("g.fa", {"chr7": bases})
    genes = [
        (f"{kind}{at}", "7", at + 1 + 300 * number, at + 50 + 300 * number, strand, kind)
        for at in range(0, 9000, 600)
        for number, (kind, strand) in enumerate((("one", "1"), ("two", "-1")))
    ]
    table = recipes.write(
        "t.tsv", gene_table([*genes, ("rare", "7", 10, 40, "1", "rare"), ("else", "8", 10, 40, "1", "one")])
    )
    task = recipes.make("biotypes", "--genes", table, "--genome", genome, "--longest", "40", "--least", "5")
    task.check({"chr7": bases}, gap=40)
    rows = {row["group"]: row for split in SPLITS for row in task.rows(split)}
    assert rows["one0"]["sequence"] == bases[:40] and rows["two0"]["sequence"] == other_strand(bases[310:350])
    assert (rows["two0"]["contig"], rows["two0"]["start"], rows["two0"]["end"]) == ("chr7", "310", "350")
    assert rows["one0"]["label"] == "one" and "rare" not in rows
    assert task.card["left_out"] == {"its biotype has fewer than 5 genes": 1, "the genome does not have its place": 1}


def test_a_gtf_counts_from_one(recipes: Recipes) -> None:
    bases = two_genes_genome(6)
    genome = recipes.fasta("g.fa", {"c": bases})
    rows = [row for at in range(0, 6000, 1000) for row in two_genes(at)]
    table = recipes.exons("e.tsv", rows)
    lines = [
        f'{c}\tx\texon\t{start + 1}\t{end}\t.\t{strand}\t.\tgene_id "{gene}"; transcript_id "{name}";\n'
        for c, start, end, strand, gene, name in rows
    ]
    gtf = recipes.write("e.gtf.gz", "#comment\n" + "".join(lines) + 'c\tx\tgene\t1\t9\t.\t+\t.\tgene_id "g";\n')
    one = recipes.make("splice", "--exons", table, "--genome", genome, *WINDOW, *HELD_OUT)
    two = recipes.make("splice", "--exons", gtf, "--genome", genome, *WINDOW, *HELD_OUT, out="gtf")
    assert all(one.bytes()[f"{split}.csv.gz"] == two.bytes()[f"{split}.csv.gz"] for split in SPLITS)


VCF = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"


def test_a_variant_is_in_the_middle_of_its_window_and_indels_keep_the_length(recipes: Recipes) -> None:
    bases = random_bases(6000, 5)
    genome = recipes.fasta("g.fa", {"7": bases})
    turned = {"A": "C", "C": "G", "G": "T", "T": "A"}
    records = []
    for at in range(50, 6000, 50):
        label = "benign" if at % 100 else "pathogenic"
        records.append(
            f"chr7\t{at}\t.\t{bases[at - 1].lower()}\t{turned[bases[at - 1]]}\t.\t.\tGENE=g{at // 500};LABEL={label}\n"
        )
    records.append(f"chr7\t120\t.\t{bases[119:122]}\t{bases[119]}\t.\t.\tLABEL=benign\n")
    records.append(f"chr7\t130\t.\t{bases[129]}\t{bases[129]}TTT,<DEL>\t.\t.\tLABEL=benign\n")
    records.append(f"chr7\t140\t.\t{bases[139]}\tA\t.\t.\tLABEL=uncertain\n")
    vcf = recipes.write("v.vcf.gz", VCF + "".join(records))
    words = (
        "clinvar",
        "--variants",
        vcf,
        "--genome",
        genome,
        "--window",
        "20",
        "--valid",
        "7:4000-5000",
        "--test",
        "7:5000-",
    )
    task = recipes.make(*words)
    first, *rest = task.rows("train")
    assert first["start"] == "39" and first["sequence"] == bases[39:49] + turned[bases[49]] + bases[50:59]
    assert first["reference"] == bases[39:59] and first["group"] == "g0"
    found = {row["start"]: row for row in rest}
    assert found["109"]["sequence"] == bases[109:120] + bases[122:131] and found["109"]["reference"] == bases[109:129]
    assert found["119"]["sequence"] == bases[119:130] + "TTT" + bases[130:136]
    assert all(len(row["sequence"]) == len(row["reference"]) == 20 for row in rest)
    assert found["109"]["group"] == "7:109"  # no GENE
    assert max(int(row["end"]) for row in task.rows("train")) + 20 <= min(
        int(row["start"]) for row in task.rows("valid")
    )
    assert task.card["left_out"]["no LABEL of the classes"] == 1
    assert task.card["left_out"]["REF or ALT with other letters than A C G T"] == 1


def test_sequences_of_two_splits_differ_in_two_letters_or_more(recipes: Recipes) -> None:
    words = ["".join(letters) for letters in itertools.product("ACGU", repeat=5)]
    table = recipes.write(
        "m.csv", "set,y,x\n" + "".join(f"a,{number / 7},{word}\n" for number, word in enumerate(words))
    )
    task = recipes.make("mpsa", "--table", table, "--radius", "1", "--centres", "1")
    sequences = {split: [row["sequence"] for row in task.rows(split)] for split in SPLITS}
    assert set(task.rows("test")[0]) == {"sequence", "label"} and "T" in "".join(sequences["train"])
    assert len(sequences["test"]) == len(sequences["valid"]) == 16  # a word, and 3 others at each of 5 places
    for one, other in itertools.combinations(SPLITS, 2):
        nearest = min(sum(a != b for a, b in zip(x, y, strict=True)) for x in sequences[one] for y in sequences[other])
        assert nearest == 2
    values = {word.replace("U", "T"): str(number / 7) for number, word in enumerate(words)}
    assert all(values[row["sequence"]] == row["label"] for split in SPLITS for row in task.rows(split))


def test_species_have_as_many_windows_each_in_capitals_and_on_both_strands(recipes: Recipes) -> None:
    human, worm = random_bases(9000, 6), random_bases(30_000, 7).lower()
    human = human[:1000] + "N" * 60 + human[1060:]
    one, two = recipes.fasta("h.fa", {"1": human[:6000], "2": human[6000:]}), recipes.fasta("w.fa.gz", {"c": worm})
    words = ("species", "--genome", f"human={one}", "--genome", f"worm={two}", "--window", "100")
    task = recipes.make(*words)
    task.check({"human:1": human[:6000], "human:2": human[6000:], "worm:c": worm}, gap=100)
    for split in SPLITS:
        rows = task.rows(split)
        assert task.card["counts"][split]["human"] == task.card["counts"][split]["worm"] == len(rows) / 2
        assert {row["strand"] for row in rows} == {"+", "-"} and not any("N" * 10 in row["sequence"] for row in rows)
    assert task.card["left_out"]["too many N"] == 1
    few = recipes.make(*words, "--most", "10", "--valid", "1:0-1000", "--test", "2", out="few")
    assert few.card["counts"]["train"] == {"rows": 20, "human": 10, "worm": 10}
    assert {row["contig"] for row in few.rows("test")} == {"human:2", "worm:c"}


def test_the_same_inputs_give_the_same_bytes_and_another_seed_others(recipes: Recipes) -> None:
    bases = random_bases(90_000, 1)
    plain, packed = recipes.fasta("g.fa", {"c": bases}), recipes.fasta("g.fa.gz", {"c": bases})
    exons = recipes.exons("e.tsv", random_genes(2, len(bases)))
    words = ("splice", "--exons", exons, "--window", "60")
    first = recipes.make(*words, "--genome", plain)
    assert first.bytes() == recipes.make(*words, "--genome", plain, out="again").bytes()
    assert set(first.bytes()) == {"train.csv.gz", "valid.csv.gz", "test.csv.gz", "card.json", "README.md"}
    assert (
        first.bytes()["train.csv.gz"] == recipes.make(*words, "--genome", packed, out="packed").bytes()["train.csv.gz"]
    )
    other = recipes.make(*words, "--genome", plain, "--seed", "1", out="other")
    assert gzip.decompress(other.bytes()["train.csv.gz"]) != gzip.decompress(first.bytes()["train.csv.gz"])
    assert first.bytes()["train.csv.gz"][4:8] == b"\0\0\0\0"
    assert str(recipes.directory) not in first.bytes()["card.json"].decode()


def test_a_card_says_command_inputs_split_and_counts_and_a_second_run_has_nothing_to_do(recipes: Recipes) -> None:
    table = recipes.write(
        "m.csv", "x,y\n" + "".join(f"{''.join(word)},1\n" for word in itertools.product("ACGT", repeat=5))
    )
    words = ("mpsa", "--table", table, "--radius", "1", "--centres", "1")
    task = recipes.make(*words)
    assert task.card["command"].startswith("hyena-ds prep task mpsa --table m.csv --apart 2 ")
    assert task.card["inputs"]["table"]["file"] == "m.csv" and len(task.card["inputs"]["table"]["sha256"]) == 64
    page = task.bytes()["README.md"].decode()
    assert task.card["command"] in page and task.card["split"] in page and "| test | 16 |" in page
    before = task.bytes()
    code, out, _ = recipes.run(*words, str(task.directory))
    assert code == 0 and "is complete" in out and task.bytes() == before


@pytest.mark.skipif(not DATA.is_dir(), reason="the real annotations are not here; HYENA_DATA names their directory")
def test_sites_of_a_real_chromosome_have_their_letters(recipes: Recipes) -> None:
    exons = str(DATA / "annotations" / "gencode_grch37_X_0-70M_exons.tsv.gz")
    genome = str(DATA / "genome" / "hs37_chrX_0-69999930.fa.gz")
    words = ("splice", "--exons", exons, "--genome", genome, "--valid", "X:52000000-60000000", "--test", "X:60000000-")
    task = recipes.make(*words)
    assert task.card["counts"]["test"] == {"rows": 1179, "acceptor": 396, "donor": 390, "neither": 393}
    # Of 8,670 sites 310 lack GT or AG; on a wrong strand, or one base off, most would.
    assert task.card["left_out"]["a donor without GT or an acceptor without AG"] == 310
