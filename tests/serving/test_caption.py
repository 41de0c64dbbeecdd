from PIL import Image

from showtell.model.generation.options import DecodingOptions
from showtell.serving import caption as caption_module
from showtell.serving.caption import caption_files
from showtell.serving.images import find_images


def test_image_above_the_limit_is_named_without_a_warning(
    captioner, tmp_path, capsys, recwarn, monkeypatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2999)
    monkeypatch.setattr(captioner, "max_pixels", 2999)
    path = tmp_path / "large.png"
    Image.new("L", (100, 30)).save(path)
    assert caption_files(captioner, [path], DecodingOptions()) == 1
    expected = f"error: {path} is not a readable image: has 3,000 pixels, more than --max-pixels"
    assert capsys.readouterr().err == f"{expected} 2,999.\n"
    assert not [warning for warning in recwarn if "PIL" in warning.filename]


def test_missing_file_is_named_and_the_others_are_captioned(
    captioner, folder, tmp_path, capsys
) -> None:
    missing, there = tmp_path / "nosuch.jpg", next(find_images([folder]))
    assert caption_files(captioner, [missing, there], DecodingOptions()) == 1
    captured = capsys.readouterr()
    assert captured.err == f"error: {missing} cannot be read: No such file or directory.\n"
    assert captured.out.startswith(f"{there}: ")


def test_caption_files_prints_a_line_for_each_image(captioner, folder, capsys) -> None:
    assert caption_files(captioner, [folder], DecodingOptions()) == 0
    paths = list(find_images([folder]))
    expected = captioner.caption(paths)
    printed = capsys.readouterr().out.splitlines()
    assert printed == [f"{p}: {text}" for p, text in zip(paths, expected, strict=True)]


def test_caption_files_prints_n_best_captions_below_the_path(captioner, folder, capsys) -> None:
    path = next(find_images([folder]))
    options = DecodingOptions(beam=4, n_best=3, length_penalty=0.0)
    assert caption_files(captioner, [path], options) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    found = [(float(line.split()[0]), " ".join(line.split()[1:])) for line in lines]
    assert head == f"{path}:" and len(set(found)) == 3
    assert found == sorted(found, reverse=True)
    assert found[0][1] == captioner.caption(path, beam=4, length_penalty=0.0)[0]


def test_caption_files_continues_after_an_unreadable_image(
    captioner, folder, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(caption_module, "BATCH_SIZE", 2)
    (folder / "b.png").write_bytes(b"not an image")
    (folder / "d.PNG").write_bytes(b"")
    assert caption_files(captioner, [folder], DecodingOptions(beam=1)) == 2
    captured = capsys.readouterr()
    assert [line.split(": ")[0] for line in captured.out.splitlines()] == [
        str(folder / name) for name in ("a/c.png", "a.png")
    ]
    errors = captured.err.splitlines()
    assert [line.split(" is not")[0] for line in errors] == [
        f"error: {folder / name}" for name in ("b.png", "d.PNG")
    ]
