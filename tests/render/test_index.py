"""`render all`, and the page that it makes, in a browser too."""

from __future__ import annotations

import html
import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from render.browser import Browser, find_browser
from typer.testing import CliRunner, Result

from filmstrip import render
from filmstrip.render._index import NAME, write_index
from filmstrip.render._plan import LeftOut
from filmstrip.render._source import open_sources
from filmstrip.render.cli import app
from filmstrip.store import FrameSpec, bit_histogram, create_run, summarize

HOSTILE = ("<script>document.title='owned'</script>", "a b#c?d%20", "x[1]", "{step}", "l'\"&amp;")
needs_browser = pytest.mark.skipif(
    find_browser() is None, reason="no Chromium here: apt-get install chromium"
)


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def write(path: Path, layers: tuple[str, ...], steps: range, bad: str = "") -> None:
    """Write a run whose layer ``bad`` has a NaN from its second step on."""
    rng = np.random.default_rng(0)
    with create_run(path) as run:
        spec = FrameSpec((1, 4, 5, 5), "float32", layout="NCHW")
        writer = run.writer("activations", dict.fromkeys(layers, spec))
        statistics = run.statistics_writer("activations", layers)
        for step in steps:
            frames = {name: rng.normal(size=spec.shape).astype(np.float32) for name in layers}
            if bad and step != steps[0]:
                frames[bad][0, 0, 0, 0] = np.nan
            writer.append(step, frames)
            statistics.append(
                step,
                np.stack([summarize(frame) for frame in frames.values()]),
                np.stack([bit_histogram(frame) for frame in frames.values()]),
            )
            run.log(step, {"train/loss": 1 / (step + 1)})


def damage(strip: Path) -> None:
    """Make the frames of a strip unreadable."""
    for chunk in strip.glob("c*"):
        chunk.write_bytes(b"x" * chunk.stat().st_size)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the page of a run whose layers have names that could do harm, at three steps."""
    folder = tmp_path_factory.mktemp("pages")
    write(folder / "run.zarr", (*HOSTILE, "plain"), range(0, 30, 10), bad="plain")
    result = call("all", folder / "run.zarr", "--step", "all", "--dpi", "60")
    assert result.exit_code == 0, result.output
    return folder / "run-pictures" / NAME


def addresses(page: Path) -> list[str]:
    """Return what a page refers to, at its last step and at the others."""
    text = page.read_text()
    found = re.findall(r'(?:src|href)="([^"#][^"]*)"', text)
    moving = re.findall(r'data-steps="([\d,]+)" data-path="([^"]+)"', text)
    found += [
        path.replace("{step}", f"{int(step):08d}", 1)
        for steps, path in moving
        for step in steps.split(",")
    ]
    return [html.unescape(one) for one in found if not one.startswith("data:")]


def test_everything_that_a_run_holds_is_drawn(run_path: Path, tmp_path: Path) -> None:
    result = call("all", run_path, "-o", tmp_path)

    assert result.exit_code == 0, result.output
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png")}
    activations, weights = ("conv1", "relu1", "fc"), ("conv1.weight", "fc.weight", "fc.bias")
    layers = [("activations", one) for one in activations] + [("weights", one) for one in weights]
    layers.append(("gradients", "fc.weight"))
    assert names == {
        *(f"{kind}/{layer}/grid-00000040.png" for kind, layer in layers),
        *(f"{kind}/{layer}/histogram-heatmap.png" for kind, layer in layers),
        "activations/curve-l2-log.png",
        "weights/curve-l2-log.png",
        "scalars/accuracy/curve.png",
        "scalars/train.loss/curve.png",
    }
    assert "drawing 18 pictures, about " in result.stderr
    assert f"look at {tmp_path / NAME}" in result.stderr


def test_kinds_and_layers_can_be_chosen(run_path: Path, tmp_path: Path) -> None:
    result = call("all", run_path, "fc*", "--kind", "weights", "-o", tmp_path, "--step", "0,20")

    assert result.exit_code == 0, result.output
    grids = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("grid-*.png")}
    assert grids == {
        f"weights/{layer}/grid-000000{step}.png"
        for layer in ("fc.weight", "fc.bias")
        for step in ("00", "20")
    }
    assert not (tmp_path / "scalars").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--kind inputs", "inputs"),
        ("rellu1", "relu1"),
        ("rellu1 --kind activations", "relu1"),
        ("--step 1:9 --kind images", "images"),
        ("conv1 --kind scalars", "scalars have no layers"),
    ],
)
def test_what_is_nowhere_is_one_line(
    words: str, message: str, run_path: Path, tmp_path: Path
) -> None:
    result = call("all", run_path, *words.split(), "-o", tmp_path / "out")

    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_step_that_a_layer_lacks_leaves_out_its_grid_only(run_path: Path, tmp_path: Path) -> None:
    result = call("all", run_path, "--kind", "gradients", "--step", "17", "-o", tmp_path)

    assert result.exit_code == 0, result.output
    assert [path.name for path in tmp_path.rglob("*.png")] == ["histogram-heatmap.png"]
    assert "nearest kept: 10 and 20" in (tmp_path / NAME).read_text()


def test_a_dry_run_says_how_many_and_how_big_and_writes_nothing(
    run_path: Path, tmp_path: Path
) -> None:
    result = call("all", run_path, "--dry-run", "-o", tmp_path / "out")

    assert result.stdout.splitlines()[-1] == "would draw 18 pictures, keep 0"
    assert re.fullmatch(r"about 1\.\d MB\n", result.stderr)
    assert not (tmp_path / "out").exists()


def test_thousands_of_pictures_are_drawn_only_when_that_is_meant(
    run_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("filmstrip.render.cli._MANY", 17)

    refused = call("all", run_path, "-o", tmp_path)
    drawn = call("all", run_path, "-o", tmp_path, "--yes", "--quiet")
    again = call("all", run_path, "-o", tmp_path)

    assert refused.exit_code == 1
    assert refused.stderr.startswith("filmstrip: that would be 18 pictures, about 1.")
    assert "say --yes" in refused.stderr
    assert drawn.exit_code == 0
    assert drawn.output == ""
    assert again.stdout.startswith("drew 0 pictures, kept 18")


def test_a_single_step_has_a_histogram_of_its_own(tmp_path: Path) -> None:
    write(tmp_path / "run.zarr", ("a",), range(1))

    call("all", tmp_path / "run.zarr")

    names = {path.name for path in (tmp_path / "run-pictures/activations/a").iterdir()}
    assert names == {"grid-00000000.png", "histogram-single-00000000.png"}


def test_a_layer_without_frames_is_named_with_the_reason(tmp_path: Path) -> None:
    spec = FrameSpec((2, 3), "float32", layout="OI")
    with create_run(tmp_path / "run.zarr") as run:
        writer = run.writer("weights", {"used": spec, "never": spec})
        writer.append(0, {"used": np.ones((2, 3), np.float32)})

    result = call("all", tmp_path / "run.zarr")

    page = (tmp_path / "run-pictures" / NAME).read_text()
    assert result.exit_code == 0, result.output
    assert "<code>weights/never</code>: never has no committed steps yet" in page


def test_what_has_nothing_to_show_is_named_and_no_failure(tmp_path: Path) -> None:
    path, out = tmp_path / "run.zarr", tmp_path / "out"
    shapes = {"fc": (2, 3), "nan": (2, 3), "none": (2, 0)}
    with create_run(path) as run:
        specs = {name: FrameSpec(shape, "float32", layout="NC") for name, shape in shapes.items()}
        writer = run.writer("activations", specs)
        for step in range(2):
            frames = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
            frames["nan"][:] = np.nan
            writer.append(step, frames)
            run.log(step, {"loss": 1.0, "bad": float("nan")})

    result = call("all", path, "-o", out)

    assert result.exit_code == 0, result.output
    assert "filmstrip: " not in result.stderr
    shown = (out / NAME).read_text()
    missing = shown[shown.index('id="not-drawn"') :]
    assert "bad has no finite value" in missing
    assert "nan has no finite values at these steps" in missing
    assert "nothing to draw: the array has shape 2×0" in missing
    assert (out / "scalars/loss/curve.png").is_file()
    assert call("histogram", path, "nan", "-o", out).exit_code == 1


def test_scalars_are_a_kind_of_their_own(run_path: Path, tmp_path: Path) -> None:
    result = call("all", run_path, "--kind", "scalars", "-o", tmp_path)

    assert result.exit_code == 0, result.output
    assert sorted(path.parent.name for path in tmp_path.rglob("*.png")) == [
        "accuracy",
        "train.loss",
    ]
    for command in ("grid", "histogram", "animation"):
        refused = call(command, run_path, "loss", "--kind", "scalars", "-o", tmp_path)
        told = f"filmstrip: scalars are curves: filmstrip render curve {run_path}\n"
        assert (refused.exit_code, refused.stderr) == (1, told)


def test_statistics_without_frames_are_drawn(tmp_path: Path) -> None:
    with create_run(tmp_path / "run.zarr") as run:
        statistics = run.statistics_writer("weights", ["w"])
        for step in (0, 10):
            frame = np.arange(9.0, dtype=np.float32)
            statistics.append(step, summarize(frame)[None], bit_histogram(frame)[None])

    result = call("all", tmp_path / "run.zarr")

    names = {path.name for path in (tmp_path / "run-pictures").rglob("*.png")}
    assert result.exit_code == 0, result.output
    assert names == {"histogram-heatmap.png", "curve-l2-log.png"}


def test_a_run_that_holds_nothing_is_one_line(tmp_path: Path) -> None:
    with create_run(tmp_path / "run.zarr"):
        pass

    result = call("all", tmp_path / "run.zarr")

    assert result.exit_code == 1
    assert "nothing of run.zarr can be drawn" in result.stderr


def test_every_address_of_a_page_is_a_picture_and_every_picture_is_in_it(hostile: Path) -> None:
    folder = hostile.parent

    paths = {unquote(address) for address in addresses(hostile)}

    assert paths == {str(path.relative_to(folder)) for path in folder.rglob("*.png")}
    assert not any(path.startswith("/") for path in paths)


def test_names_of_layers_are_text_and_nothing_else(hostile: Path) -> None:
    page = hostile.read_text()

    assert page.count("<script") == page.count("</script") == 1
    assert "&lt;script&gt;document.title=" in page
    assert "http" not in re.sub(r"<code>.*?</code>|<p class=\"about\">.*?</p>", "", page)


def test_a_page_shows_what_other_commands_drew_there(
    tmp_path: Path, write_run: Callable[..., None]
) -> None:
    run, out = tmp_path / "run.zarr", tmp_path / "out"
    write_run(run, (0, 10))
    call("grid", run, "relu1", "--step", "0", "--scale", "each", "-o", out)
    call("animation", run, "relu1", "-o", out)
    call("animation", run, "relu1", "--format", "gif", "-o", out)
    call("grid", run, "fc", "--format", "pdf", "-o", out)

    call("all", run, "-o", out)

    found = {Path(unquote(one)).name for one in addresses(out / NAME)}
    assert {
        "grid-00000000-each.png",
        "animation.png",
        "animation.gif",
        "grid-00000010.pdf",
    } <= found


def test_the_page_of_the_last_part_has_the_pictures_and_the_failures_of_all(
    tmp_path: Path, write_run: Callable[..., None]
) -> None:
    run, out = tmp_path / "run.zarr", tmp_path / "out"
    write_run(run, (0, 10))
    damage(run / "weights/fc.weight")  # whose histogram is stored apart

    results = [call("all", run, "-o", out, "--part", f"{i}/3") for i in (1, 2, 3)]

    assert sorted(result.exit_code for result in results) == [0, 0, 1]
    page = html.unescape((out / NAME).read_text())
    assert "weights/fc.weight/grid-00000010.png</code>: " in page
    drawn = {str(path.relative_to(out)) for path in out.rglob("*.png")}
    assert {unquote(address) for address in addresses(out / NAME)} == drawn


def test_what_failed_is_named_until_it_is_drawn(
    tmp_path: Path, write_run: Callable[..., None]
) -> None:
    run, out = tmp_path / "run.zarr", tmp_path / "out"
    write_run(run, (0, 10))
    out.mkdir()
    manifest = {"format": 1, "pictures": [], "errors": [{"path": "x.png", "error": "why <not>"}]}
    (out / "manifest.json").write_text(json.dumps(manifest))

    write_index(out, open_sources([str(run)])[0], [LeftOut("weights", "<b>", "no & frame")])
    page = (out / NAME).read_text()
    assert "<code>x.png</code>: why &lt;not&gt;" in page
    assert "<code>weights/&lt;b&gt;</code>: no &amp; frame" in page
    assert "2 not drawn" in page

    manifest["errors"][0]["path"] = "activations/fc/grid-00000010.png"  # type: ignore[index]
    (out / "manifest.json").write_text(json.dumps(manifest))
    call("all", run, "-o", out)
    assert "not drawn" not in (out / NAME).read_text()


def test_what_failed_is_forgotten_when_everything_is_drawn_and_it_is_no_part_of_that(
    tmp_path: Path, write_run: Callable[..., None]
) -> None:
    run, out = tmp_path / "run.zarr", tmp_path / "out"
    write_run(run, (0, 10))
    damage(run / "gradients/fc.weight")
    assert call("grid", run, "--kind", "gradients", "--cmap", "magma", "-o", out).exit_code == 1
    errors = {}
    for words in (("--kind", "weights"), ("--part", "1/1"), ()):
        call("all", run, "-o", out, *words)
        manifest = json.loads((out / "manifest.json").read_text())
        errors[words] = {Path(error["path"]).name for error in manifest["errors"]}

    mistyped, own = "grid-00000010-magma.png", {"grid-00000010.png", "histogram-heatmap.png"}
    assert errors == {
        ("--kind", "weights"): {mistyped},
        ("--part", "1/1"): {mistyped, *own},
        (): own,
    }


def test_the_commands_of_a_page_draw_its_pictures(hostile: Path, tmp_path: Path) -> None:
    page = hostile.read_text()
    codes = [html.unescape(one) for one in re.findall(r"<code>(filmstrip render .*?)</code>", page)]

    assert len(codes) == 2 * (len(HOSTILE) + 1) + 2
    for i, code in enumerate(codes):
        result = call(*shlex.split(code)[2:], "-o", tmp_path / str(i))
        assert result.exit_code == 0, result.output
        (drawn,) = (tmp_path / str(i)).rglob("*.png")
        there = hostile.parent / drawn.relative_to(tmp_path / str(i))
        assert drawn.read_bytes() == there.read_bytes()


def test_layers_that_are_not_finite_come_first(hostile: Path) -> None:
    order = re.findall(
        r'<section id="l\d+" data-kind="(\w+)" data-words="([^"]*)"', hostile.read_text()
    )

    assert [kind for kind, _ in order[:3]] == ["activations", "scalars", "activations"]
    assert order[0][1] == "activations/plain"
    assert "NaN first at step 10" in hostile.read_text()


def test_what_is_not_finite_comes_first_without_statistics_too(tmp_path: Path) -> None:
    path, out = tmp_path / "run.zarr", tmp_path / "out"
    maps, image = (2, 4, 5, 5), (2, 1, 5, 5)
    with create_run(path) as run:
        of = {name: FrameSpec(maps, "float32", layout="NCHW") for name in ("fine", "late", "map")}
        writer = run.writer("activations", of)
        images = run.writer("images", {"photo": FrameSpec(image, "float32", layout="NCHW")})
        for step in (0, 10, 20):
            frames = {name: np.ones(maps, np.float32) for name in of}
            frames["late"][1, 2, 0, 0] = np.inf if step else 1
            frames["map"][0, 2, 0, 0] = np.nan if step == 20 else 1
            writer.append(step, frames)
            shown = np.full(image, 0.5, np.float32)
            shown[1, 0, 0, 0] = -np.inf
            images.append(step, {"photo": shown})
            run.log(step, {"loss": np.nan if step == 10 else 1.0, "lr": 0.1})
    expected = [
        ("scalars/all", "loss: NaN first at step 10"),
        ("activations/late", "infinities at step 10"),
        ("activations/map", "NaN at step 20"),
        ("images/photo", "infinities at step 20"),
        ("activations/fine", ""),
    ]

    for drew in ("drew 9 pictures", "drew 0 pictures"):
        result = call("all", path, "-o", out, "--dpi", "60")

        assert result.exit_code == 0, result.output
        assert drew in result.stdout
        head = r'<h2><small>(\w+)</small>(.+?)(?:<span class="bad">(.+?)</span>)?</h2>'
        found = re.findall(head, (out / NAME).read_text())
        assert [(f"{kind}/{layer}", bad) for kind, layer, bad in found] == expected


@pytest.fixture
def browser() -> Iterator[Browser]:
    """Return a browser of a desktop's size."""
    with Browser() as opened:
        yield opened


@needs_browser
def test_a_page_opens_from_a_file_without_a_complaint(browser: Browser, hostile: Path) -> None:
    browser.open(hostile)
    browser.settle()

    assert browser.complaints() == []
    assert {address.partition(":")[0] for address in browser.requested()} == {"file"}
    assert browser.run("document.title") == "run.zarr"
    assert browser.run("links.map(link => link.textContent)") == [
        "plain", "all", "all layers", *(name.replace("/", ".") for name in HOSTILE)
    ]  # fmt: skip


@needs_browser
def test_the_slider_and_the_arrows_show_another_step(browser: Browser, hostile: Path) -> None:
    browser.open(hostile)
    moves = (("ArrowLeft", 10), ("ArrowLeft", 0), ("ArrowLeft", 0), ("ArrowRight", 10))
    for i in range(3, 3 + len(HOSTILE)):
        browser.run(f"choose(sections[{i}], true)")
        for key, step in moves:
            browser.press(key)
            browser.settle()
            shown = browser.run(
                "(() => { const figure = document.querySelector('section.here figure');"
                " const image = figure.querySelector('img');"
                " return [at.textContent, image.complete && image.naturalWidth > 0,"
                "  image.currentSrc, figure.querySelector('a').href,"
                "  figure.querySelector('code').textContent]; })()"
            )
            assert shown[:2] == [str(step), True]
            assert shown[2] == shown[3]
            assert f"grid-{step:08d}" in shown[2]
            words = shlex.split(shown[4])
            assert words[words.index("--step") + 1] == str(step)
        browser.press("ArrowRight")
    assert browser.complaints() == []


@needs_browser
def test_keys_go_through_the_layers_and_the_filter(browser: Browser, hostile: Path) -> None:
    browser.open(hostile)
    here = "document.querySelector('section.here')?.dataset.words ?? ''"

    browser.press("ArrowDown")
    assert browser.run(here) == "activations/plain"
    browser.press("/")
    browser.type("LOSS")
    assert browser.run("visible().map(one => one.dataset.kind)") == ["scalars"]
    browser.press("Enter")
    assert browser.run(here).startswith("scalars/")
    browser.press("/")
    browser.type("nothing")
    assert browser.run("[visible().length, none.hidden]") == [0, False]
    browser.press("Escape")
    assert browser.run("visible().length") == len(HOSTILE) + 3
    browser.run("document.querySelector('button[data-kind=scalars]').click()")
    assert browser.run("visible().length") == 1
    browser.run("document.querySelector('button[data-kind=scalars]').click()")
    browser.press("ArrowUp")
    assert (
        browser.run("sections.indexOf(document.querySelector('section.here'))") == len(HOSTILE) + 2
    )
    assert browser.run(
        "Math.abs(document.querySelector('section.here').getBoundingClientRect().top) < 900"
    )


@needs_browser
def test_the_command_is_copied(browser: Browser, hostile: Path) -> None:
    browser.open(hostile)
    browser.run("navigator.clipboard.writeText = async text => { window.copied = text; }")
    browser.run("document.querySelector('.command button').click()")

    assert browser.run("window.copied") == browser.run("document.querySelector('code').textContent")


@needs_browser
@pytest.mark.parametrize("dark", [False, True])
def test_a_page_fits_a_telephone_in_the_light_and_in_the_dark(hostile: Path, dark: bool) -> None:
    with Browser(width=400, height=800, dark=dark) as browser:
        browser.open(hostile)
        browser.settle()

        assert browser.run("document.documentElement.scrollWidth") == 400
        paper, ink = (
            browser.run(f"getComputedStyle(document.body).{name}")
            for name in ("backgroundColor", "color")
        )
        brightness = [sum(map(int, re.findall(r"\d+", color)[:3])) for color in (paper, ink)]
        assert (brightness[0] < brightness[1]) is dark
        assert (
            browser.run("document.querySelector('section img').getBoundingClientRect().width") > 300
        )


@needs_browser
def test_a_long_name_is_broken_rather_than_cut_off(tmp_path: Path) -> None:
    with create_run(tmp_path / "run.zarr") as run:
        run.log(0, {"loss_of_" + "everything_" * 12: 1.0})
    call("all", tmp_path / "run.zarr", "-o", tmp_path / "out")

    with Browser(width=400, height=800) as browser:
        browser.open(tmp_path / "out" / NAME)
        browser.settle()

        shown, needed = (
            browser.run(f"document.querySelector('figcaption').{name}")
            for name in ("clientWidth", "scrollWidth")
        )
        assert needed <= shown


@needs_browser
def test_ten_thousand_pictures_are_loaded_as_they_are_looked_at(
    browser: Browser, tmp_path: Path
) -> None:
    layers, steps = [f"blocks.{i}.mlp" for i in range(500)], range(0, 2000, 100)
    write(tmp_path / "run.zarr", ("a",), range(1))
    pixels = tmp_path / "pixels.png"
    render.grid(np.ones((4, 5, 5)), dpi=50).save(pixels)
    entries = []
    for layer in layers:
        folder = tmp_path / "out/activations" / layer
        folder.mkdir(parents=True)
        for step in steps:
            (folder / f"grid-{step:08d}.png").hardlink_to(pixels)
            entries.append(
                {
                    "path": f"activations/{layer}/grid-{step:08d}.png",
                    "picture": "grid",
                    "kind": "activations",
                    "layer": layer,
                    "step": step,
                    "command": f"filmstrip render grid run.zarr {layer} --step {step}",
                }
            )
    manifest = {"format": 1, "pictures": entries, "errors": []}
    (tmp_path / "out/manifest.json").write_text(json.dumps(manifest))

    page = write_index(tmp_path / "out", open_sources([str(tmp_path / "run.zarr")])[0])
    browser.open(page)
    browser.settle()
    at_first = len(browser.requested())
    browser.run("choose(sections[400], true)")
    browser.settle()
    browser.press("ArrowLeft")
    browser.settle()

    assert page.stat().st_size < 1_500_000
    assert at_first < 30
    assert len(browser.requested()) < 100
    assert browser.run(
        "(() => { const image = sections[400].querySelector('img');"
        " return image.complete && image.currentSrc.includes('grid-00001800'); })()"
    )
    top = browser.run("sections[400].getBoundingClientRect().top - header.offsetHeight")
    assert -5 < top < 60
