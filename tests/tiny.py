"""Models of real architectures with random weights, a few kilobytes each, saved to disk."""

from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Model,
    set_seed,
)


def tokenizer(texts) -> PreTrainedTokenizerFast:
    words = sorted({word for text in texts for word in text.split()})
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *words])}
    model = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    model.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="[PAD]", unk_token="[UNK]", model_max_length=32
    )


def save(model, texts, folder: Path, pooling: str) -> Path:
    """Save a transformer and its tokenizer as a sentence-transformers model."""
    plain = folder / "plain"
    model.save_pretrained(plain)
    tokenizer(texts).save_pretrained(plain)
    module = Transformer(str(plain))
    pooled = Pooling(module.get_embedding_dimension(), pooling)
    SentenceTransformer(modules=[module, pooled], device="cpu").save_pretrained(
        str(folder / "model"), create_model_card=False
    )
    return folder / "model"


def bert(texts, folder: Path, *, dropout: float = 0.1) -> Path:
    with torch.random.fork_rng():
        set_seed(0)
        config = BertConfig(
            vocab_size=len(tokenizer(texts)),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=32,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
        return save(BertModel(config), texts, folder, "mean")


def qwen2(texts, folder: Path) -> Path:
    """A decoder, pooled by the mean until somebody asks for the last token."""
    with torch.random.fork_rng():
        set_seed(0)
        config = Qwen2Config(
            vocab_size=len(tokenizer(texts)),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=32,
            max_position_embeddings=32,
            pad_token_id=0,
        )
        return save(Qwen2Model(config), texts, folder, "mean")
