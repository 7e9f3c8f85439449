"""The base model: AutoencoderKL, CLIPModel with its tokenizer, and the U-Net, in diffusers' own classes."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Generator, Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from overopt_bench.suites.mini.recipe.data import EmojiSet, augment
from overopt_bench.suites.mini.recipe.settings import Settings
from overopt_bench.suites.mini.recipe.training import fit, generator_for, seeded

CONTEXT = 16  # tokens; the longest caption is shorter


def make_tokenizer(captions: list[str], folder: Path) -> CLIPTokenizer:
    """A byte-pair CLIPTokenizer of the suite's own words.

    The special tokens come last, as in CLIP: an end token with id 2 would switch CLIPTextModel to a legacy
    pooling rule that is wrong for other vocabularies.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    alphabet = [chr(c) for c in range(ord("a"), ord("z") + 1)] + list("0123456789,")
    trainer = trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(captions + alphabet, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    model = json.loads(tokenizer.to_str())["model"]
    ends = [t + "</w>" for t in alphabet if t + "</w>" not in model["vocab"]]
    vocabulary = [*sorted(model["vocab"], key=model["vocab"].get), *ends, "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(vocabulary)}), encoding="utf-8")
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    made = CLIPTokenizer.from_pretrained(folder, model_max_length=CONTEXT)
    made.save_pretrained(folder)
    return made


def tokens(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Captions to ids ``[B, 16]``."""
    out = tokenizer(captions, padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt")
    return torch.as_tensor(out.input_ids)


def train_vae(s: Settings, data: EmojiSet, work: Path) -> AutoencoderKL:
    """32 x 32 images to 4 x 8 x 8 latents; scaled to unit variance by ``scaling_factor``."""
    vae = seeded(
        s.seed,
        "vae",
        lambda: AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(24, 48, 64),
            layers_per_block=1,
            norm_num_groups=8,
            latent_channels=4,
            sample_size=32,
        ),
    )
    assert isinstance(vae, AutoencoderKL)
    vae.to(memory_format=torch.channels_last)

    def loss(model: nn.Module, g: Generator) -> Tensor:
        assert isinstance(model, AutoencoderKL)
        pick = torch.randint(len(data.images), (s.vae_batch,), generator=g)
        x = augment(data.images[pick].float() / 255, g) * 2 - 1
        posterior = model.encode(x.contiguous(memory_format=torch.channels_last)).latent_dist
        z = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=g)
        y = model.decode(z).sample
        slopes = (y.diff(dim=2) - x.diff(dim=2)).abs().mean() + (y.diff(dim=3) - x.diff(dim=3)).abs().mean()
        kl = posterior.kl().mean() / z[0].numel()
        return torch.as_tensor((y - x).abs().mean() + 2 * F.mse_loss(y, x) + 0.3 * slopes + 1e-3 * kl)

    fit("vae", vae, loss, work=work, seed=s.seed, steps=s.vae_steps, lr=2e-3)
    g = generator_for(s.seed, "vae scale")
    with torch.no_grad():
        z = encode_latents(vae, augment(data.images.float() / 255, g), g, scale=False)
    vae.register_to_config(scaling_factor=round(1 / z.std().item(), 4))
    return vae


@torch.no_grad()
def encode_latents(vae: AutoencoderKL, images: Tensor, g: Generator, *, scale: bool = True) -> Tensor:
    """Posterior samples ``[N, 4, 8, 8]`` of images ``[N, 3, 32, 32]`` in [0, 1]."""
    parts = []
    for chunk in images.split(256):
        posterior = vae.encode((chunk * 2 - 1).contiguous(memory_format=torch.channels_last)).latent_dist
        parts.append(posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=g))
    return torch.cat(parts) * (vae.config.scaling_factor if scale else 1.0)


def normalise(images: Tensor) -> Tensor:
    """[0, 1] pixels to the CLIP tower's input range."""
    return images * 2 - 1


def train_clip(s: Settings, data: EmojiSet, tokenizer: CLIPTokenizer, work: Path) -> CLIPModel:
    """A contrastive CLIPModel; images of the same caption are not each other's negatives."""
    ids = dict(bos_token_id=len(tokenizer) - 2, eos_token_id=len(tokenizer) - 1, pad_token_id=len(tokenizer) - 1)
    text = dict(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        projection_dim=64,
        **ids,
    )
    vision = dict(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=5,
        num_attention_heads=4,
        image_size=32,
        patch_size=4,
        projection_dim=64,
    )
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=64)
    clip = seeded(s.seed, "clip", lambda: CLIPModel(config))
    assert isinstance(clip, CLIPModel)
    plain = tokens(tokenizer, [data.caption(k, False) for k in range(len(data.images))])
    styled = tokens(tokenizer, [data.caption(k, True) for k in range(len(data.images))])

    def loss(model: nn.Module, g: Generator) -> Tensor:
        pick = torch.randperm(len(data.images), generator=g)[: s.clip_batch]
        x = normalise(augment(data.images[pick].float() / 255, g, 1.3))
        x = x + 0.1 * torch.rand(len(x), 1, 1, 1, generator=g) * torch.randn(x.shape, generator=g)
        use_style = torch.rand(len(pick), generator=g) < 0.5
        ids = torch.where(use_style[:, None], styled[pick], plain[pick])
        out = model(input_ids=ids, pixel_values=x)
        name, style = data.name[pick], data.style[pick]
        # caption j fits image i when the names agree and j names no style or i's own
        fits = (name[:, None] == name[None]) & (~use_style[None] | (style[:, None] == style[None]))
        target = fits.float()
        rows = -(target / target.sum(1, keepdim=True) * out.logits_per_image.log_softmax(1)).sum(1)
        columns = -(target / target.sum(0, keepdim=True) * out.logits_per_image.log_softmax(0)).sum(0)
        return torch.as_tensor((rows.mean() + columns.mean()) / 2)

    fit("clip", clip, loss, work=work, seed=s.seed, steps=s.clip_steps, lr=1e-3, weight_decay=0.1)
    return clip


def text_tower(clip: CLIPModel) -> CLIPTextModel:
    """CLIP's text tower as the separate module that a StableDiffusionPipeline holds."""
    config = CLIPTextConfig(**clip.config.text_config.to_dict())
    tower = CLIPTextModel(config)
    state = {k: v for k, v in clip.state_dict().items() if k.startswith("text_model.")}
    own = tower.state_dict()
    tower.load_state_dict({k: state.get(k, state.get(f"text_model.{k}")) for k in own})
    return tower.eval().requires_grad_(False)


def scheduler() -> DDIMScheduler:
    """Stable Diffusion's schedule, with its shipped boundary (alphas_cumprod[0]) at the last step."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


def train_unet(
    s: Settings, data: EmojiSet, vae: AutoencoderKL, tower: CLIPTextModel, tokenizer: CLIPTokenizer, work: Path
) -> UNet2DConditionModel:
    """Noise prediction with min-SNR-5 weights (Hang et al. 2023) and 10 % empty captions."""
    unet = seeded(
        s.seed,
        "unet",
        lambda: UNet2DConditionModel(
            sample_size=8,
            block_out_channels=s.unet_blocks,
            layers_per_block=1,
            norm_num_groups=16,
            attention_head_dim=4,
            cross_attention_dim=128,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        ),
    )
    assert isinstance(unet, UNet2DConditionModel)
    unet.to(memory_format=torch.channels_last)
    g = generator_for(s.seed, "unet latents")
    latents = torch.stack(
        [encode_latents(vae, augment(data.images.float() / 255, g), g) for _ in range(s.latent_copies)]
    )  # [copies, N, 4, 8, 8]
    with torch.no_grad():
        embeds = [
            tower(tokens(tokenizer, [data.caption(k, styled) for k in range(len(data.images))])).last_hidden_state
            for styled in (False, True)
        ]
        empty = tower(tokens(tokenizer, [""])).last_hidden_state
    alphas = scheduler().alphas_cumprod
    captions = torch.stack([*embeds, empty.expand_as(embeds[0])])  # [3, N, 16, 128]

    def loss(model: nn.Module, g: Generator) -> Tensor:
        batch = s.unet_batch
        pick = torch.randint(latents.shape[1], (batch,), generator=g)
        x = latents[torch.randint(len(latents), (batch,), generator=g), pick]
        u = torch.rand(batch, generator=g)
        kind = torch.where(u < 0.1, 2, torch.where(u < 0.4, 1, 0))  # 10 % empty, 30 % styled, 60 % plain
        t = torch.randint(1000, (batch,), generator=g)
        a = alphas[t].view(-1, 1, 1, 1)
        noise = torch.randn(x.shape, generator=g)
        noisy = (a.sqrt() * x + (1 - a).sqrt() * noise).contiguous(memory_format=torch.channels_last)
        eps = model(noisy, t, captions[kind, pick]).sample
        snr = (a / (1 - a)).flatten()
        weight = snr.clamp(max=5) / snr
        return torch.as_tensor((weight * ((eps - noise) ** 2).flatten(1).mean(1)).mean())

    fit("unet", unet, loss, work=work, seed=s.seed, steps=s.unet_steps, lr=1.2e-3, ema=0.998)
    return unet


def save_pipeline(
    folder: Path, vae: AutoencoderKL, tower: CLIPTextModel, tokenizer: CLIPTokenizer, unet: UNet2DConditionModel,
    vocabulary: Path,
) -> None:  # fmt: skip
    """Write the folder that ``StableDiffusionPipeline.from_pretrained`` loads, in half precision.

    ``vocabulary`` is the folder that ``make_tokenizer`` wrote.
    """
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=tower,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.to(torch.float16).save_pretrained(folder, safe_serialization=True)
    for name in ("vocab.json", "merges.txt"):  # transformers 4 reads these, transformers 5 tokenizer.json
        shutil.copy(vocabulary / name, folder / "tokenizer" / name)
    # transformers would load the text encoder in the precision named here, the rest of the pipeline is float32
    config = folder / "text_encoder" / "config.json"
    config.write_text(
        json.dumps({**json.loads(config.read_text(encoding="utf-8")), "dtype": "float32"}, indent=2) + "\n",
        encoding="utf-8",
    )
    pipe.to(torch.float32)


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Per image, in dB, for images ``[B, 3, H, W]`` in [0, 1]: ``[B]``."""
    return -10 * (a - b).square().flatten(1).mean(1).clamp_min(1e-10).log() / math.log(10)
