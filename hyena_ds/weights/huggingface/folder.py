"""A model as a folder that the transformers library opens with `trust_remote_code=True`, without this package.

    model, parameters --> config.json  generation_config.json  model.safetensors  tokenizer.json  tokenizer_config.json
                          configuration_hyenadna.py  modeling_hyenadna.py  heads_hyenadna.py

Keys are the published ones behind `hyena.`, as in the published `-hf` folders; the head is the embedding, and is not there
twice; that of a fine-tuned model is behind `dense.` and `score.`, with the names of its labels in config.json. The tokenizer is data alone: every character is a token, in the published vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from hyena_ds.config.model import ModelConfig
from hyena_ds.genome.tokenizer import LETTERS, PAD, SEP, SPECIALS, VOCABULARY, N
from hyena_ds.weights.heads import TaskHead
from hyena_ds.weights.published import published_names, published_tensors
from hyena_ds.weights.tensor_file import safetensors_chunks

_CODE = tuple(Path(__file__).with_name(f"{kind}_hyenadna.py") for kind in ("configuration", "modeling", "heads"))
_CONFIGURATION, _MODELING, _HEADS = _CODE
PREFIX = "hyena."
_ROLES = ("cls", "sep", "bos", "mask", "pad", "unk")


def huggingface_files(
    config: ModelConfig, parameters: dict[str, Tensor], end_token: bool, head: TaskHead | None = None
) -> dict[str, Iterable[bytes | memoryview]]:
    """The folder's files by name, each in chunks that are made when they are asked for. With `end_token` the tokenizer ends every sequence with [SEP], as the model was trained.

    With the `head` of a fine-tuned model, what it predicts is the folder's purpose.
    """
    tensors, header = published_tensors(config, parameters)
    each_once = {f"{PREFIX}{name}": tensors[name] for name in published_names(config.layers).values()}
    if head is not None:
        each_once |= head.in_label_units()
    return {
        "config.json": [_json(_config(config) | (_of_head(head) if head is not None else {}))],
        "generation_config.json": [_json(_generation())],
        "model.safetensors": safetensors_chunks(each_once, {"format": "pt", **header}),
        **{code.name: [code.read_bytes()] for code in _CODE},
        "tokenizer.json": [_json(_tokenizer(end_token))],
        "tokenizer_config.json": [_json(_tokenizer_config(config))],
    }


def _config(config: ModelConfig) -> dict[str, Any]:
    classes = {
        "AutoConfig": (_CONFIGURATION, "HyenaDNAConfig"),
        "AutoModel": (_MODELING, "HyenaDNAModel"),
        "AutoModelForCausalLM": (_MODELING, "HyenaDNAForCausalLM"),
        "AutoModelForSequenceClassification": (_HEADS, "HyenaDNAForSequenceClassification"),
        "AutoModelForTokenClassification": (_HEADS, "HyenaDNAForTokenClassification"),
    }
    extended = {"extension": config.extension, "extended_from": config.extended_from}
    return {
        "architectures": ["HyenaDNAForCausalLM"],
        "auto_map": {auto: f"{file.stem}.{name}" for auto, (file, name) in classes.items()},
        "model_type": "hyenadna",
        "dtype": "float32",
        "vocab_size": VOCABULARY,
        "d_model": config.width,
        "n_layer": config.layers,
        "d_inner": config.mlp_width,
        "max_seq_len": config.maximum_context,
        **(extended if config.extension else {}),
        "emb_dim": config.filter_features,
        "filter_order": config.filter_width,
        "activation_freq": config.filter_frequency,
        "shift": config.filter_shift,
        "embed_dropout": config.embedding_dropout,
        "resid_dropout": config.residual_dropout,
        "pad_token_id": PAD,
        "tie_word_embeddings": True,
        "use_cache": False,
    }


def _of_head(head: TaskHead) -> dict[str, Any]:
    names = dict(enumerate(head.classes))
    problems = {
        "classification": "single_label_classification",
        "multilabel": "multi_label_classification",
        "regression": "regression",
    }
    model = "HyenaDNAForTokenClassification" if head.kind == "per_base" else "HyenaDNAForSequenceClassification"
    return {
        "architectures": [model],
        "id2label": names,
        "label2id": {name: number for number, name in names.items()},
        "pooling": head.pooling,
        "head_hidden": head.hidden,
        "head_bias": True,
        **({"problem_type": problems[head.kind]} if head.kind in problems else {}),
    }


def _generation() -> dict[str, Any]:
    """Bases only, and no end: `max_new_tokens` says how many."""
    bases = [token for letter, token in LETTERS.items() if token != N]
    suppressed = [token for token in range(VOCABULARY) if token not in bases]
    return {"pad_token_id": PAD, "suppress_tokens": suppressed, "use_cache": False}


def _tokenizer(end_token: bool) -> dict[str, Any]:
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    pieces = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "[SEP]", "type_id": 0}}]
    ending = {
        "type": "TemplateProcessing",
        "single": pieces,
        "pair": [*pieces, {"Sequence": {"id": "B", "type_id": 0}}, pieces[1]],
        "special_tokens": {"[SEP]": {"id": "[SEP]", "ids": [SEP], "tokens": ["[SEP]"]}},
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": token, "content": name, **special} for name, token in SPECIALS.items()],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": ending if end_token else None,
        "decoder": {"type": "Fuse"},
        # Byte pair encoding without a pair: every character is a token.
        "model": {
            "type": "BPE",
            "vocab": {**SPECIALS, **LETTERS},
            "merges": [],
            "unk_token": "[UNK]",
            "fuse_unk": False,
            "byte_fallback": False,
        },
    }


def _tokenizer_config(config: ModelConfig) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.maximum_context,
        "padding_side": "right",
        "truncation_side": "right",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "eos_token": "[SEP]",
        **{f"{role}_token": f"[{role.upper()}]" for role in _ROLES},
    }


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
