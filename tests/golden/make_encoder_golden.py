"""Writes the folders encoder_* of this directory: tiny random sentence encoders and their vectors.

    pip install torch sentence-transformers
    python tests/golden/make_encoder_golden.py

sentence-transformers saves each folder and encodes TEXTS; vectors.npz has the results, by prompt.
"""

from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer, models
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import (
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3Model,
    XLMRobertaConfig,
    XLMRobertaModel,
)

HERE = Path(__file__).parent
WORDS = "soap tea green small red candle for the garden cat hungry query passage : .".split()
TEXTS = ["green tea", "Soap for the cat", "", "candle " * 30, "unknown words here", "red"]
SIZES = {"num_hidden_layers": 2, "intermediate_size": 14, "num_attention_heads": 2}
BERT = SIZES | {"hidden_size": 12, "max_position_embeddings": 20}
QWEN3 = SIZES | {"hidden_size": 12, "head_dim": 8, "num_key_value_heads": 1}


def tokenizer(specials, template, **names) -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate([*specials, *WORDS])}
    made = Tokenizer(WordLevel(vocabulary, unk_token=names["unk_token"]))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    used = [(word, vocabulary[word]) for word in specials if word in template]
    made.post_processor = processors.TemplateProcessing(single=template, special_tokens=used)
    return PreTrainedTokenizerFast(tokenizer_object=made, **names)


def save(name, model, words, pooling, prompts, normalises, dense, max_tokens) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for path, weight in model.named_parameters():
            weight.normal_(1.0 if "norm" in path.lower() and "weight" in path else 0.0, 0.4)
    plain = HERE / f".{name}"
    model.save_pretrained(plain)
    words.save_pretrained(plain)
    transformer = models.Transformer(str(plain), max_seq_length=max_tokens)
    width = transformer.get_word_embedding_dimension()
    parts = [transformer, models.Pooling(width, pooling)]
    if dense:
        parts.append(models.Dense(width, 5, activation_function=torch.nn.Tanh()))
        with torch.no_grad():
            for weight in parts[-1].parameters():
                weight.normal_(0.0, 0.4)
    if normalises:
        parts.append(models.Normalize())
    encoder = SentenceTransformer(modules=parts, prompts=prompts, device="cpu")
    folder = HERE / name
    encoder.save(str(folder), create_model_card=False)
    vectors = {"plain": encoder.encode(TEXTS)}
    for prompt in prompts:
        vectors[prompt] = encoder.encode(TEXTS, prompt_name=prompt)
    np.savez_compressed(folder / "vectors.npz", **vectors)
    for path in plain.iterdir():
        path.unlink()
    plain.rmdir()


def main() -> None:
    of_bert = tokenizer(
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]"],
        "[CLS] $A [SEP]",
        unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
    )  # fmt: skip
    of_roberta = tokenizer(
        ["<s>", "<pad>", "</s>", "<unk>"],
        "<s> $A </s>",
        unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>",
    )  # fmt: skip
    of_qwen = tokenizer(
        ["<pad>", "<unk>", "<end>"],
        "$A <end>",
        unk_token="<unk>", pad_token="<pad>", eos_token="<end>",
    )  # fmt: skip
    of_qwen.padding_side = "left"
    bert = BertModel(BertConfig(vocab_size=len(of_bert), **BERT), add_pooling_layer=False)
    save("encoder_bert", bert, of_bert, "mean", {}, True, False, 16)
    bert = BertModel(BertConfig(vocab_size=len(of_bert), hidden_act="relu", **BERT))
    save("encoder_dense", bert, of_bert, "cls", {}, False, True, 16)
    roberta = XLMRobertaConfig(
        vocab_size=len(of_roberta), pad_token_id=1, type_vocab_size=1, **BERT
    )
    prompts = {"query": "query: ", "document": "passage: "}
    save("encoder_roberta", XLMRobertaModel(roberta), of_roberta, "mean", prompts, True, False, 12)
    qwen = Qwen3Config(vocab_size=len(of_qwen), tie_word_embeddings=False, **QWEN3)
    prompts = {"query": "for the query: "}
    save("encoder_qwen3", Qwen3Model(qwen), of_qwen, "lasttoken", prompts, True, False, 24)


if __name__ == "__main__":
    main()
