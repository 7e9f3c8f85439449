"""The U-Nets and VAEs of the published models, for what must be known before anything is fetched."""

from __future__ import annotations

from overopt_bench.types import Architecture

_VAE = {
    "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4, "layers_per_block": 2, "latent_channels": 4,
}  # fmt: skip
ARCHITECTURES: dict[str, Architecture] = {
    "sd1": Architecture(
        {"block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64},
        _VAE,
        123_060_480,  # CLIP ViT-L/14
    ),
    "sdxl": Architecture(
        {
            "block_out_channels": [320, 640, 1280], "cross_attention_dim": 2048, "attention_head_dim": [5, 10, 20],
            "sample_size": 128, "transformer_layers_per_block": [1, 2, 10], "use_linear_projection": True,
            "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        },
        _VAE,
        123_060_480 + 694_659_840,  # and OpenCLIP ViT-bigG/14 with its projection
    ),
}  # fmt: skip
