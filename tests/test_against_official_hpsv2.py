"""HPSv2 against its authors' package, and that both packages saw our pictures; ``official/comparing.py`` says how."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from official.comparing import (
    GRADIENT,
    HPS,
    IMAGEREWARD,
    PICTURES,
    SCORE,
    TEXTS,
    arrays,
    gradient_difference,
    index,
    load,
    score_difference,
    scores_of,
)
from official.weights import PROMPTS, digest, fill, picture_digest

from overopt_bench.encoders.preprocessing import letterbox, to_tensor
from overopt_bench.rewards.hpsv2 import HPSv2


@pytest.fixture(scope="module")
def hps_truth() -> dict[str, npt.NDArray[Any]]:
    return arrays("hpsv2")


@pytest.fixture(scope="module")
def hps(tmp_path_factory: pytest.TempPathFactory) -> HPSv2:
    folder = tmp_path_factory.mktemp("official") / "HPSv2"
    state = fill(HPS["shapes"], HPS["seed"])
    half = {key: value.half() for key, value in state.items()}
    assert digest(state) == HPS["state_sha256"] and digest(half) == HPS["half_state_sha256"]
    folder.mkdir()
    torch.save({"state_dict": half}, folder / "HPS_v2_compressed.pt")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": HPS["config"]}))
    reward = load("hpsv2", folder.parent)
    assert isinstance(reward, HPSv2)
    return reward


def test_pictures_and_prompts_are_those_of_the_official_runs() -> None:
    for facts in (IMAGEREWARD, HPS):
        assert facts["pictures_sha256"] == picture_digest()
        assert facts["prompts"] == PROMPTS and list(facts["pictures"]) == list(PICTURES)


def test_scores_depend_on_both_picture_and_prompt(hps_truth: dict[str, npt.NDArray[Any]]) -> None:
    """Else a deaf or blind model would pass: the truth varies along both axes, a hundred tolerances at least."""
    image_reward_truth = arrays("imagereward")
    for table in (image_reward_truth["small_scores"], image_reward_truth["full_scores"], hps_truth["scores"]):
        assert table.std(axis=0).min() > 100 * SCORE * table.std()
        assert table.std(axis=1).min() > 100 * SCORE * table.std()


def test_hps_has_every_tensor_of_the_file(hps: HPSv2) -> None:
    """62 of 62, in half precision on disk and float32 in memory, to the bit."""
    state = {key: value.half().float() for key, value in fill(HPS["shapes"]).items()}
    own = hps.model.state_dict()
    assert own.keys() == state.keys() and len(own) == HPS["tensors"] == 62
    assert all(own[key].dtype == torch.float32 and torch.equal(own[key], value) for key, value in state.items())


def test_hps_reads_the_official_tokens(hps: HPSv2, hps_truth: dict[str, npt.NDArray[Any]]) -> None:
    assert np.array_equal(hps.tokenizer(TEXTS).numpy(), hps_truth["tokens"])


@pytest.mark.parametrize("antialias", [True, False])
def test_hps_sees_the_official_pixels(antialias: bool, hps: HPSv2, hps_truth: dict[str, npt.NDArray[Any]]) -> None:
    """Within a float32 ulp or two of [-2.5, 3.2]: every eighth pixel, and the length of each picture as a whole."""
    kept, norm = (hps_truth[f"pixels{kind}{'' if antialias else '_no_antialias'}"] for kind in ("", "_norm"))
    if antialias:
        ours = hps.official_pixels(list(PICTURES.values()))
    else:
        ours = torch.cat([letterbox(to_tensor([p]), 224, antialias=False) for p in PICTURES.values()])
    np.testing.assert_allclose(ours[..., ::8, ::8].numpy(), kept, rtol=0, atol=2e-6)
    np.testing.assert_allclose(ours.double().flatten(1).norm(dim=1).numpy(), norm, rtol=1e-6)


def test_hps_scores_as_the_package(hps: HPSv2, hps_truth: dict[str, npt.NDArray[Any]]) -> None:
    """End to end; and without antialiasing, the package's own difference, which no tolerance would hide."""
    ours = scores_of(hps, list(PICTURES.values()), TEXTS)
    assert score_difference(ours, hps_truth["scores"]) <= SCORE
    assert score_difference(ours, hps_truth["scores_no_antialias"]) > 0.1
    pixels = torch.cat([letterbox(to_tensor([p]), 224, antialias=False) for p in PICTURES.values()])
    assert score_difference(scores_of(hps, [], TEXTS, pixels), hps_truth["scores_no_antialias"]) <= SCORE


def test_hps_features_are_the_packages(hps: HPSv2, hps_truth: dict[str, npt.NDArray[Any]]) -> None:
    with torch.no_grad():
        ours = hps.encode_pixels(hps.official_pixels(list(PICTURES.values())))
        words = torch.nn.functional.normalize(hps.model.encode_text(hps.tokenizer(TEXTS)), dim=-1)
    assert score_difference(ours, hps_truth["image_features"]) <= SCORE
    assert score_difference(words, hps_truth["text_features"]) <= SCORE


@pytest.mark.parametrize("pair", HPS["gradients"])
def test_hps_gradients_are_the_packages(
    pair: Sequence[str], hps: HPSv2, hps_truth: dict[str, npt.NDArray[Any]]
) -> None:
    picture, prompt = index(pair)
    theirs, norm = (hps_truth[f"gradient{kind}_{'_'.join(pair)}"] for kind in ("", "_norm"))
    pixels = hps.official_pixels([list(PICTURES.values())[picture]])[0]
    assert gradient_difference(hps, pixels, TEXTS[prompt], theirs, norm) <= GRADIENT


def test_hps_with_a_transposed_projection_would_fail(hps: HPSv2, hps_truth: dict[str, npt.NDArray[Any]]) -> None:
    """The text's projection is square: its shape does not tell, only scores do."""
    projection: Any = hps.model.text_projection
    kept = projection.detach().clone()
    try:
        projection.data.copy_(kept.T)
        assert score_difference(scores_of(hps, list(PICTURES.values()), TEXTS), hps_truth["scores"]) > 0.1
    finally:
        projection.data.copy_(kept)


def test_hps_with_a_crop_would_fail(hps: HPSv2, hps_truth: dict[str, npt.NDArray[Any]]) -> None:
    """CLIP's resize and crop, which TDPO's code feeds to HPSv2, is another reward."""
    from overopt_bench.encoders.preprocessing import clip_pixels

    ours = scores_of(hps, [], TEXTS, clip_pixels(list(PICTURES.values()), 224))
    assert score_difference(ours, hps_truth["scores"]) > 0.1


def test_hps_v2_at_its_true_size_has_686_tensors() -> None:
    """open_clip's ViT-H-14, which is built where no configuration lies beside the weights; on the meta device."""
    from open_clip.model import CLIP

    from overopt_bench.rewards.hpsv2 import architecture

    with torch.device("meta"):
        model = CLIP(**architecture(Path("/nowhere")))
    assert len(model.state_dict()) == 686
    assert sum(p.numel() for p in model.parameters()) == 986_109_441
