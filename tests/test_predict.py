"""The sample model on the samples: records, trees and costs."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pyrtrav.errors import ConfigError, ImageChangedError, ModelFileError
from pyrtrav.model_file import load_model
from pyrtrav.predict import Predictor
from pyrtrav.pyramid import open_pyramid
from pyrtrav.pyramid.base import shared_cache
from pyrtrav.pyramid.inspect import fingerprint
from pyrtrav.tree import RESULT_SCHEMA, TREE_SCHEMA, ParseTree, check
from tests.samples import IMAGES, SLIDE, TISSUE, compared


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(device="cpu")


@pytest.mark.parametrize("image", IMAGES, ids=lambda p: p.name)
def test_samples_give_valid_records_and_trees(predictor: Predictor, image: Path, tmp_path: Path) -> None:
    shared_cache().clear()
    record, tree, _ = predictor.predict([image])[0]
    assert tree is not None
    check(record, RESULT_SCHEMA, "record")
    check(json.loads(json.dumps(tree.to_dict())), TREE_SCHEMA, "tree")
    tree.save(tmp_path / "tree.json")
    assert ParseTree.load(tmp_path / "tree.json") == tree
    cost = record["cost"]
    assert cost["fixations"] == len(tree.nodes)
    assert cost["tiles_decoded"] == cost["tiles_distinct"] <= cost["tiles_total"]
    assert sum(record["prediction"]["probabilities"].values()) == pytest.approx(1)
    assert [level["depth"] for level in record["levels"]] == list(range(len(record["levels"])))
    assert record["levels"][-1]["probabilities"] == record["prediction"]["probabilities"]


def test_a_small_cache_is_enough() -> None:
    """With a cache of 32 tiles at most a tenth is decoded twice, also where 44 are attended."""
    code = (
        "import json; from pyrtrav.predict import Predictor; from pyrtrav.pyramid.base import shared_cache\n"
        "predictor = Predictor(device='cpu')\n"
        f"for image in {[str(image) for image in IMAGES]!r}:\n"
        "    for look in ({}, {'k': 2, 'depth': 6}):\n"
        "        shared_cache().clear()\n"
        "        print(json.dumps(predictor.predict([image], predictor.settings(**look))[0].record['cost']))\n"
    )
    small = {"PYRTRAV_CACHE_BYTES": str(32 * 256 * 256 * 3), "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=small, check=True)
    costs = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(costs) == 2 * len(IMAGES)
    assert max(cost["tiles_distinct"] for cost in costs) > 40
    for cost in costs:
        assert cost["tiles_decoded"] <= 1.1 * cost["tiles_distinct"]


def test_one_image_or_many_is_the_same(predictor: Predictor) -> None:
    together = [outcome.record for outcome in predictor.predict(IMAGES)]
    for image, record in zip(IMAGES, together, strict=True):
        alone = compared(predictor.predict([image])[0].record)
        other = compared(record)
        for part in ("prediction", "levels"):
            alone_part, other_part = json.dumps(alone.pop(part)), json.dumps(other.pop(part))
            numbers = [[float(w) for w in _numbers(part)] for part in (alone_part, other_part)]
            assert numbers[0] == pytest.approx(numbers[1], abs=1e-4)
        assert alone == other


def _numbers(text: str) -> list[str]:
    words = text.replace("{", " ").replace("}", " ").replace(",", " ").replace(":", " ").replace("]", " ").split()
    return [word for word in words if word[0].isdigit()]


@pytest.mark.parametrize("select", ["sample", None])
def test_same_seed_same_bytes(predictor: Predictor, select: str | None) -> None:
    settings = predictor.settings(select=select, seed=5)
    first, again = (predictor.predict(IMAGES, settings) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert json.dumps(compared(one.record)) == json.dumps(compared(other.record))
        assert one.tree is not None
        assert other.tree is not None
        assert one.tree.nodes == other.tree.nodes


def test_decoding_threads_change_nothing(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [compared(outcome.record) for outcome in predictor.predict(IMAGES)]
    for threads in ("1", "5"):
        monkeypatch.setenv("PYRTRAV_THREADS", threads)
        shared_cache().clear()
        assert [compared(outcome.record) for outcome in predictor.predict(IMAGES)] == wanted


def test_depth_and_budget_bound_the_run(predictor: Predictor) -> None:
    glance = predictor.predict([SLIDE], predictor.settings(depth=0))[0].record
    assert glance["cost"]["fixations"] == 1
    assert len(glance["levels"]) == 1
    few = predictor.predict([SLIDE], predictor.settings(budget=5))[0].record
    assert few["cost"]["fixations"] == 5
    assert few["settings"]["select"] == "budget"
    deeper = predictor.predict([SLIDE], predictor.settings(depth=5, budget=60))[0]
    assert deeper.tree is not None
    assert max(node.depth for node in deeper.tree.nodes) > predictor.card.max_depth


def test_a_failed_image_leaves_the_others(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "bad.svs").write_text("no slide")
    records = [o.record for o in predictor.predict([tmp_path / "bad.svs", SLIDE, tmp_path / "missing.tif"])]
    assert [record["status"] for record in records] == ["error", "ok", "error"]
    for record in records:
        check(record, RESULT_SCHEMA, "record")
    assert "missing.tif" in records[2]["error"]["message"]


@pytest.mark.parametrize("when", ["never", "before the record"])
def test_a_record_is_of_the_file_that_was_read(
    when: str, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody replaces it between the last look and the record: there is no record of content nobody looked at."""
    path = tmp_path / "a.svs"
    shutil.copy(SLIDE, path)
    before = fingerprint(path)
    believe = type(predictor.model).believe

    def meanwhile(self: object, *args: Any) -> Any:
        os.utime(path, (1, 1))
        return believe(self, *args)

    if when != "never":
        monkeypatch.setattr(type(predictor.model), "believe", meanwhile)
    outcome = predictor.predict([path, SLIDE], predictor.settings(depth=1))
    assert outcome[0].record["input"]["fingerprint"] == before
    assert outcome[1].error is None
    assert isinstance(outcome[0].error, ImageChangedError) == (when != "never")


def test_mpp_is_overruled_visibly(predictor: Predictor) -> None:
    record, tree, _ = predictor.predict([SLIDE], mpp=0.3)[0]
    assert tree is not None
    assert record["settings"]["mpp"] == tree.mpp == 0.3
    assert open_pyramid(SLIDE).mpp == 0.0625


def test_settings_come_from_the_model_unless_asked(predictor: Predictor) -> None:
    stored = predictor.settings()
    assert (stored.select, stored.depth) == (predictor.card.selection["select"], predictor.card.max_depth)
    assert predictor.settings(tau=0.4).tau == (0.4,)
    assert predictor.settings(k=2).select == "topk"
    assert predictor.settings(budget=9).select == "budget"
    capped = predictor.settings(select="sample", budget=9)
    assert (capped.select, capped.budget) == ("sample", 9)
    with pytest.raises(ConfigError, match="unknown selection"):
        predictor.settings(select="best")


def test_macs_are_those_of_torch(predictor: Predictor) -> None:
    """The sum over the trace's modules equals what torch's own counter sees in a run."""
    from torch.utils.flop_counter import FlopCounterMode

    model = predictor.model
    settings = replace(predictor.settings(), encode_batch=4096)
    with open_pyramid(SLIDE) as image, torch.inference_mode(), FlopCounterMode(display=False) as counter:
        trace = model.look([image], settings)
        model.believe(trace, model.max_depth)
    assert model.macs(trace) == [counter.get_total_flops() // 2]


def test_model_files_are_refused_with_a_reason(tmp_path: Path) -> None:
    import pickle

    import safetensors.torch

    pickled = tmp_path / "pickle.safetensors"
    pickled.write_bytes(pickle.dumps({"weights": [1, 2, 3]}))
    foreign = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(3)}, foreign)
    whole = Path(load_model().path).read_bytes()
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(whole[: len(whole) // 2])
    for path, message in [
        (tmp_path / "none.safetensors", "no such model file"),
        (pickled, "not a safetensors file"),
        (foreign, "not a pyrtrav model"),
        (torn, "not a safetensors file"),
        (tmp_path, "is a folder; name a file"),
    ]:
        with pytest.raises(ModelFileError, match=message):
            load_model(path)


def test_a_model_whose_numbers_overflow_says_so(tmp_path: Path) -> None:
    """Every weight is finite, and what they give is not: no class is the answer then."""
    loaded = load_model()
    for weight in loaded.model.parameters():
        torch.nn.init.constant_(weight, 1e38)
    outcome = Predictor(loaded, device="cpu").predict([TISSUE / "val" / "lesion" / "003.tif"])[0]
    check(outcome.record, RESULT_SCHEMA, "record")
    assert outcome.record["status"] == "error"
    assert outcome.tree is None
    assert "gets no probabilities" in outcome.record["error"]["message"]
