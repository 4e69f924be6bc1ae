"""The index of a cohort: every image stands on a page, links lead where they should, names are words."""

from __future__ import annotations

import os
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from PIL import Image

from pyrtrav.errors import ConfigError
from pyrtrav.explain.gallery import ENTRIES_A_PAGE, THUMBNAIL_SIDE, Entry, save_thumbnail, write_index
from pyrtrav.pyramid import open_pyramid
from pyrtrav.pyramid.array import ArrayPyramid
from tests.browser import chromium, opened
from tests.samples import IMAGES
from tests.trees import grown_tree, noise, record

HOSTILE = "<script>alert(1)</script>\"'&%23#?/..//:javascript:.svs"


class Links(HTMLParser):
    """What a page links to and shows."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.page, self.links, self.pictures, self.ids = page, [], [], set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "a":
            self.links.append(found["href"] or "")
        if tag == "img":
            self.pictures.append(found["src"] or "")
        if found.get("id"):
            self.ids.add(found["id"])

    def files(self) -> list[Path]:
        """The files behind links and pictures, as a browser finds them."""
        parts = [urlsplit(link) for link in [*self.links, *self.pictures]]
        assert not any(part.scheme or part.netloc for part in parts)
        return [self.page.parent / os.fsdecode(unquote(part.path, errors="surrogateescape")) for part in parts]


def entries(count: int) -> list[Entry]:
    return [Entry(f"slide {i}.svs", label="lesion", probability=0.9) for i in range(count)]


def pages(folder: Path) -> list[str]:
    return sorted((path.name for path in folder.glob("*.html")), key=lambda name: (len(name), name))


def test_every_link_leads_to_its_file(tmp_path: Path) -> None:
    """Names that mean something to a browser, a shell or nobody; files beside, above and below the folder."""
    found = []
    for i, name in enumerate(("a b.json", "c%20d#e?f.json", "ü:x.json", "q\"'<>&.json", os.fsdecode(b"\xe4.json"))):
        place = (tmp_path / "trees", tmp_path / "index", tmp_path / "index" / "deep")[i % 3]
        place.mkdir(exist_ok=True, parents=True)
        (place / name).write_text("{}")
        Image.new("RGB", (9, 9)).save(place / f"{name}.png")
        found.append(Entry(name, label="x", thumbnail=place / f"{name}.png", links={"tree": place / name}))
    index = write_index(tmp_path / "index", found)
    read = Links(index)
    assert len(read.links) == len(read.pictures) == 5
    assert [path.resolve() for path in read.files()[:5]] == [entry.links["tree"].resolve() for entry in found]
    assert all(path.is_file() for path in read.files())


def test_pages_hold_everyone_once_and_stay_usable(tmp_path: Path) -> None:
    count = 3 * ENTRIES_A_PAGE + 1
    write_index(tmp_path, entries(count), title="cohort")
    names = pages(tmp_path)
    assert names == ["index.html", "page-2.html", "page-3.html", "page-4.html"]
    shown: list[str] = []
    for name in names:
        text = (tmp_path / name).read_text()
        shown += re.findall(r'<div class="name"><bdi>(.*?)</bdi>', text)
        assert all(path.is_file() for path in Links(tmp_path / name).files())
        assert len(text) < 200_000
    assert shown == [f"slide {i}.svs" for i in range(count)]
    assert Links(tmp_path / "index.html").links[:3] == ["page-2.html", "page-3.html", "page-4.html"]


def test_ten_thousand_slides(tmp_path: Path) -> None:
    """What has not changed is not written again: fifty pages, of which two change as images are added."""
    done = entries(10_000)
    write_index(tmp_path, done[:9_990], total=10_000)
    before = {name: (tmp_path / name).stat().st_ino for name in pages(tmp_path)}
    write_index(tmp_path, done, total=10_000)
    after = {name: (tmp_path / name).stat().st_ino for name in pages(tmp_path)}
    assert len(after) == 50
    assert {name for name in after if after[name] != before[name]} == {"index.html", "page-50.html"}
    assert max((tmp_path / name).stat().st_size for name in after) < 200_000


def test_an_index_of_fewer_images_leaves_no_old_pages(tmp_path: Path) -> None:
    write_index(tmp_path, entries(2 * ENTRIES_A_PAGE + 1))
    (tmp_path / "page-9.html").write_text("not ours")
    write_index(tmp_path, entries(1))
    assert pages(tmp_path) == ["index.html", "page-9.html"]
    write_index(tmp_path, [])
    assert "0 images done" in (tmp_path / "index.html").read_text()


def test_failures_are_named_first_and_link_to_their_place(tmp_path: Path) -> None:
    done = entries(ENTRIES_A_PAGE + 5)
    bad = Entry(f"bad {HOSTILE}", status="error", error="level 0, tile column 3, row 4: no <JPEG>")
    done[ENTRIES_A_PAGE + 2] = bad
    write_index(tmp_path, done, total=10_000)
    text = (tmp_path / "index.html").read_text()
    assert "205 of 10,000 images done" in text
    assert "1 failed" in text
    assert "tile column 3, row 4: no &lt;JPEG&gt;" in text
    (link,) = [link for link in Links(tmp_path / "index.html").links if "#" in link]
    page, _, place = link.partition("#")
    assert page == "page-2.html"
    assert place in Links(tmp_path / page).ids
    assert "lesion</bdi>: 204" in text


def test_the_index_is_shown_anew_until_all_are_done(tmp_path: Path) -> None:
    for total, again in ((9, True), (3, False), (None, False)):
        text = write_index(tmp_path, entries(3), total=total).read_text()
        assert ('http-equiv="refresh"' in text) == again
        assert ("<progress" in text) == again


def test_entries_of_records(tmp_path: Path) -> None:
    good = record("a.svs", 12)
    bad = {key: good[key] for key in ("schema", "version", "image", "input")} | {
        "status": "error",
        "error": {"type": "CorruptImageError", "message": "truncated"},
    }
    entry = Entry.of(good, links={"tree": tmp_path / "a.json"})
    assert (entry.image, entry.label, entry.probability, entry.error) == ("a.svs", "lesion", 0.97, None)
    assert entry.cost == "12 looks, 61 of 41,310 tiles"
    failed = Entry.of(bad)
    assert (failed.status, failed.label, failed.error, failed.cost) == ("error", None, "truncated", "")


@pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.name)
def test_thumbnails_are_small(image: Path, tmp_path: Path) -> None:
    with open_pyramid(image) as pyramid:
        path = save_thumbnail(pyramid, tmp_path)
        assert save_thumbnail(pyramid, tmp_path) == path
        shape = pyramid.bounds.width / pyramid.bounds.height
    with Image.open(path) as thumbnail:
        assert max(thumbnail.size) == THUMBNAIL_SIDE
        assert thumbnail.width / thumbnail.height == pytest.approx(shape, rel=0.02)
    assert path.stat().st_size < 20_000
    assert len(list((tmp_path / "thumbnails").iterdir())) == 1


def test_thin_images_have_thumbnails(tmp_path: Path) -> None:
    save_thumbnail(ArrayPyramid(noise(1, 5000)), tmp_path)


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used as a folder"):
        write_index(tmp_path / "file", [])


def test_in_a_browser(tmp_path: Path) -> None:
    """Thumbnails are shown, names run no scripts, links are followed; nothing comes from a network."""
    done = []
    for image in IMAGES:
        with open_pyramid(image) as pyramid:
            tree = grown_tree(pyramid, 1)
            tree.save(tmp_path / f"{image.name}.json")
            done.append(
                Entry.of(
                    tree.record | {"image": image.name},
                    thumbnail=save_thumbnail(pyramid, tmp_path / "index"),
                    links={"tree": tmp_path / f"{image.name}.json"},
                )
            )
    done.append(Entry(HOSTILE, status="error", error=HOSTILE))
    index = write_index(tmp_path / "index", done, title=f"cohort {HOSTILE}", total=12)
    with chromium() as browser, opened(browser, index) as page:
        page.on("dialog", lambda dialog: pytest.fail(f"a script of the name ran: {dialog.message}"))
        widths = page.eval_on_selector_all("img", "all => all.map((one) => one.naturalWidth)")
        assert len(widths) == len(IMAGES)
        assert min(widths) > 50
        assert page.title() == f"cohort {HOSTILE}"
        assert page.locator(".failed .name").inner_text() == HOSTILE
        page.screenshot(path=tmp_path / "index.png")
        page.get_by_text("tree").first.click()
        page.wait_for_load_state()
        assert page.url == (tmp_path / f"{IMAGES[0].name}.json").as_uri()
