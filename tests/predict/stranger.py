"""A program of somebody who has torch and transformers and a folder, and cannot import hyena_ds.

    python stranger.py CASE.json    cwd anywhere; answers.safetensors and said.json are written beside the case

B batch, L tokens, V vocabulary.
"""

from __future__ import annotations

import importlib.abc
import json
import sys
from pathlib import Path
from typing import Any

FORBIDDEN = ("hyena_ds", "tests", "data_prep")


class Refuse(importlib.abc.MetaPathFinder):
    """Nothing of this repository is here."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.split(".")[0] in FORBIDDEN:
            raise ModuleNotFoundError(f"No module named '{name}' (refused)")


sys.meta_path.insert(0, Refuse())

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch import Tensor  # noqa: E402
from transformers import (  # noqa: E402
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

answers: dict[str, Tensor] = {}
said: dict[str, Any] = {}


def opened(auto: Any, folder: str, **more: Any) -> Any:
    return auto.from_pretrained(folder, trust_remote_code=True, **more)


def refusal(action: Any) -> str:
    try:
        action()
    except (ValueError, ImportError) as error:
        return str(error)
    return "nothing"


@torch.no_grad()
def language_model(folder: str, inputs: dict[str, Tensor]) -> None:
    model = opened(AutoModelForCausalLM, folder)
    assert not model.training
    for name, ids_BL in inputs.items():
        answers[f"logits {name}"] = model(ids_BL).logits
    base = opened(AutoModel, folder)
    ids_BL = inputs["short"]
    found = base(ids_BL, output_hidden_states=True)
    answers["hidden"] = found.last_hidden_state
    said["states"] = len(found.hidden_states)
    said["last state is the hidden"] = torch.equal(found.hidden_states[-1], found.last_hidden_state)
    answers["first state"] = found.hidden_states[0]
    embedded = model(inputs_embeds=model.get_input_embeddings()(ids_BL)).logits
    said["embedded"] = torch.equal(embedded, answers["logits short"])
    said["a tuple"] = torch.equal(model(ids_BL, return_dict=False)[0], embedded)
    said["too long"] = refusal(lambda: model(torch.full((1, model.config.max_seq_len + 1), 7)))
    said["hyena_ds"] = refusal(lambda: __import__("hyena_ds"))


@torch.no_grad()
def padding(folder: str) -> None:
    """The largest difference that padding, on either side and in between, makes to a sequence's logits."""
    model, pad = opened(AutoModelForCausalLM, folder), 4
    rows = [torch.randint(7, 12, (length,), generator=torch.Generator().manual_seed(length)) for length in (40, 3, 17)]
    alone = [model(row.unsqueeze(0)).logits[0] for row in rows]
    for place in ("right", "left", "within"):
        ids, mask = torch.full((3, 50), pad), torch.zeros((3, 50), dtype=torch.long)
        where = []
        for number, row in enumerate(rows):
            first = {"right": 0, "left": 50 - len(row), "within": 5}[place]
            at = torch.arange(first, first + len(row))
            at[1:] += 2 * (place == "within")  # after the first token a gap of two
            ids[number, at], mask[number, at] = row, 1
            where.append(at)
        logits = model(ids, attention_mask=mask).logits
        said[f"padding {place}"] = max(
            float((logits[number, at] - wanted).abs().max())
            for number, (at, wanted) in enumerate(zip(where, alone, strict=True))
        )
        noise = model(ids.masked_fill(mask == 0, 9), attention_mask=mask, labels=ids).loss
        said[f"loss, padding {place}"] = [float(noise), float(model(ids, attention_mask=mask, labels=ids).loss)]
    said["largest logit"] = max(float(one.abs().max()) for one in alone)
    for pooling in ("mean", "maximum", "last"):
        torch.manual_seed(0)
        classifier = opened(AutoModelForSequenceClassification, folder, pooling=pooling)
        ids, mask = torch.full((3, 50), pad), torch.zeros((3, 50), dtype=torch.long)
        for number, row in enumerate(rows):
            ids[number, : len(row)], mask[number, : len(row)] = row, 1
        singles = torch.cat([classifier(row.unsqueeze(0)).logits for row in rows])
        hidden = [classifier.hyena(row.unsqueeze(0)).last_hidden_state[0] for row in rows]
        pooled = {
            "mean": lambda h: h.mean(0),
            "maximum": lambda h: h.amax(0),
            "last": lambda h: h[-1],
        }
        wanted = torch.stack([classifier.score(pooled[pooling](h)) for h in hidden])
        found = {"mask": classifier(ids, attention_mask=mask).logits, "ids": classifier(ids).logits, "alone": singles}
        said[f"pooling {pooling}"] = {name: float((logits - wanted).abs().max()) for name, logits in found.items()}
    said["unknown pooling"] = refusal(lambda: opened(AutoModelForSequenceClassification, folder, pooling="median"))


def gradients(folder: str, ids_BL: Tensor) -> None:
    for name, recompute in (("gradient", False), ("recomputed", True)):
        model = opened(AutoModelForCausalLM, folder, embed_dropout=0.0).train()
        if recompute:
            model.gradient_checkpointing_enable()
        loss = model(ids_BL, labels=ids_BL).loss
        loss.backward()
        answers[f"{name} loss"] = loss.detach()
        for parameter, value in model.named_parameters():
            answers[f"{name} {parameter}"] = value.grad


def classification(folder: str) -> None:
    """One step on a task that a mean over the letters solves."""
    torch.manual_seed(1)
    model = opened(AutoModelForSequenceClassification, folder, num_labels=3, embed_dropout=0.0).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    ids = torch.randint(7, 11, (6, 48))
    ids[torch.rand(ids.shape) < 0.5] = 7
    ids = torch.where(torch.rand(ids.shape) < 0.4, labels.unsqueeze(1) + 8, ids)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for _ in range(2):
        loss = model(ids, labels=labels).loss
        losses.append(float(loss))
        optimizer.zero_grad()
        loss.backward()
        said.setdefault(
            "first gradients",
            {n: [bool(p.grad.isfinite().all()), float(p.grad.abs().max())] for n, p in model.named_parameters()},
        )
        optimizer.step()
    said["losses"] = losses
    said["unmoved"] = [name for name, value in model.state_dict().items() if torch.equal(value, before[name])]
    one = opened(AutoModelForSequenceClassification, folder, num_labels=1)
    said["regression"] = [float(one(ids, labels=labels.float()).loss), float(F_mse(one, ids, labels.float()))]
    many = opened(AutoModelForSequenceClassification, folder, num_labels=3)
    targets = torch.nn.functional.one_hot(labels, 3).float()
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(many(ids).logits, targets)
    said["several labels"] = [float(many(ids, labels=targets).loss), float(wanted)]


def F_mse(model: Any, ids: Tensor, labels: Tensor) -> Tensor:
    return ((model(ids).logits[:, 0] - labels) ** 2).mean()


def generation(folder: str) -> None:
    model, tokenizer = opened(AutoModelForCausalLM, folder), opened(AutoTokenizer, folder)
    ids = torch.tensor([[7, 8, 9, 10, 7, 7]])
    drawn = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        drawn.append(model.generate(ids, max_new_tokens=40, do_sample=True)[0].tolist())
    said["drawn"] = drawn
    prompts = ["ACGTACGTTT", "GATTACAGATTACAGATTACA", "C"]
    tokenizer.padding_side = "left"
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    together = model.generate(**batch, max_new_tokens=12, do_sample=False)[:, batch["input_ids"].shape[1] :]
    alone = [
        model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=12, do_sample=False)[0, len(prompt) :]
        for prompt in prompts
    ]
    said["together"], said["alone"] = together.tolist(), [one.tolist() for one in alone]
    greedy = ids
    for _ in range(12):
        logits = model(greedy).logits[:, -1, 7:11]
        greedy = torch.cat((greedy, logits.argmax(-1, keepdim=True) + 7), 1)
    said["greedy"] = [greedy[0].tolist(), model.generate(ids, max_new_tokens=12, do_sample=False)[0].tolist()]
    tokenizer.padding_side = "right"
    right = tokenizer(prompts, return_tensors="pt", padding=True)
    said["right"] = refusal(lambda: model.generate(**right, max_new_tokens=1))


def tokens(folder: str, texts: list[str]) -> None:
    tokenizer = opened(AutoTokenizer, folder)
    said["ids"] = [tokenizer(text)["input_ids"] for text in texts]
    said["plain ids"] = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    said["text"] = tokenizer.decode(tokenizer("GATTACAN", add_special_tokens=False)["input_ids"])
    said["longest"] = tokenizer.model_max_length
    batch = tokenizer(["ACG", "A"], padding=True, return_tensors="pt", add_special_tokens=False)
    said["batch"] = {name: value.tolist() for name, value in batch.items()}
    said["special"] = {
        role: getattr(tokenizer, f"{role}_token_id") for role in ("cls", "sep", "bos", "mask", "pad", "unk")
    }


def round_trip(folder: str, place: Path) -> None:
    """Through save_pretrained and from_pretrained, weights, code and tokenizer."""
    model = opened(AutoModelForCausalLM, folder)
    model.save_pretrained(place)
    opened(AutoTokenizer, folder).save_pretrained(place)
    again = opened(AutoModelForCausalLM, str(place))
    said["bits in memory"] = all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    )
    saved, exported = load_file(place / "model.safetensors"), load_file(Path(folder) / "model.safetensors")
    said["keys on disk"] = sorted(saved) == sorted(exported)
    said["bits on disk"] = all(torch.equal(saved[name], exported[name]) for name in exported)
    said["ids again"] = opened(AutoTokenizer, str(place))("ACGTN")["input_ids"]


@torch.no_grad()
def half_precision(folder: str, ids_BL: Tensor) -> None:
    model = opened(AutoModelForCausalLM, folder, dtype=torch.bfloat16)
    said["dtypes"] = {name: str(value.dtype) for name, value in model.named_parameters()}
    answers["half"] = model(ids_BL).logits.float()
    with torch.autocast("cpu", torch.bfloat16):
        answers["autocast"] = opened(AutoModelForCausalLM, folder)(ids_BL).logits.float()


def begun(folder: str) -> None:
    """A model of the same shape without a file: every part is made, and none is what memory held."""
    config = opened(AutoModelForCausalLM, folder).config
    torch.manual_seed(2)
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    said["begun"] = {name: [float(value.mean()), float(value.std())] for name, value in model.named_parameters()}


def main() -> None:
    case = json.loads(Path(sys.argv[1]).read_text())
    place = Path(sys.argv[1]).parent
    inputs = load_file(case["inputs"])
    folder = case["folder"]
    language_model(folder, inputs)
    for name, other in case["others"].items():
        with torch.no_grad():
            answers[f"other {name}"] = opened(AutoModelForCausalLM, other)(inputs["middle"]).logits
    said["ids with an end"] = opened(AutoTokenizer, case["ended"])("ACG")["input_ids"]
    padding(folder)
    gradients(folder, inputs["short"])
    classification(folder)
    generation(folder)
    tokens(folder, case["texts"])
    round_trip(folder, place / "again")
    half_precision(folder, inputs["short"])
    begun(folder)
    save_file({name: value.detach().contiguous() for name, value in answers.items()}, place / "answers.safetensors")
    (place / "said.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main()
