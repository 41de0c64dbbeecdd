"""Images in tar archives, read in one stream, whole or damaged."""

import io
import os
import tarfile

import pytest

from showtell.pipeline.images.image_files import ImageFiles
from showtell.pipeline.images.tar import TarImages

from .conftest import CONTENTS


def test_members_are_streamed_in_any_order_from_a_folder_and_from_s3(
    tmp_path, upload, write_tar
) -> None:
    images = write_tar(tmp_path, "x/0.tar", CONTENTS) + write_tar(tmp_path, "1.tar", CONTENTS[:5])
    expected = CONTENTS + CONTENTS[:5]
    for root in (tmp_path, upload(tmp_path)):
        assert list(ImageFiles(root).stream(images)) == expected
        assert list(ImageFiles(root).stream(images[::-3])) == expected[::-3]
        places = {name: place for name, *place in images}
        assert ImageFiles(root, places).read("x/0.tar/00007.jpg") == CONTENTS[7]


def test_archive_behind_http_is_read_once_from_the_first_member_on(
    tmp_path, serve_folder, write_tar
) -> None:
    contents = [os.urandom(100_000) for _ in range(20)]
    images = write_tar(tmp_path, "0.tar", contents)
    served = serve_folder(tmp_path)
    assert list(ImageFiles(served.url).stream(images[5:15:2])) == contents[5:15:2]
    ranges = [wanted for method, _, wanted in served.requests if method == "GET"]
    assert len(ranges) == 1
    assert ranges[0].startswith(f"bytes={images[5][1] - 512}-")


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_long_and_foreign_names_are_found_in_every_format(tmp_path, format) -> None:
    names = ["./a.jpg", "é.jpg", "a/" * 60 + "x.jpg", "跑" * 20 + ".jpg"]
    with tarfile.open(tmp_path / "0.tar", "w", format=format) as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 3
            archive.addfile(info, io.BytesIO(b"abc"))
    with tarfile.open(tmp_path / "0.tar") as archive:
        images = [(f"0.tar/{m.name}", m.offset_data, m.size) for m in archive]
    assert list(ImageFiles(tmp_path).stream(images)) == [b"abc"] * 4


def test_images_behind_the_end_of_a_cut_archive_have_that_reason(tmp_path, write_tar) -> None:
    images = write_tar(tmp_path, "0.tar", CONTENTS)
    path = tmp_path / "0.tar"
    end = images[10][1] + 5
    path.write_bytes(path.read_bytes()[:end])
    images += write_tar(tmp_path, "1.tar", CONTENTS[:3])
    contents = list(ImageFiles(tmp_path).stream(images))
    assert contents[:10] == CONTENTS[:10]
    assert {str(error) for error in contents[10:30]} == {
        f"0.tar is damaged: it ends at byte {end:,}"
    }
    assert contents[30:] == CONTENTS[:3]


def test_archive_that_ends_before_a_member_does_not_end_where_that_starts(
    tmp_path, write_tar
) -> None:
    images = write_tar(tmp_path, "0.tar", CONTENTS)
    path = tmp_path / "0.tar"
    path.write_bytes(path.read_bytes()[: images[10][1]])
    start = images[20][1] - 512
    reasons = {str(error) for error in ImageFiles(tmp_path).stream(images[20:30])}
    assert reasons == {f"0.tar is damaged: it ends at or before byte {start:,}"}


def test_damaged_header_and_another_archive_are_found(tmp_path, write_tar) -> None:
    images = write_tar(tmp_path, "0.tar", CONTENTS)
    content = bytearray((tmp_path / "0.tar").read_bytes())
    content[images[3][1] - 400] ^= 1
    (tmp_path / "0.tar").write_bytes(content)
    contents = list(ImageFiles(tmp_path).stream(images))
    assert str(contents[3]).startswith(f"0.tar is damaged at byte {images[3][1] - 512:,}")
    assert contents[:3] + contents[4:] == CONTENTS[:3] + CONTENTS[4:]
    write_tar(tmp_path, "0.tar", CONTENTS[1:])
    first, *others = ImageFiles(tmp_path).stream(images)
    assert str(first) == (
        "0.tar has no member 00000.jpg at byte 512: it has changed since 'showtell prepare'"
    )
    assert not any(isinstance(content, bytes) for content in others)


def test_fingerprint_is_that_of_the_archive(tmp_path, write_tar) -> None:
    images = write_tar(tmp_path, "0.tar", CONTENTS)
    names = [name for name, *_ in images]
    before = ImageFiles(tmp_path).fingerprints([*names, "1.tar/x.jpg"])
    assert before.pop() is None
    assert len(set(before)) == 1
    write_tar(tmp_path, "0.tar", CONTENTS[1:])
    assert set(before).isdisjoint(ImageFiles(tmp_path).fingerprints(names))


def test_archive_that_is_gone_is_the_reason_of_all_its_images(tmp_path, write_tar, upload) -> None:
    images = write_tar(tmp_path, "0.tar", CONTENTS)
    remote = ImageFiles(upload(tmp_path))
    assert remote.fingerprints(["0.tar/0", "9.tar/0"])[1] is None
    contents = list(remote.stream([("9.tar/0", 512, 5), ("9.tar/1", 512, 5), *images]))
    assert [content.errno is not None for content in contents[:2]] == [True, True]
    assert contents[2:] == CONTENTS


def test_place_that_is_not_known_is_an_error(tmp_path, write_tar) -> None:
    write_tar(tmp_path, "0.tar", CONTENTS)
    with pytest.raises(OSError, match=r"0.tar: the place of 00000.jpg is not known"):
        ImageFiles(tmp_path).read("0.tar/00000.jpg")


def test_member_larger_than_any_image_is_refused_unread(tmp_path, write_tar) -> None:
    write_tar(tmp_path, "0.tar", CONTENTS)
    reader = TarImages(str(tmp_path / "0.tar"), "0.tar")
    with pytest.raises(OSError, match=r"0.tar: member a has 1,073,741,824 bytes"):
        reader.read("a", 512, 1 << 30)
    reader.close()
