import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from showtell.features.reading.decode import decode_image
from showtell.features.reading.limits import MAX_PIXELS
from showtell.features.reading.transform import Transform
from showtell.model.metrics import clip_score
from showtell.model.metrics.clip_score import (
    ClipModel,
    ClipScore,
    RefClipScore,
    read_image,
    scaled_cosines,
)
from showtell.model.metrics.metric import CaptionSet
from showtell.pipeline.captions import read_images
from showtell.pipeline.images.image_files import ImageFiles
from showtell.pipeline.stage.errors import DatasetError, MissingArtifactError, ScorerError


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory) -> Path:
    """An untrained CLIP model whose vocabulary is single letters, as transformers saves it."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(code) + end for code in range(97, 123) for end in ("", "</w>")]
    words = [*letters, "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    layers = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    layers |= {"num_attention_heads": 2}
    ids = {"bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    config = transformers.CLIPConfig(
        text_config=layers | ids | {"vocab_size": len(words), "max_position_embeddings": 77},
        vision_config=layers | {"image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    torch.manual_seed(0)
    transformers.CLIPModel(config).save_pretrained(folder)
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor = transformers.CLIPImageProcessor(**sizes)
    transformers.CLIPProcessor(processor, tokenizer).save_pretrained(folder)
    return folder


def test_scaled_cosines_equal_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    images, texts = rng.normal(size=(2, 9, 4))
    images[0], texts[1] = texts[0], -images[1]
    expected = []
    for image, text in zip(images, texts, strict=True):
        dot = sum(a * b for a, b in zip(image, text, strict=True))
        expected.append(2.5 * max(dot / (math.hypot(*image) * math.hypot(*text)), 0))
    found = scaled_cosines(torch.from_numpy(images), torch.from_numpy(texts))
    assert found == pytest.approx(expected)
    assert found[:2] == pytest.approx([2.5, 0])


def test_scores_compare_each_image_with_its_prompted_caption(tiny_clip, prepared_scenes) -> None:
    captions_dir = prepared_scenes / "scenes" / "captions"
    images = read_images(captions_dir / "images.parquet")
    captions = ["a red square", "", "stars " * 99, "a cat", "z"]
    hypotheses = dict(zip(images.image_ids[:5].tolist(), captions, strict=True))
    found = ClipScore(tiny_clip).score(CaptionSet(hypotheses, {}, {}, captions_dir))
    loaded = ClipModel.load(tiny_clip)
    model, processor = loaded.model, loaded.processor
    for index, caption in enumerate(captions):
        path = prepared_scenes / "scenes/raw" / images.file_names[index]
        image = read_image(ImageFiles(path.parent), path.name)
        text = f"A photo depicts {caption}"
        limits = {"truncation": True, "max_length": 77}
        inputs = processor(text=text, images=image, return_tensors="pt", **limits)
        with torch.inference_mode():
            cosine = float(model(**inputs).logits_per_image / model.logit_scale.exp())
        assert found[index] == pytest.approx(2.5 * max(cosine, 0), abs=1e-5)
    assert len(set(found.round(6))) > 1


def cosine(first: list[float], second: list[float]) -> float:
    return sum(a * b for a, b in zip(first, second, strict=True)) / (
        math.hypot(*first) * math.hypot(*second)
    )


def embed_one_by_one(model, tokenizer, texts: list[str]) -> list[list[float]]:
    """Embed texts in float64, one at a time."""
    found = []
    for text in texts:
        inputs = tokenizer(f"A photo depicts {text}", return_tensors="pt")
        with torch.inference_mode():
            output = model.get_text_features(**inputs)
        found.append(getattr(output, "pooler_output", output)[0].tolist())
    return found


def test_ref_clip_score_equals_a_plain_loop_in_float64(tiny_clip, prepared_scenes) -> None:
    captions_dir = prepared_scenes / "scenes" / "captions"
    images = read_images(captions_dir / "images.parquet")
    hypotheses = dict(zip(images.image_ids[:3].tolist(), ["a dog", "", "stars"], strict=True))
    listed = [["A dog!", "two dogs run"], ["a cat"], ["Red", "blue", "stars"]]
    references = dict(zip(hypotheses, listed, strict=True))
    captions = CaptionSet(hypotheses, {}, {}, captions_dir, references=references)
    clip_score = ClipScore(tiny_clip)
    found = RefClipScore(clip_score).score(captions)

    loaded = ClipModel.load(tiny_clip)
    model, tokenizer = loaded.model.double(), loaded.processor.tokenizer
    for index, (image_id, text) in enumerate(hypotheses.items()):
        path = prepared_scenes / "scenes/raw" / images.file_names[index]
        inputs = loaded.processor.image_processor(
            images=read_image(ImageFiles(path.parent), path.name), return_tensors="pt"
        )
        with torch.inference_mode():
            output = model.get_image_features(inputs["pixel_values"].double())
        image = getattr(output, "pooler_output", output)[0].tolist()
        candidate, *others = embed_one_by_one(model, tokenizer, [text, *references[image_id]])
        score = 2.5 * max(cosine(image, candidate), 0)
        nearest = max(max(cosine(candidate, other) for other in others), 0)
        expected = 2 * score * nearest / (score + nearest) if score + nearest else 0.0
        assert found[index] == pytest.approx(expected, abs=1e-6)
        assert clip_score.score(captions)[index] == pytest.approx(score, abs=1e-6)
    assert len(set(found.round(6))) > 1


def test_siglip_is_a_clip_too(tmp_path, prepared_scenes) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    layers = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    layers |= {"num_attention_heads": 2}
    config = transformers.SiglipConfig(
        text_config=layers | {"vocab_size": 30, "max_position_embeddings": 16},
        vision_config=layers | {"image_size": 32, "patch_size": 16},
    )
    torch.manual_seed(0)
    transformers.SiglipModel(config).save_pretrained(tmp_path)
    letters = {"<pad>": 0, "<unk>": 1} | {chr(97 + i): i + 2 for i in range(26)}
    model = tokenizers.models.WordLevel(letters, unk_token="<unk>")
    split = tokenizers.Tokenizer(model)
    split.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=split, pad_token="<pad>", unk_token="<unk>"
    )
    size = {"height": 32, "width": 32}
    image_processor = transformers.SiglipImageProcessor(size=size)
    transformers.SiglipProcessor(image_processor, tokenizer).save_pretrained(tmp_path)
    captions_dir = prepared_scenes / "scenes" / "captions"
    ids = read_images(captions_dir / "images.parquet").image_ids[:2].tolist()
    texts = dict(zip(ids, ["a dog", "one red star"], strict=True))
    references = {image_id: [text] for image_id, text in texts.items()}
    captions = CaptionSet(texts, {}, {}, captions_dir, references=references)
    clip_score = ClipScore(tmp_path)
    found, with_references = clip_score.score(captions), RefClipScore(clip_score).score(captions)
    # A caption that equals its reference has similarity 1.
    assert with_references == pytest.approx(2 * found / (found + 1), abs=1e-6)


def test_a_model_without_text_is_refused(tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.ViTModel(config).save_pretrained(tmp_path)
    transformers.ViTImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(MissingArtifactError, match="holds a ViTModel, which does not embed both"):
        ClipModel.load(tmp_path)


def test_inputs_change_with_the_weights(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(clip_score, "find_spec", lambda name: True)
    with pytest.raises(MissingArtifactError, match=r"holds no CLIP model; expected config\.json"):
        ClipScore(tmp_path).inputs()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"one")
    one = ClipScore(tmp_path).inputs()
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert set(one) == {"clip"} and ClipScore(tmp_path).inputs() != one


def test_missing_transformers_is_an_error_with_the_command(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(clip_score, "find_spec", lambda name: None)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(ScorerError, match=r"Run pip install 'showtell\[clip\]'"):
        ClipScore(tmp_path).inputs()


def test_damaged_model_is_an_error(tmp_path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(MissingArtifactError, match="cannot be loaded as a CLIP model"):
        ClipModel.load(tmp_path)


def test_missing_or_corrupt_image_is_an_error_with_its_name(tmp_path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    for name in ("gone.jpg", "broken.jpg"):
        with pytest.raises(DatasetError, match=rf"CLIPScore cannot read .*{name}"):
            read_image(ImageFiles(tmp_path), name)


def test_large_jpeg_that_features_accept_is_read(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2 * MAX_PIXELS)
    Image.new("L", (9500, 9500), 77).save(tmp_path / "large.jpg")
    Image.new("L", (4000, 3000), 77).save(tmp_path / "photo.jpg")
    content = (tmp_path / "large.jpg").read_bytes()
    transform = Transform(224, 256, "bilinear", (0.5,) * 3, (0.5,) * 3)
    assert decode_image(content, transform).size == (1188, 1188)
    image = read_image(ImageFiles(tmp_path), "large.jpg")
    assert image.size == (2375, 2375) and image.getpixel((0, 0)) == (77, 77, 77)
    assert read_image(ImageFiles(tmp_path), "photo.jpg").size == (4000, 3000)
