"""What a recipe refuses: one sentence that says where, and nothing written."""

from __future__ import annotations

import pytest

from tests.data_prep.recipes.making import EXONS, Recipes
from tests.data_prep.workshop import random_bases

EXON = "c\t100\t150\t+\tg\tt\n"


def splice(recipes: Recipes, table: str, *words: str, name: str = "e.tsv", bases: str | None = None) -> str:
    genome = recipes.fasta("g.fa", {"c": random_bases(2000) if bases is None else bases})
    return recipes.refused("splice", "--exons", recipes.write(name, table), "--genome", genome, "--window", "8", *words)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("", "e.tsv:1: found the columns none, wanted one called chrom or chr"),
        (
            "chrom\tstart\tend\tstrand\n",
            "e.tsv:1: found the columns chrom, start, end, strand, wanted one called gene_id or",
        ),
        (EXONS, "e.tsv: found no exon, wanted at least one"),
        (EXONS + "c\t1\n", "e.tsv:2: found 2 columns, wanted the 6 of the header"),
        (EXONS + EXON + EXON.replace("100", "1x"), "e.tsv:3: found '1x' as a coordinate, wanted a whole number"),
        (EXONS + EXON.replace("100", "150"), "e.tsv:2: found start 150 and end 150, wanted the start first (0-based"),
        (EXONS + EXON.replace("+", "."), "e.tsv:2: found the strand '.', wanted + or -"),
        (EXONS + EXON.replace("g", ""), "e.tsv:2: found no gene or no transcript, wanted both"),
        (EXONS + EXON.replace("c", "d", 1), "e.tsv: lies on the contigs d, none of which is in"),
        (EXONS + EXON + "\0", "e.tsv:3: found binary data, wanted text"),
        (EXONS + "c" * (1 << 21), "e.tsv: found a line of more than 1,048,576 letters"),
        (EXONS + EXON, "found no row for train, wanted some in every split"),
    ],
)
def test_a_table_that_is_wrong(recipes: Recipes, table: str, said: str) -> None:
    assert said in splice(recipes, table)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("c\tx\texon\n", "e.gtf:1: found 3 columns, wanted the 9 of a GTF"),
        ("c\tx\texon\t1\t9\t.\t+\t.\tID=1;Parent=2\n", 'e.gtf:1: found no gene_id "..." among the attributes'),
        (
            'c\tx\texon\t0\t9\t.\t+\t.\tgene_id "g"; transcript_id "t";\n',
            "e.gtf:1: found start 0 and end 9, wanted the start first",
        ),
    ],
)
def test_a_gtf_that_is_wrong(recipes: Recipes, line: str, said: str) -> None:
    assert said in splice(recipes, line, name="e.gtf")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--window", "7"], "--window: found 7, wanted an even number of bases, 2 to 16,777,216"),
        (["--gap", "7"], "--gap: found 7, wanted at least a window, 8"),
        (["--shares", "0.5"], "--shares: found '0.5', wanted two shares above 0"),
        (["--shares", "0.5,0.5"], "--shares: found '0.5,0.5', wanted two shares above 0"),
        (["--test", "c"], "--valid and --test: found one of them, wanted both or neither"),
        (["--test", "c:9-1", "--valid", "c"], "--test: found 'c:9-1', wanted CONTIG or CONTIG:START-END"),
        (["--seed", "-1"], "--seed: found -1, wanted 0 to"),
    ],
)
def test_an_option_that_is_wrong(recipes: Recipes, words: list[str], said: str) -> None:
    assert said in splice(recipes, EXONS + EXON, *words)


@pytest.mark.parametrize(
    ("test", "valid", "said"),
    [
        ("c:0-500", "c:400-600", "--valid: found c:400-600, which overlaps c:0-500 of --test; wanted regions apart"),
        ("c:0-500", "d", "--valid: found the contig 'd', which nothing lies on; it has c"),
    ],
)
def test_regions_that_are_wrong(recipes: Recipes, test: str, valid: str, said: str) -> None:
    table = EXONS + EXON + EXON.replace("100\t150", "300\t350")
    bases = [*"C" * 2000]
    bases[150:152], bases[298:300] = "GT", "AG"
    assert said in splice(recipes, table, "--test", test, "--valid", valid, bases="".join(bases))


def test_a_letter_that_is_no_base_is_said_with_its_place(recipes: Recipes) -> None:
    table = EXONS + EXON + EXON.replace("100\t150", "300\t350")
    assert "found the letter 'U' at c:150, wanted A C G T N" in splice(
        recipes, table, bases="C" * 150 + "U" + "C" * 900
    )


def test_a_file_that_is_not_there_or_cut_short(recipes: Recipes) -> None:
    genome = recipes.fasta("g.fa", {"c": random_bases(2000)})
    missing = recipes.refused("splice", "--exons", "missing.tsv", "--genome", genome)
    assert "missing.tsv: no such file; name an existing one for exons" in missing
    cut = recipes.write("e.tsv", b"\x1f\x8b\x08\x00\x00\x00")
    assert "the gzip stream is cut short or damaged" in recipes.refused("splice", "--exons", cut, "--genome", genome)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--least", "2"], "--least: found 2, wanted at least 3, one for each split"),
        (["--longest", "1"], "--longest: found 1, wanted 2 to"),
        (["--least", "3"], "t.tsv: found 1 biotypes with genes in every split, wanted at least 2"),
    ],
)
def test_genes_that_make_no_task(recipes: Recipes, words: list[str], said: str) -> None:
    genome = recipes.fasta("g.fa", {"c": random_bases(2000)})
    rows = "".join(f"g{at},c,{at},{at + 20},1,one\n" for at in range(100, 2000, 300))
    table = recipes.write("t.tsv", "gene,chr,start,end,strand,biotype\n" + rows)
    assert said in recipes.refused("biotypes", "--genes", table, "--genome", genome, "--longest", "30", *words)


@pytest.mark.parametrize(
    ("line", "words", "said"),
    [
        ("c\t9\n", [], "v.vcf:1: found 2 columns, wanted the 8 or more of a VCF"),
        ("c\t100\t.\tA\tC\t.\t.\tX=1\n", [], "v.vcf: found no record with LABEL benign or pathogenic, wanted some"),
        ("c\tx\t.\tA\tC\t.\t.\tLABEL=benign\n", [], "v.vcf:1: found 'x' as a coordinate"),
        ("c\t100\t.\tG\tC\t.\t.\tLABEL=benign\n", [], "v.vcf:1: found REF G where"),
        (
            "c\t100\t.\tA\tC\t.\t.\tLABEL=benign\n",
            ["--classes", "a"],
            "--classes: found 'a', wanted two values or more",
        ),
    ],
)
def test_variants_that_make_no_task(recipes: Recipes, line: str, words: list[str], said: str) -> None:
    genome = recipes.fasta("g.fa", {"c": "A" * 2000})
    vcf = recipes.write("v.vcf", line)
    assert said in recipes.refused("clinvar", "--variants", vcf, "--genome", genome, "--window", "20", *words)


@pytest.mark.parametrize(
    ("table", "words", "said"),
    [
        ("x,y\n", [], "m.csv: found no row below the header, wanted some"),
        ("x,z\nAC,1\n", [], "m.csv:1: found the columns x, z, wanted one called y"),
        ("x,y\nAC,1\nACG,1\n", [], "m.csv:3: found a sequence of 3 letters after one of 2, wanted all of one length"),
        ("x,y\nAC,1\nAC,1\n", [], "m.csv:3: found the sequence AC twice, wanted each once"),
        ("x,y\nAC,nan\n", [], "m.csv:2: found 'nan' as y, wanted a number"),
        ("x,y\nAE,1\n", [], "m.csv:2: found the sequence 'AE', wanted A C G T U N"),
        (
            "x,y\nAC,1\nGG,2\n",
            [],
            "m.csv: found no sequence for train with 4 centres, a radius of 2 and 2 letters apart",
        ),
        ("x,y\nAC,1\n", ["--radius", "0"], "--radius: found 0, wanted 1 to 1,000"),
    ],
)
def test_measured_sequences_that_make_no_task(recipes: Recipes, table: str, words: list[str], said: str) -> None:
    assert said in recipes.refused("mpsa", "--table", recipes.write("m.csv", table), *words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--genome", "one={one}"], "--genome: found one species, wanted two or more"),
        (["--genome", "one={one}", "--genome", "one={two}"], "wanted SPECIES=FASTA, each species once"),
        (["--genome", "one={one}", "--genome", "two={two}"], "two.fa: found no window of 100 bases for"),
        (["--genome", "one={one}", "--genome", "two={two}", "--most", "0"], "--most: found 0, wanted at least 1"),
        (["--genome", "one={one}", "--genome", "two={two}", "--most-n", "1"], "--most-n: found 1.0, wanted a share"),
        (
            ["--genome", "one={one}", "--genome", "two={two}", "--valid", "x", "--test", "c"],
            "--valid: found the contig 'x', which no genome has",
        ),
    ],
)
def test_genomes_that_make_no_task(recipes: Recipes, words: list[str], said: str) -> None:
    files = {
        "one": recipes.fasta("one.fa", {"c": random_bases(9000)}),
        "two": recipes.fasta("two.fa", {"d": "ACGT" * 30}),
    }
    assert said in recipes.refused("species", "--window", "100", *(word.format(**files) for word in words))


def test_a_directory_that_holds_something_else_is_left_alone(recipes: Recipes) -> None:
    words = [f"{a}{b}{c}{d}{e}" for a in "ACGT" for b in "ACGT" for c in "ACGT" for d in "ACGT" for e in "ACGT"]
    table = recipes.write("m.csv", "x,y\n" + "".join(f"{word},1\n" for word in words))
    command = ("mpsa", "--table", table, "--radius", "1", "--centres", "1")
    task = recipes.make(*command)
    assert "holds a task of other options or inputs" in recipes.refused(*command, "--seed", "1")
    (task.directory / "test.csv.gz").write_bytes(b"other")
    assert "its files are not those that its card.json lists" in recipes.refused(*command)
    (task.directory / "card.json").write_text("[]")
    assert "exists and is no task of this program" in recipes.refused(*command)
    assert (task.directory / "test.csv.gz").read_bytes() == b"other"
