"""The recipe end to end in miniature, from real packages where npm is there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from overopt_bench.registry import get_reward
from overopt_bench.suites.mini import MiniSuite

data = pytest.importorskip("overopt_bench.suites.mini.recipe.data")
pytest.importorskip("resvg_py", reason="needs the recipe extra")


def synthetic(names: int = 8) -> object:
    """Coloured shapes instead of emoji: the same structure without a download."""
    g = torch.Generator().manual_seed(0)
    words = ("ant", "bear", "cat", "dove", "eel", "fox", "goat", "hen")[:names]
    images = torch.randint(0, 256, (names * 4, 3, 1, 1), generator=g).expand(-1, -1, 64, 64).to(torch.uint8)
    return data.EmojiSet(
        images.contiguous(),
        torch.arange(names).repeat_interleave(4),
        torch.arange(4).repeat(names),
        words,
        (True,) * names,
    )


def test_miniature_recipe_makes_a_suite_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from overopt_bench.suites.mini.recipe import __main__ as recipe
    from overopt_bench.suites.mini.recipe.settings import Settings

    monkeypatch.setattr(recipe, "load_emoji", lambda cache, names: synthetic())
    recipe.build(Settings.miniature(), tmp_path / "npm", tmp_path / "work", tmp_path / "out")
    suite = MiniSuite(tmp_path / "out")
    assert suite.missing() is None
    prompts = list(suite.prompts["train"])
    images = torch.rand(len(prompts), 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for name in ("human", "aesthetic", "imagereward", "pickscore", "hpsv2", "clipscore"):
        assert get_reward(name, suite)(images, prompts).shape == (len(prompts),)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "| imagereward |" in text and (tmp_path / "out" / "samples.png").stat().st_size > 1000

    # the proxies alone, from what is there: the same labels, the same weights
    (tmp_path / "again").mkdir()
    copy = shutil.copytree(tmp_path / "out", tmp_path / "again" / "out")
    for name in ("aesthetic", "imagereward"):
        (copy / f"rewards/{name}.safetensors").unlink()
    recipe.build(Settings.miniature(), tmp_path / "npm", tmp_path / "again", copy, start="proxies")
    for file in (tmp_path / "out/rewards").iterdir():
        assert (copy / "rewards" / file.name).read_bytes() == file.read_bytes()


def test_an_interrupted_stage_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    from overopt_bench.suites.mini.recipe.training import fit, seeded

    def train(folder: Path, stop: int | None) -> torch.Tensor:
        folder.mkdir(exist_ok=True)
        net = seeded(0, "net", lambda: torch.nn.Linear(3, 1))
        calls = 0

        def loss(module: torch.nn.Module, g: torch.Generator) -> torch.Tensor:
            nonlocal calls
            calls += 1
            if stop is not None and calls > stop:
                raise KeyboardInterrupt
            x = torch.randn(8, 3, generator=g)
            return ((module(x) - x.sum(1, keepdim=True)) ** 2).mean()

        fit("net", net, loss, work=folder, seed=0, steps=20, lr=0.1, save_seconds=0)
        return torch.as_tensor(net.weight)

    whole = train(tmp_path / "whole", None)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", 7)
    torch.testing.assert_close(train(tmp_path / "cut", None), whole, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm to fetch the packages")
def test_packages_hold_the_drawings(tmp_path: Path) -> None:
    emoji = data.load_emoji(tmp_path)
    assert len(emoji.names) > 150 and sum(emoji.is_animal) > 100
    assert len(set(emoji.names)) == len(emoji.names)
    assert set(emoji.style.tolist()) == {0, 1, 2, 3}
