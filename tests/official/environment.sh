#!/usr/bin/env bash
# Makes the environment in which dump_imagereward.py and dump_hpsv2.py run: environment.sh DIR
#
# DIR gets the two packages and the libraries of their time; torch, torchvision, numpy, pillow, safetensors and whatever
# else they import are the ones already installed, which DIR shadows: run with PYTHONPATH=DIR HF_HUB_OFFLINE=1, from an
# environment in which overopt-bench is installed. Nothing outside DIR changes.
set -euo pipefail
[ $# -eq 1 ] || { echo "usage: $0 DIR" >&2; exit 2; }

packages=(
    image-reward==1.5               # under test: ImageReward's own code
    hpsv2x==1.2.0                   # under test: module hpsv2; unlike the hpsv2 wheel it holds the BPE vocabulary
    transformers==4.55.4            # the last that re-exports what ImageReward's BERT imports (gone in 4.56)
    tokenizers==0.21.4              # transformers 4.55 asks for >= 0.21, < 0.22
    huggingface_hub==0.34.6         # transformers 4.55 asks for >= 0.34, < 1.0
    timm==0.6.13                    # pinned by image-reward; the module paths that it imports left later
    fairscale==0.4.13               # pinned by image-reward (checkpoint_wrapper, imported and not used)
    clint==0.5.1                    # imported by hpsv2 (progress bar)
    args==0.1.0                     # imported by clint
    ftfy==6.3.1                     # cleans prompts in hpsv2's tokenizer: a version can change token ids
    regex==2026.11.19               # splits words in hpsv2's tokenizer
    wcwidth==0.9.4                  # imported by ftfy
    tqdm==4.70.1                    # imported by transformers and huggingface_hub
    pyyaml==6.0.4                   # imported by transformers and huggingface_hub
    requests==2.34.2                # imported by transformers, huggingface_hub and hpsv2
    urllib3==2.8.0                  # imported by requests
    idna==3.20                      # imported by requests
    charset-normalizer==3.5.2       # imported by requests
    certifi==2026.10.19.post1       # imported by requests
)

# --no-deps: the pins above are the whole of it, and torch must not be replaced
python -m pip install --target "$1" --no-deps "${packages[@]}"
