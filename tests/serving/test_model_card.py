from showtell.model.runs.run import RunConfig
from showtell.serving.config import ExportConfig
from showtell.serving.hub import with_repository
from showtell.serving.model_card import model_card
from showtell.serving.onnx_runtime import ONNX_PACKAGES

REPO = "user/flickr8k-gru"


def test_card_of_onnx_graphs_names_the_repository(data, tmp_path) -> None:
    config = ExportConfig(data=data, run="r", output=tmp_path / "mine", onnx=True)
    card = model_card("mine", RunConfig.read(data / "runs/r"), [], config)
    assert 'OnnxCaptioner.load("mine")' in card
    card = with_repository(card, REPO)
    assert f'OnnxCaptioner.load("hf:{REPO}")' in card and "mine" not in card.split("## Use")[1]
    assert f"pip install {' '.join(ONNX_PACKAGES)} huggingface_hub\n" in card
