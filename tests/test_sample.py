"""``sample`` and ``eval``: the images are those of the policy that trained, in plain diffusers too, and none is lost."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoPipelineForText2Image, DDIMScheduler
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sharing import Once

from overopt_bench import api, cli
from overopt_bench.diffusion.policy import DiffusionPolicy
from overopt_bench.registry import get_reward, get_suite
from overopt_bench.seeding import stable_seed
from overopt_bench.suites.mini import WEIGHTS

README = (Path(__file__).parent.parent / "README.md").read_text()
BASES = {
    "mini": WEIGHTS / "pipeline", "sd14": "stable-diffusion-v1-4", "sd15": "stable-diffusion-v1-5",
    "sdxl": "stable-diffusion-xl-base-1.0",
}  # fmt: skip
LORAS = {"mini": (4, 16), "sd14": (4, 1), "sd15": (3, 5), "sdxl": (2, 8)}  # rank and alpha, never equal
SMALL = [
    "--num-steps", "2", "--guidance-scale", "2", "--budget", "8", "--eval-points", "2", "--eval-images", "4", "--device", "cpu",
    "--set", "samples_per_epoch=4", "--set", "images_per_prompt=2", "--set", "lr=0.03",
]  # fmt: skip
PROMPTS = ["fox face", "owl"]


@dataclass
class Trained:
    """A finished run, and what every command about it needs."""

    suite: str
    folder: Path
    weights: Path | None

    @property
    def options(self) -> list[str]:
        return ["--device", "cpu", *(["--weights", str(self.weights)] if self.weights else [])]

    def policy(self) -> DiffusionPolicy:
        """Its policy, from the checkpoint."""
        state = torch.load(max((self.folder / "checkpoint").iterdir()), weights_only=True)["policy"]
        (rank, alpha), pipeline = LORAS[self.suite], get_suite(self.suite, self.weights).pipeline()
        policy = DiffusionPolicy(
            pipeline, num_steps=2, guidance_scale=2.0, eta=1.0, lora_rank=rank, lora_alpha=alpha, seed=0
        )
        policy.load_state_dict(state)
        return policy


def train(suite: str, weights: Path | None, once: Once) -> Trained:
    """A run that all tests share: none writes into its folder."""

    def make(out: Path) -> None:
        lora = ["--lora-rank", str(LORAS[suite][0]), "--lora-alpha", str(LORAS[suite][1])]
        words = ["run", "--algo", "ddpo", "--proxy", "jpeg_compressibility", "--suite", suite, *SMALL, *lora]
        assert cli.main([*words, *(["--weights", str(weights)] if weights else []), "--out", str(out)]) == 0

    return Trained(suite, once(f"sampled_{suite}", make) / suite / "jpeg_compressibility/ddpo/seed0", weights)


@pytest.fixture(scope="module", params=list(BASES))
def trained(request: pytest.FixtureRequest, once: Once) -> Trained:
    return train(request.param, None if request.param == "mini" else request.getfixturevalue("tiny_weights"), once)


@pytest.fixture(scope="module")
def mini(once: Once) -> Trained:
    return train("mini", None, once)


def noise(policy: DiffusionPolicy, prompts: list[str], count: int, seed: int) -> torch.Tensor:
    """``[T+1, B, C, h, w]``: each image's from a generator of its own."""
    rows = []
    for prompt in prompts:
        for k in range(count):
            generator = torch.Generator().manual_seed(stable_seed("sample", seed, prompt, k))
            rows.append(torch.randn((policy.num_steps + 1, *policy.latent_shape), generator=generator))
    return torch.stack(rows, 1)


def pixels(images: torch.Tensor) -> Any:
    """``[B, 3, H, W]`` in [0, 1] as PNG files hold them, ``[B, H, W, 3]``."""
    return (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def table(folder: Path) -> list[dict[str, str]]:
    with open(folder / "index.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def sample(run: Trained, out: Path, prompts: list[str], *options: str) -> int:
    words = [word for prompt in prompts for word in ("--prompt", prompt)]
    return cli.main(["sample", str(run.folder), *words, "--out", str(out), *run.options, *options])


def test_images_are_those_of_the_policy_and_of_plain_diffusers(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """To the bit those of the policy, and to a level of 255 those of the README's lines, at an alpha that is not the rank."""
    assert sample(trained, tmp_path, PROMPTS, "--count", "2", "--seed", "3") == 0
    files = [Path(line) for line in capsys.readouterr().out.splitlines() if line.endswith(".png")]
    assert [tmp_path / row["file"] for row in table(tmp_path)] == files and len(files) == 4
    shown = np.stack([np.asarray(Image.open(file)) for file in files])
    policy = trained.policy()
    words, z = [prompt for prompt in PROMPTS for _ in range(2)], noise(policy, PROMPTS, 2, 3)
    assert np.array_equal(shown, pixels(policy.sample(z, words)[0].images))
    with policy.base():
        assert np.abs(shown - pixels(policy.sample(z, words)[0].images).astype(float)).max() > 5

    (snippet,) = re.findall(r"```python\n(config = json.*?)```", README, re.DOTALL)
    base = BASES[trained.suite] if trained.weights is None else trained.weights / BASES[trained.suite]
    unsafe = {} if trained.suite == "sdxl" else {"safety_checker": None, "feature_extractor": None}
    for row, own in zip(table(tmp_path), shown, strict=True):
        pipeline = AutoPipelineForText2Image.from_pretrained(base, **unsafe)
        pipeline.set_progress_bar_config(disable=True)
        known: dict[str, Any] = {"json": json, "torch": torch, "DDIMScheduler": DDIMScheduler}
        known |= {"run": trained.folder, "pipeline": pipeline, "row": row}
        exec(snippet, known)
        assert np.abs(np.asarray(known["image"]).astype(int) - own.astype(int)).max() <= 1


def test_eval_scores_the_policys_images_and_those_of_its_base(trained: Trained) -> None:
    options = {"device": "cpu", "weights": trained.weights}
    shown = api.eval(trained.folder, PROMPTS, ["jpeg_compressibility"], count=2, seed=5, **options).iloc[0]
    policy, reward = trained.policy(), get_reward("jpeg_compressibility", get_suite("mini"))
    words, z = [prompt for prompt in PROMPTS for _ in range(2)], noise(policy, PROMPTS, 2, 5)
    assert shown["policy"] == pytest.approx(reward(policy.sample(z, words)[0].images, words).mean().item(), rel=1e-6)
    with policy.base():
        assert shown["base"] == pytest.approx(reward(policy.sample(z, words)[0].images, words).mean().item(), rel=1e-6)
    assert shown["change"] == pytest.approx(shown["policy"] - shown["base"], abs=1e-6) and shown["change"] != 0


@pytest.mark.slow
def test_nothing_is_said_that_means_nothing(trained: Trained, tmp_path: Path) -> None:
    """In a process of its own, for libraries keep the stream that they were imported with."""
    shared = [str(trained.folder), "--prompt", "owl", *trained.options]
    drawn = ["sample", *shared, "--count", "1", "--out", str(tmp_path)]
    scored = ["eval", *shared, "--reward", "jpeg_compressibility"]
    script = f"import sys; from overopt_bench.cli import main; sys.exit(main({drawn}) or print('-') or main({scored}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    said = [part.count("\n") for part in done.stdout.split("-\n", 1)]
    assert (done.returncode, done.stderr, said) == (0, "", [1, 2]), done.stdout


def test_every_image_has_a_file_of_its_own(mini: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = "a " * 40
    prompts = ["猫", "狗", "Fox", "fox", "!!!", "???", f"{long}x", f"{long}y", "a/b", "a b", "=1+1", 'say "a,\nb"']
    assert sample(mini, tmp_path, [*prompts, "fox"], "--count", "2") == 0
    warning = "warning: --prompt 'fox' is given twice and drawn once, for the images are the same\n"
    assert capsys.readouterr().err == warning
    rows = table(tmp_path)
    assert len({row["file"].casefold() for row in rows}) == len(rows) == 2 * len(prompts)
    assert {path.name for path in tmp_path.iterdir()} == {"index.csv", *(row["file"] for row in rows)}
    assert [row["prompt"] for row in rows[::2]] == [f"'{prompt}" if prompt[0] == "=" else prompt for prompt in prompts]
    policy = mini.policy()
    words = [prompt for prompt in prompts for _ in range(2)]
    truth = pixels(policy.sample(noise(policy, prompts, 2, 0), words)[0].images)
    assert all(np.array_equal(Image.open(tmp_path / row["file"]), own) for row, own in zip(rows, truth, strict=True))


def test_a_second_call_adds_to_the_folder(
    mini: Trained, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Another seed, the same images again, and another run of the same prompt: what was there stays."""
    assert sample(mini, tmp_path, ["fox"], "--count", "1") == 0
    first, (file,) = table(tmp_path), list(tmp_path.glob("*.png"))
    before = file.read_bytes()
    assert sample(mini, tmp_path, ["fox", "owl"], "--count", "1", "--seed", "1") == 0
    assert sample(mini, tmp_path, ["fox"], "--count", "1") == 0
    assert table(tmp_path)[:1] == first and [row["seed"] for row in table(tmp_path)] == ["0", "1", "1"]
    other = Trained("mini", tmp_path_factory.mktemp("other") / "run", None)
    shutil.copytree(mini.folder, other.folder)
    change_adapter(other, lambda weights: {key: value * 2 for key, value in weights.items()})
    assert sample(other, tmp_path, ["fox"], "--count", "1") == 0
    rows = table(tmp_path)
    assert len(list(tmp_path.glob("*.png"))) == len(rows) == 4 and rows[3]["run"] == str(other.folder)
    assert file.read_bytes() == before != (tmp_path / rows[3]["file"]).read_bytes()


@pytest.mark.parametrize(
    "content", ["name,size\nfox,3\n", "", "file,prompt,seed,index,torch_seed,run\na,b,c,d,e,f,g\n", "\x00ÿ"]
)
def test_a_table_of_somebody_else_is_left_alone(
    content: str, mini: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "index.csv").write_text(content, encoding="latin-1")
    assert sample(mini, tmp_path, ["fox"]) == 2
    error = capsys.readouterr().err
    assert "is not a table that sample wrote; use another --out" in error and error.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["index.csv"]
    assert (tmp_path / "index.csv").read_text(encoding="latin-1") == content


def change_adapter(run: Trained, change: Any) -> None:
    """Change the weights of a run's adapter; the header stays."""
    path = run.folder / "adapter/pytorch_lora_weights.safetensors"
    with safe_open(path, "pt") as file:
        header = file.metadata()
    save_file(change(load_file(path)), path, header)


def one_nan(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    next(iter(weights.values())).view(-1)[3] = float("nan")
    return weights


DAMAGES: dict[str, tuple[Any, int, str]] = {
    "nan": (lambda run: change_adapter(run, one_nan), 1, "diverged: 1 of 112 tensors of the adapter are not finite"),
    "truncated": (lambda run: cut(run, 1000), 2, "is damaged (SafetensorError"),
    "empty": (lambda run: cut(run, 0), 2, "is damaged (SafetensorError"),
    "absent": (lambda run: shutil.rmtree(run.folder / "adapter"), 2, "has no adapter"),
    "rank": (
        lambda run: change_adapter(run, lambda w: {k: v.repeat(2, 2) for k, v in w.items()}), 2, "no adapter of rank 4"
    ),
}  # fmt: skip


def cut(run: Trained, size: int) -> None:
    path = run.folder / "adapter/pytorch_lora_weights.safetensors"
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize("command", ["sample", "eval"])
@pytest.mark.parametrize(("damage", "status", "message"), DAMAGES.values(), ids=DAMAGES)
def test_a_bad_adapter_is_one_line_and_no_picture(
    damage: Any,
    status: int,
    message: str,
    command: str,
    mini: Trained,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = Trained("mini", tmp_path / "run", None)
    shutil.copytree(mini.folder, run.folder)
    damage(run)
    out = ["--out", str(tmp_path / "out")] if command == "sample" else []
    assert cli.main([command, str(run.folder), "--prompt", "fox face", *run.options, *out]) == status
    shown = capsys.readouterr()
    assert message in shown.err and shown.err.count("\n") == 1 and shown.out == "" and not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["sample", "eval", "run"])
def test_images_that_are_not_finite_are_an_error_whatever_the_reward_notices(
    command: str, mini: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """JPEG sizes go through bytes, so the reward itself gives numbers."""
    decode = DiffusionPolicy.decode
    monkeypatch.setattr(DiffusionPolicy, "decode", lambda policy, x: decode(policy, x) * float("nan"))
    if command == "run":
        words = ["run", "--algo", "ddpo", "--proxy", "jpeg_compressibility", "--suite", "mini", *SMALL]
    else:
        words = [command, str(mini.folder), "--prompt", "fox", "--count", "2", *mini.options]
    out = [] if command == "eval" else ["--out", str(tmp_path)]
    reward = ["--reward", "jpeg_compressibility"] if command == "eval" else []
    status = cli.main([*words, *out, *reward])
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and not list(tmp_path.rglob("*.png"))
    if command == "run":  # here it is the base model, which is tried before anything is written
        assert status == 2 and "draws an image that is not finite" in error and not list(tmp_path.rglob("status.json"))
    else:
        assert status == 1 and re.search(r"\d of \d images that the policy drew are not finite", error)


@pytest.mark.parametrize("prompt", ["", " ", "\udcff"])
def test_a_prompt_that_is_none_is_refused(prompt: str, mini: Trained, tmp_path: Path, capsys: Any) -> None:
    assert sample(mini, tmp_path / "out", ["fox", prompt]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "out").exists()
