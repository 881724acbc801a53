"""Models of real architectures with random weights, a few kilobytes each, saved to disk."""

from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import ByteLevel, WhitespaceSplit
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLModel,
    Qwen2Config,
    Qwen2Model,
    Qwen2Tokenizer,
    Qwen2VLModel,
    Siglip2Model,
    Siglip2Tokenizer,
    SiglipModel,
    set_seed,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil
from transformers.utils import is_torchvision_available

from b3_core.multimodal import read_frames_as_images


def tokenizer(texts) -> PreTrainedTokenizerFast:
    words = sorted({word for text in texts for word in text.split()})
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *words])}
    model = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    model.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="[PAD]", unk_token="[UNK]", model_max_length=32
    )


def byte_tokenizer(**marks: str) -> Qwen2Tokenizer:
    """Qwen2's own class, a token a byte: with another it would not be loaded as what it is."""
    vocabulary = {byte: number for number, byte in enumerate(sorted(ByteLevel.alphabet()), 1)}
    return Qwen2Tokenizer(
        vocab={"<|endoftext|>": 0, **vocabulary}, merges=[], pad_token="<|endoftext|>", **marks
    )


def save(model, tokens, folder: Path, pooling: str) -> Path:
    """Save a transformer and its tokenizer as a sentence-transformers model."""
    plain = folder / "plain"
    model.save_pretrained(plain)
    tokens.save_pretrained(plain)
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
        return save(BertModel(config), tokenizer(texts), folder, "mean")


def clip(texts, folder: Path) -> Path:
    """A CLIP whose texts are embedded by its text tower and projection."""
    with torch.random.fork_rng():
        set_seed(0)
        tower = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
        ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
        config = CLIPConfig(
            text_config={
                **tower,
                **ends,
                "vocab_size": len(tokenizer(texts)),
                "num_hidden_layers": 2,
                "max_position_embeddings": 32,
            },
            vision_config={**tower, "num_hidden_layers": 1, "image_size": 16, "patch_size": 8},
            projection_dim=8,
        )
        plain = folder / "plain"
        CLIPModel(config).save_pretrained(plain)
    CLIPImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    ).save_pretrained(plain)
    tokenizer(texts).save_pretrained(plain)
    return plain


def siglip(texts, folder: Path) -> Path:
    """A SigLIP of fixed resolution: the last of a text's 24 places is what it is pooled from."""
    processor = SiglipImageProcessorPil(size={"height": 16, "width": 16})
    vision = {"image_size": 16, "patch_size": 8}
    return _siglip(SiglipModel, vision, processor, tokenizer(texts), folder=folder)


def siglip2(folder: Path) -> Path:
    """A SigLIP 2 of any proportions (NaFlex): patches of pictures are padded, too."""
    marks = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    pieces = [*marks, *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdefghijklmnopqrstuvwxyz"]
    letters = Siglip2Tokenizer({piece: number for number, piece in enumerate(pieces)}, [])
    vision = {"num_patches": 4, "patch_size": 16}
    return _siglip(Siglip2Model, vision, Siglip2ImageProcessorPil(), letters, folder=folder)


def _siglip(kind, vision, processor, tokens, *, folder: Path) -> Path:
    plain = folder / "plain"
    tower = {
        **{"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32},
        "num_hidden_layers": 1,
    }
    with torch.random.fork_rng():
        set_seed(0)
        config = kind.config_class(
            text_config={
                **tower,
                "vocab_size": len(tokens),
                "max_position_embeddings": 24,
                "pad_token_id": 0,
                "bos_token_id": 1,
                "eos_token_id": 1,
            },
            vision_config={**tower, **vision},
        )
        kind(config).save_pretrained(plain)
    processor.save_pretrained(plain)
    tokens.save_pretrained(plain)
    return plain


def qwen2(texts, folder: Path) -> Path:
    """A decoder, pooled by the mean until somebody asks for the last token."""
    with torch.random.fork_rng():
        set_seed(0)
        config = Qwen2Config(
            vocab_size=257,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=32,
            max_position_embeddings=64,
            pad_token_id=0,
        )
        return save(Qwen2Model(config), byte_tokenizer(), folder, "mean")


#: Qwen2-VL's own marks, and its way of saying where images stand.
MARKS = [
    *("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|image_pad|>", "<|video_pad|>"),
]
QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
CHAT = """{% for message in messages %}<|im_start|>{{ message['role'] }}
{% for part in message['content'] %}{% if part['type'] == 'image' %}\
<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}\
<|im_end|>
{% endfor %}"""


def qwen2_vl(folder: Path) -> Path:
    """A vision-language model, pooled by the last token."""
    vision = {"embed_dim": 16, "hidden_size": 16, "mlp_ratio": 2}
    return _qwen_vl(Qwen2VLModel, vision, folder)


def qwen2_5_vl(folder: Path) -> Path:
    """The next of its family: attention within windows of pictures, in all layers but one."""
    vision = {"hidden_size": 16, "out_hidden_size": 16, "intermediate_size": 32}
    windows = {"window_size": 56, "fullatt_block_indexes": [1]}
    return _qwen_vl(Qwen2_5_VLModel, {**vision, **windows}, folder)


def _qwen_vl(kind, vision, folder: Path) -> Path:
    read_frames_as_images()
    plain = folder / "plain"
    tokens = byte_tokenizer()
    tokens.add_special_tokens({"extra_special_tokens": MARKS})
    start, end, image, video = (tokens.convert_tokens_to_ids(mark) for mark in MARKS[2:])
    turning = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    with torch.random.fork_rng():
        set_seed(0)
        config = kind.config_class(
            text_config={**_decoder(tokens), "rope_parameters": turning},
            vision_config={"depth": 2, "num_heads": 2, "patch_size": 14, **vision},
            vision_start_token_id=start,
            vision_end_token_id=end,
            image_token_id=image,
            video_token_id=video,
        )
        Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=56 * 56).save_pretrained(plain)
        plain.joinpath("chat_template.jinja").write_text(CHAT)
        return save(kind(config), tokens, folder, "lasttoken")


#: InternVL's marks by the names that its processor asks for them by.
INTERN_MARKS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}


def internvl(folder: Path) -> Path:
    """An InternVL, saved as published ones are: with the head that writes, and a plain folder."""
    read_frames_as_images()
    tokens = byte_tokenizer(**INTERN_MARKS)
    tokens.add_special_tokens({"extra_special_tokens": [*INTERN_MARKS.values(), *MARKS[:2]]})
    with torch.random.fork_rng():
        set_seed(0)
        config = InternVLConfig(
            text_config={"model_type": "qwen2", **_decoder(tokens)},
            vision_config={
                **{"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32},
                **{"num_hidden_layers": 1, "image_size": [28, 28], "patch_size": [7, 7]},
            },
            image_token_id=tokens.convert_tokens_to_ids("<IMG_CONTEXT>"),
            image_seq_length=4,
        )
        InternVLForConditionalGeneration(config).save_pretrained(folder)
    InternVLProcessor(
        GotOcr2ImageProcessorPil(size={"height": 28, "width": 28}, crop_to_patches=True),
        tokens,
        *([InternVLVideoProcessor()] if is_torchvision_available() else []),
        image_seq_length=4,
        chat_template=CHAT.replace(QWEN_IMAGE, "<IMG_CONTEXT>"),
    ).save_pretrained(folder)
    return folder


def _decoder(tokens):
    return {
        "vocab_size": len(tokens),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 32,
        "max_position_embeddings": 512,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
