"""The command `serve`: load a model, and caption the images of a web page and an HTTP API."""

import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

import numpy as np

from ...features.device import keep_freed_memory
from ...model.generation.options import DecodingOptions
from ...model.runs.hub import PREFIX as HUB_PREFIX
from ...pipeline.stage.console import is_quiet, print_json, print_note, print_result
from ...pipeline.stage.errors import ConfigError
from ..captioner import Captioner
from ..config import chosen_decoding
from ..load import load
from .config import ServeConfig

LIBRARIES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")


def serve(config: ServeConfig) -> None:
    """Serve a model until Ctrl-C or SIGTERM.

    Raises:
        ConfigError: a library is missing, or the address cannot be used.
        MissingArtifactError: there is no such run or bundle.
    """
    require_libraries()
    from .app import create_app
    from .listen import Server, bind, run_server, set_up_logs, url_of
    from .metrics import Metrics
    from .service import CaptionService

    listener = bind(config.host, config.port)  # before the model is loaded, which takes seconds
    keep_freed_memory()
    captioner = load(
        config.model,
        data=config.data,
        weights=config.weights,
        device=config.device,
        precision=config.precision,
        max_pixels=config.max_pixels,
    )
    defaults = captioner.decoding_options(**chosen_decoding(config, config.given))
    # In another thread: OpenMP gives each thread that computes as many helpers as there are cores,
    # and their waiting becomes slow once there are more helpers than cores.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(warm_up, captioner, defaults).result()
    service = CaptionService(captioner, config, defaults, Metrics())
    model = describe(captioner)
    if config.model is not None and config.model.startswith(HUB_PREFIX):
        model["name"] = config.model  # its folder is named after a commit
    server = Server(create_app(service, config, model), service, config.stop_timeout)
    set_up_logs(logging.WARNING if is_quiet() else logging.INFO)
    url = url_of(listener)
    print_result(f"Captioning with {model['name']} at {url} (Ctrl-C stops)")
    print_json({"url": url, "model": model["name"]})
    sys.stdout.flush()  # a log reads it while the server runs
    run_server(server, listener)
    print_note("Stopped: every accepted request was answered.")


def require_libraries() -> None:
    """Check that the extra `serve` is installed.

    Raises:
        ConfigError: a library of it is missing.
    """
    missing = [name for name in LIBRARIES if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"'showtell serve' needs {', '.join(missing)}. Run pip install 'showtell[serve]', or "
            "pip install -e '.[serve]' in a checkout."
        )


def warm_up(captioner: Captioner, options: DecodingOptions) -> None:
    """Caption a gray image, so that the first request is fast, and options are known to work.

    Raises:
        MissingArtifactError: features or captions that `consensus` needs are missing.
    """
    size = captioner.backbone.transform.crop_size
    captioner.caption_pixels([np.full((options.views, 3, size, size), 128, np.uint8)], options)


def describe(captioner: Captioner) -> dict[str, Any]:
    """Return what `/model` tells about a model.

    `crop` is the side of the square in the middle of an image that the model sees, as a fraction
    of the image's shorter side; null if it sees the whole image. Attention covers this part.
    """
    transform = captioner.backbone.transform
    return {
        "name": captioner.folder.resolve().name,
        "encoder": captioner.run.backbone["encoder"],
        "has_attention": captioner.decoder.uses_grid,
        "crop": transform.resize_size and transform.crop_size / transform.resize_size,
    }
