"""The model card of an exported model: what it is, how it is used, and what its run says of data, training and quality.

model, Origin (or None) --> README.md
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hyena_ds.config.loading import dump_yaml
from hyena_ds.config.model import ModelConfig
from hyena_ds.data.identity import ShardList
from hyena_ds.errors import MOST_QUOTED, in_one_line
from hyena_ds.files.rows import Row
from hyena_ds.redaction import kept
from hyena_ds.runs.origin import Origin
from hyena_ds.runs.trained_on import TRAINING, Training, merged
from hyena_ds.text import counted, markdown_table

if TYPE_CHECKING:
    from hyena_ds.weights.heads import TaskHead

_CHUNK = re.compile(r"[0-9]+-(?P<chromosome>.+)-(?P<start>[0-9]+) [0-9a-f]+")
_FRONT = """\
---
library_name: transformers
pipeline_tag: text-generation
tags: [dna, genomics, hyenadna]
---
"""
_USE = """\
## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
inputs = tokenizer("ACGTACGTACGT", return_tensors="pt")
logits = model(**inputs).logits  # (1, tokens, 16)
states = model(**inputs, output_hidden_states=True).hidden_states
more = model.generate(**inputs, max_new_tokens=16, do_sample=True)
print(tokenizer.decode(more[0]))
```

`AutoModel` gives hidden states alone, `AutoModelForSequenceClassification` with `num_labels=N` a classifier whose last layer is
new: train it. `trust_remote_code` runs `configuration_hyenadna.py` and `modeling_hyenadna.py` of this folder, which need torch and
transformers.

- A token is a letter: A, C, G, T or N. Everything else, lower case too, is `[UNK]`: write bases in upper case.
- Batches are padded on the right, and pass their attention mask; for `generate`, prompts of several lengths are padded on the left
  (`tokenizer.padding_side = "left"`), which the model puts right by the mask.
- Generated are A, C, G and T alone. Every new base is a whole forward pass: it suits short continuations.
- {end}
- The model reads from left to right: score the reverse complement too, where a strand should not matter.
"""
_PIPELINES = ("text-classification", "token-classification")
_LABELS = 20
"""That a card names."""
_VALIDATION = "validation_"
_USE_OF_HEAD = """\
## Use

```python
from transformers import AutoTokenizer, {auto}

folder = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = {auto}.from_pretrained(folder, trust_remote_code=True)
inputs = tokenizer("ACGTACGTACGT", return_tensors="pt")
logits = model(**inputs).logits
```

{meaning}, in the order of `model.config.id2label`: {labels}. `trust_remote_code` runs the Python files of this folder, which need
torch and transformers. Write bases in upper case, and pad batches on the right, with their attention mask.
"""
_NOTHING_KNOWN = """\
## Data, training and metrics

Nothing is known of them: this model was exported from weights alone, without the run that trained them.
"""


def model_card(
    title: str,
    config: ModelConfig,
    parameters: int,
    origin: Origin | None,
    training: Training | None,
    head: TaskHead | None = None,
) -> str:
    """The text of README.md; a shorter one, which says so, without an origin and what is known of the training; with a `head`,
    that of a fine-tuned model."""
    title = in_one_line(title, MOST_QUOTED)
    front = _FRONT if head is None else _FRONT.replace("text-generation", _PIPELINES[head.kind == "per_base"])
    use = _use(origin) if head is None else _use_of_head(head)
    sections = [f"{front}\n# {title}\n\n{_shape(config, parameters)}", use]
    if training is not None and (head is None or training.bases):
        sections.append(_trained_on(training, "Trained on" if head is None else "The backbone was trained on"))
    if origin is not None and head is not None:
        sections += [_task(origin), _training(origin).replace("hyena-ds train", "hyena-ds finetune")]
    elif origin is not None:
        sections += [_data(origin), _metrics(origin), _training(origin)]
    elif training is None:
        sections.append(_NOTHING_KNOWN)
    return "\n".join(sections)


def _use_of_head(head: TaskHead) -> str:
    names = [in_one_line(name, MOST_QUOTED) for name in head.classes[:_LABELS]]
    more = f" and {len(head.classes) - _LABELS} more" if len(head.classes) > _LABELS else ""
    auto = f"AutoModelFor{'Token' if head.kind == 'per_base' else 'Sequence'}Classification"
    meaning = {
        "classification": "`logits.softmax(-1)` are the probabilities of the classes",
        "per_base": "`logits.softmax(-1)` are the probabilities of the classes of every base",
        "multilabel": "`logits.sigmoid()` are the probabilities of the outputs",
        "regression": "`logits` are the numbers, in the unit of the labels",
    }[head.kind]
    return _USE_OF_HEAD.format(auto=auto, meaning=meaning, labels=", ".join(names) + more)


def _task(origin: Origin) -> str:
    """What it was fine-tuned on, and how well it did."""
    train = in_one_line(str(kept(origin.setting("task", "train"))), MOST_QUOTED)
    begin = in_one_line(str(kept(origin.record.config.get("initialize_from"))), MOST_QUOTED)
    test = origin.summary.get("test")
    test = test if isinstance(test, dict) else {}
    measured = test.get("metrics")
    rows = [(name.removeprefix(_VALIDATION), value) for row in origin.validations for name, value in row.items()]
    valid = {name: value for name, value in rows if f"{_VALIDATION}{name}" in origin.validations[-1]}
    tested = measured if isinstance(measured, dict) else {}
    table = markdown_table(
        ("", "validation", "test"), [(name, _said(valid, name), _said(tested, name)) for name in valid]
    )
    digest = f" SHA-256 of the test set: `{in_one_line(str(test['sha256']), MOST_QUOTED)}`." if "sha256" in test else ""
    return (
        f"## Data and metrics\n\nFine-tuned on `{train}`, from `{begin}`. The weights were chosen on a validation set; the test set "
        f"was opened once, afterwards.{digest}\n\n" + "\n".join(table) + "\n"
    )


def _said(values: dict[str, Any], name: str) -> str:
    value = values.get(name)
    return f"{value:.4f}" if isinstance(value, int | float) else ""


def ends_sequences(origin: Origin | None) -> bool:
    """Whether the model was trained on sequences that end with [SEP]."""
    return origin is not None and origin.setting("data", "append_end_token") is True


def _shape(config: ModelConfig, parameters: int) -> str:
    extended = ""
    if config.extension:
        extended = f" Its context was extended from {config.extended_from:,} tokens ({config.extension})."
    rows = [
        ("parameters", f"{parameters:,}"),
        ("layers", str(config.layers)),
        ("width", str(config.width)),
        ("longest input", f"{config.maximum_context:,} tokens"),
        ("shift of the filter's window", f"{config.filter_shift:g}"),
    ]
    table = "\n".join(markdown_table(("", ""), rows))
    return (
        "A HyenaDNA (arXiv 2306.15794), a causal language model of DNA with one token a base, trained and exported with "
        f"hyena-ds.{extended}\n\n{table}\n"
    )


def _use(origin: Origin | None) -> str:
    if ends_sequences(origin):
        end = (
            "The tokenizer ends every sequence with `[SEP]`, as in training; `add_special_tokens=False` leaves it out."
        )
    else:
        end = "The tokenizer adds no special token" + (": in training there was none." if origin else ".")
    return _USE.replace("{end}", end)


def _trained_on(training: Training, title: str) -> str:
    rows = []
    for assembly, contigs in training.bases.items():
        for contig, spans in contigs.items():
            bases = sum(end - start for start, end in merged(spans))
            ends = f"{min(start for start, _ in spans):,}", f"{max(end for _, end in spans):,}"
            rows.append((*(in_one_line(name, MOST_QUOTED) for name in (assembly, contig)), f"{bases:,}", *ends))
    table = "\n".join(markdown_table(("assembly", "chromosome", "bases", "from", "to"), rows))
    began = f" Training began from `{in_one_line(training.beginning, MOST_QUOTED)}`." if training.beginning else ""
    return (
        f"## {title}\n\n{table}\n\nThe longest sequences had {training.longest_context:,} tokens.{began} Scores of these "
        f"bases say little of others; `{TRAINING}` says it to programs.\n"
    )


def _data(origin: Origin) -> str:
    sources = origin.setting("data", "sources")
    places = [kept(source.get("shards")) for source in sources or () if isinstance(source, dict)]
    ignored = origin.setting("data", "ignore")
    lines = [
        f"Trained on {', '.join(f'`{in_one_line(str(place), MOST_QUOTED)}`' for place in places) or 'unknown shards'}"
    ]
    lines.append(
        f"(targets not scored: {', '.join(map(str, ignored)) or 'none'})." if isinstance(ignored, list) else "."
    )
    text = f"## Data\n\n{' '.join(lines)}\n"
    if origin.shards is None:
        return f"{text}\nThe list of its shards is not at hand, so its chromosomes cannot be named.\n"
    rows = list(_chromosomes(origin.shards))
    table = markdown_table(("source", "split", "chromosome", "chunks", "first begins at", "last begins at"), rows)
    digest = f"SHA-256 of the list of all shards: `{origin.shards.digest}`."
    return f"{text}\n" + "\n".join(table) + f"\n\nPositions count from 0. {digest}\n"


def _chromosomes(shards: ShardList) -> Iterator[tuple[str, ...]]:
    """A row for each chromosome of each split of each source, in the order of the shards."""
    starts: dict[tuple[int, str, str], list[int]] = {}
    for number, source in enumerate(shards.sources):
        for shard in source.shards:
            for chunk in shard.chunks:
                if match := _CHUNK.fullmatch(chunk):
                    starts.setdefault((number, shard.split, match["chromosome"]), []).append(int(match["start"]))
    for (number, split, chromosome), found in starts.items():
        name = in_one_line(chromosome, MOST_QUOTED)
        yield str(number), split, name, f"{len(found):,}", f"{min(found):,}", f"{max(found):,}"


def _metrics(origin: Origin) -> str:
    if not origin.validations:
        return "## Metrics\n\nNo validation of this run is at hand.\n"
    step = origin.validations[0]["step"]
    rows = [_quality(f"this model, context {row.get('context_length', 0):,}", row) for row in origin.validations]
    for order, loss in origin.summary.get("markov_losses", {}).items():
        rows.append((f"Markov chain of order {order}, counted on the training data", f"{loss:.4f}", "", ""))
    titles = ("", "nats a base", "bits a base", "perplexity")
    return (
        f"## Metrics\n\nOn the validation split, after step {step:,}:\n\n"
        + "\n".join(markdown_table(titles, rows))
        + "\n"
    )


def _quality(name: str, row: Row) -> tuple[str, ...]:
    values = (row.get(f"validation_{key}") for key in ("loss", "bits_per_base", "perplexity"))
    return name, *("" if value is None else f"{value:.4f}" for value in values)


def _training(origin: Origin) -> str:
    record = origin.record
    contexts = " then ".join(str(row.get("context_length")) for row in record.stages)
    grid = ", ".join(f"{name} {ranks}" for name, ranks in record.grid.items())
    versions = ", ".join(f"{name} {version}" for name, version in sorted(origin.versions.items()))
    lines = [
        f"{counted(record.state.step, 'step')}, {record.state.tokens:,} tokens, contexts of {contexts} tokens; "
        f"{counted(record.ranks, 'rank')} ({grid}), ZeRO stage {record.zero_stage}."
    ]
    if versions:
        lines.append(f"Versions: {in_one_line(versions)}.")
    run = shlex.quote(f"{record.config.get('output')}/{origin.name}")
    commands = f"```sh\nhyena-ds train config.yaml\nhyena-ds export {in_one_line(run, MOST_QUOTED)} OUT\n```"
    config = "".join(f"    {line}\n" for line in dump_yaml(kept(record.config)).splitlines())
    return "## Training\n\n" + "\n".join(lines) + f"\n\n{commands}\n\nwhere config.yaml is:\n\n{config}"
