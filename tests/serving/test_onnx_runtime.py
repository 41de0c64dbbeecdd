import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from showtell.model.runs import find
from showtell.model.runs.layout import DECODER_ONNX_NAME, ENCODER_ONNX_NAME, VOCAB_TXT_NAME
from showtell.pipeline.stage.errors import (
    ConfigError,
    DamagedFileError,
    DatasetError,
    MissingArtifactError,
)
from showtell.serving import onnx_runtime
from showtell.serving.captioner import Captioner
from showtell.serving.config import ExportConfig
from showtell.serving.export import export
from showtell.serving.onnx_runtime import ONNX_PACKAGES, OnnxCaptioner

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

HUB = ("user/name", "v2")
ONNX_FILES = (ENCODER_ONNX_NAME, DECODER_ONNX_NAME, VOCAB_TXT_NAME)


@pytest.fixture(scope="module")
def bundle(data, tmp_path_factory) -> Path:
    """Run `r` as a bundle with ONNX graphs."""
    out: Path = tmp_path_factory.mktemp("onnx") / "bundle"
    export(ExportConfig(data=data, run="r", output=out, onnx=True))
    return out


@pytest.fixture(scope="module")
def onnx_captioner(bundle) -> OnnxCaptioner:
    return OnnxCaptioner.load(bundle, threads=1)


@pytest.mark.parametrize(
    "options",
    [
        {"beam": 1, "length_penalty": 0.7},
        {"beam": 5, "n_best": 5, "length_penalty": 0.7},
        {"beam": 3, "length_penalty": 0.0, "min_length": 4, "max_length": 7, "no_repeat_ngram": 2},
    ],
    ids=str,
)
def test_captions_are_those_of_torch(
    onnx_captioner, captioner: Captioner, image_paths, monkeypatch, options
) -> None:
    monkeypatch.setattr(onnx_runtime, "BATCH_SIZE", 7)
    found = onnx_captioner.caption(image_paths, details=True, **options)
    expected = captioner.caption(image_paths, details=True, **options)
    assert len({of_image[0].text for of_image in found}) > 3
    for pairs in zip(found, expected, strict=True):
        for ours, theirs in zip(*pairs, strict=True):
            assert ours.text == theirs.text
            # Run `r` depends strongly on the image, so features rounded otherwise show.
            assert ours.log_prob == pytest.approx(theirs.log_prob, abs=2e-3)
            assert ours.score == pytest.approx(theirs.score, abs=2e-3)
            assert [token.text for token in ours.tokens] == [token.text for token in theirs.tokens]
            assert sum(token.log_prob for token in ours.tokens) == pytest.approx(
                ours.log_prob, abs=1e-4
            )


def test_decoding_options_of_the_bundle_are_used(data, onnx_captioner, image_paths) -> None:
    expected = onnx_captioner.caption(image_paths, beam=5, length_penalty=1.0)
    assert onnx_captioner.caption(image_paths) == expected


def test_images_of_any_kind_get_the_same_caption(onnx_captioner, image_paths) -> None:
    path = image_paths[0]
    image = Image.open(path).convert("RGB")
    kinds = [path, str(path), path.read_bytes(), image, np.asarray(image)]
    assert len({*onnx_captioner.caption(kinds)}) == 1
    assert onnx_captioner.caption(path) == onnx_captioner.caption([path])
    assert onnx_captioner.caption([]) == []


def test_captioning_needs_only_the_listed_packages(bundle, image_paths) -> None:
    root = Path(onnx_runtime.__file__).parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["onnx"]]
    names = {re.match(r"[\w-]+", each)[0].lower() for each in needed}
    others = names - {*ONNX_PACKAGES}
    assert {"torch", "torchvision", "onnx", "h5py", "pyarrow"} <= others
    code = (
        "import sys\n"
        "from importlib.metadata import packages_distributions\n"
        "for module, packages in packages_distributions().items():\n"
        f"    if {others!r} & {{package.lower() for package in packages}}:\n"
        "        sys.modules[module] = None  # importing it fails\n"
        "from showtell.serving.onnx_runtime import OnnxCaptioner\n"
        f"print(OnnxCaptioner.load({str(bundle)!r}).caption({str(image_paths[0])!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("['"), done.stderr
    command = f"pip install {' '.join(ONNX_PACKAGES)}\n"
    assert command in (bundle / "README.md").read_text("utf-8")
    assert command in (root / "docs/onnx.md").read_text("utf-8")


def test_bundle_is_found_by_its_name_and_on_the_hub(bundle, monkeypatch) -> None:
    monkeypatch.setattr(find, "fetch_bundle", lambda *address: bundle if address == HUB else None)
    assert OnnxCaptioner.load("hf:user/name@v2", threads=1).vocab.words
    with pytest.raises(MissingArtifactError, match=r"models/flickr8k has no ONNX graphs"):
        OnnxCaptioner.load("flickr8k")


@pytest.mark.parametrize(
    "options",
    [{"consensus": 5, "beam": 2}, {"sample": True}, {"views": 2}, {"preset": "consensus"}],
)
def test_option_that_needs_torch_is_refused(onnx_captioner, image_paths, options) -> None:
    name = next(iter(options))
    with pytest.raises(ConfigError, match=rf"^{name}=.* is not supported .* Supported: beam, "):
        onnx_captioner.caption(image_paths[0], **options)


def test_unreadable_image_is_named(onnx_captioner, tmp_path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"not an image")
    with pytest.raises(DatasetError, match=r"broken\.jpg is not a readable image"):
        onnx_captioner.caption(tmp_path / "broken.jpg")


def test_bundle_without_graphs_is_refused(data, bundle, tmp_path) -> None:
    plain = tmp_path / "plain"
    export(ExportConfig(data=data, run="r", output=plain))
    with pytest.raises(
        MissingArtifactError, match=r"has no ONNX graphs.*'showtell export r \S+plain --onnx'"
    ):
        OnnxCaptioner.load(plain)
    with pytest.raises(MissingArtifactError, match="nowhere"):
        OnnxCaptioner.load(tmp_path / "nowhere")


def test_vocabulary_is_written_in_the_order_of_the_ids(bundle, captioner) -> None:
    assert (bundle / VOCAB_TXT_NAME).read_text("utf-8").splitlines() == [*captioner.vocab.words]


def test_graphs_are_deleted_by_an_export_without_them(data, bundle, tmp_path) -> None:
    again = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    export(ExportConfig(data=data, run="r", output=again))
    assert not {path.name for path in again.iterdir()} & {*ONNX_FILES}


def test_damaged_graph_is_named(bundle, tmp_path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    path = copy / DECODER_ONNX_NAME
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DamagedFileError, match=r"decoder\.onnx.*'showtell export r \S+ --onnx'"):
        OnnxCaptioner.load(copy)
    with pytest.raises(DamagedFileError, match=r"decoder\.onnx"):
        onnx_runtime.open_graph(path, 1, ["CPUExecutionProvider"])


def test_missing_onnxruntime_is_named(bundle, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"pip install 'showtell\[onnx\]'"):
        OnnxCaptioner.load(bundle)
