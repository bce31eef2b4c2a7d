"""The report: one file that shows a run, whatever the run holds, and runs nothing."""

import csv
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from sd_atelier.lib import report
from sd_atelier.lib.checkpoints import TrainState
from sd_atelier.lib.config import RunConfig, from_dict
from sd_atelier.lib.records import LOSS_COLUMNS, PROBE_COLUMNS, RUN_COLUMNS
from sd_atelier.lib.run_folder import RunFolder

PAYLOADS = [
    "<script>alert(1)</script>",
    "</td></table><script src=//x></script>",
    "\"><img src=x onerror=alert(1)>",
    "' onmouseover='alert(1)",
    "<svg/onload=alert(1)>",
    "javascript:alert(1)",
    "<a href=\"javascript:alert(1)\">x</a>",
    "</title><script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    "<!--<script>alert(1)//-->",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "<meta http-equiv=refresh content=0;url=//x>",
    "<base href=//x>",
    "<iframe srcdoc='<script>alert(1)</script>'>",
    "{{constructor.constructor('alert(1)')()}}",
    "\u202e<script>\u202c",
    "<scr\0ipt>alert(1)</scr\0ipt>",
    "=HYPERLINK(\"//x\")",
]  # fmt: skip


def make_run(parent, *, name="toy", images=("a.png", "b.png"), num_steps=12, settings=None, lineage=None, saved=True):
    """A run folder with records as the trainer writes them; returns the folder."""
    config = from_dict(RunConfig, {"name": name, "loop": {"steps": 100}, **(settings or {})})
    run = RunFolder.create(
        parent, name, config, versions={"torch": "2"}, base={}, data_manifest={}, lineage=lineage
    )  # fmt: skip
    rng = np.random.default_rng(0)

    def write(file, columns, rows):
        with open(run.path / file, "w", newline="", encoding="utf-8") as stream:
            csv.writer(stream, lineterminator="\n").writerows([columns, *rows])

    losses, steps, probes = [], [], []
    for step in range(num_steps):
        image = images[step % len(images)]
        loss = float(rng.uniform(0.05, 0.2))
        losses.append((step, 0, image, "0" * 8, int(rng.integers(1000)), loss, 1.0, 1e-4, 0))
        steps.append((step, 0, loss, loss, loss, 0.01, step + 1, 0.5, 1e-4))
        if step % 5 == 0:
            probes += [(step, x, t, 0.1 - step * 0.005, 0.1) for x in images for t in (100, 500)]
    write("loss.csv", LOSS_COLUMNS, losses)
    write("run.csv", (*RUN_COLUMNS, "lr_unet"), steps)
    write("probe.csv", PROBE_COLUMNS, probes)
    if saved and num_steps:
        with run.owner():
            weights = {"x.lora_down.weight": torch.ones(2, 2)}
            metadata = {"ss_sd_model_name": "tiny-model"}
            run.save(TrainState(step=num_steps, images_seen=num_steps), weights, lambda stem: metadata)
    return run.path


@pytest.fixture
def plain_charts(monkeypatch):
    """One pixel for each chart, where the page is what is looked at: charts have their own tests."""

    def draw(columns, path):
        Image.new("RGB", (1, 1)).save(path)

    for name in ("loss_plot", "timestep_plot", "probe_plot"):
        monkeypatch.setattr(report.charts, name, draw)


class Page(HTMLParser):
    """Elements with their attributes, and the text outside of style."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.words, self._inside = [], [], []
        self.source = path.read_text("utf-8")
        self.feed(self.source)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._inside.append(tag)

    def handle_endtag(self, tag):
        self._inside.append("/" + tag)

    def handle_data(self, data):
        if not self._inside or self._inside[-1] != "style":
            self.words.append(data)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_other_peoples_text_is_shown_and_never_obeyed(payload, plain_charts, tmp_path):
    settings = {
        "preview": {"prompts": [payload]},
        "data": {"concepts": [{"folder": payload, "trigger": payload}]},
        "rate": {"schedule": "1e-4"},
    }
    lineage = {"run": "0" * 16, "name": payload, "path": payload, "step": 3}
    folder = make_run(tmp_path, name=payload, images=(payload, "b.png"), settings=settings, lineage=lineage)
    page = Page(report.write_report(folder))
    known = {
        "html", "head", "meta", "title", "style", "body", "header", "section", "h1", "h2", "h3", "p", "dl", "div", "dt",
        "dd", "img", "table", "thead", "tbody", "tr", "th", "td", "strong",
    }  # fmt: skip
    assert {tag for tag, _ in page.elements} == known
    attributes = {(tag, name) for tag, attrs in page.elements for name in attrs}
    allowed = {
        ("html", "lang"), ("meta", "charset"), ("meta", "http-equiv"), ("meta", "content"), ("meta", "name"),
        ("p", "class"), ("div", "class"), ("table", "class"), ("img", "alt"), ("img", "src"),
    }  # fmt: skip
    assert attributes == allowed
    sources = [attrs["src"] for tag, attrs in page.elements if tag == "img"]
    assert len(sources) == 3 and all(re.fullmatch(r"data:image/png;base64,[A-Za-z0-9+/=]+", s) for s in sources)
    shown = "".join(c if c.isprintable() else "\ufffd" for c in payload)
    assert shown in page.text


def test_page_forbids_scripts_and_every_load(plain_charts, tmp_path):
    page = Page(report.write_report(make_run(tmp_path)))
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["img-src"] == "data:" and "script-src" not in rules
    assert not re.search(r"https?:|//[a-z]|url\(|@import", re.sub(r"base64,[^\"]*", "", page.source))
    assert "prefers-color-scheme: dark" in page.source


def test_page_tells_the_run(tmp_path):
    lineage = {"run": "0" * 16, "name": "older", "path": "x", "step": 40}
    settings = {"trainable": {"rank": 7}, "rate": {"schedule": "3e-4"}}
    folder = make_run(tmp_path, settings=settings, lineage=lineage)
    text = Page(report.write_report(folder)).text
    for words in (
        "tiny-model", "lora, rank 7, alpha 16, kohya layers", "12 of 100", "3e-4", "older at step 40",
        "The controlled loss fell by 50.0 % from step 0 to step 10", "toy-000012.safetensors", "unet 0.0001",
        "a.png", "b.png", "few rows",
    ):  # fmt: skip
        assert words in text
    assert {p.name for p in (folder / "report").iterdir()} == {"loss.png", "timesteps.png", "probe.png"}


def test_changed_settings_are_strong_and_only_those(plain_charts, tmp_path):
    source = report.write_report(make_run(tmp_path, settings={"trainable": {"rank": 7}})).read_text()
    assert "<th>rank</th><td><strong>7</strong></td>" in source
    assert "<th>dropout</th><td>0.0</td>" in source


@pytest.mark.parametrize("num_steps", [0, 1])
def test_run_that_has_hardly_begun_has_a_report(num_steps, tmp_path):
    text = Page(report.write_report(make_run(tmp_path, num_steps=num_steps))).text
    assert "was not measured" in text


def test_records_and_checkpoints_may_be_missing(tmp_path):
    folder = make_run(tmp_path)
    for path in [*folder.glob("*.csv"), *folder.glob("checkpoints/*")]:
        path.unlink()
    text = Page(report.write_report(folder)).text
    assert "was not measured" in text and "missing" in text


def test_damaged_network_does_not_stop_the_report(plain_charts, tmp_path):
    folder = make_run(tmp_path)
    next(folder.glob("checkpoints/*")).write_bytes(b"x")
    assert "tiny-model" not in Page(report.write_report(folder)).text


@pytest.mark.parametrize(("size", "kind"), [((300, 200), "png"), ((1900, 1500), "jpeg")])
def test_strip_is_shown_and_a_large_one_reduced(size, kind, plain_charts, tmp_path):
    folder = make_run(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "strip.png")
    page = Page(report.write_report(folder))
    sources = [attrs["src"] for tag, attrs in page.elements if tag == "img"]
    assert len(sources) == 4 and sources[0].startswith(f"data:image/{kind};base64,")


def test_previews_are_shown_where_there_is_no_strip(plain_charts, tmp_path):
    folder = make_run(tmp_path)
    Image.new("RGB", (60, 40), "red").save(folder / "previews.png")
    assert "Checkpoints side by side" in report.write_report(folder).read_text("utf-8")


def test_strip_that_is_no_picture_does_not_stop_the_report(plain_charts, tmp_path, monkeypatch):
    folder = make_run(tmp_path)
    monkeypatch.setattr(report, "MAX_STRIP_BYTES", 3)
    (folder / "strip.png").write_bytes(b"not a picture")
    assert "cannot be shown here" in Page(report.write_report(folder)).text


def test_long_list_of_pictures_is_cut_and_that_is_said(plain_charts, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "MAX_PICTURES", 5)
    page = Page(report.write_report(make_run(tmp_path, images=tuple(f"{i}.png" for i in range(9)), num_steps=27)))
    assert "The 5 highest of 9 are shown." in page.text


def test_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a run folder"):
        report.write_report(tmp_path)
    assert not list(tmp_path.iterdir())
