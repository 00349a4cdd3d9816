import torch
from torch import nn

from flipscale.models.blocks import ResidualBlock
from flipscale.models.flip import build_model
from flipscale.models.presets import TowerSpec, preset


def test_a_block_is_torchs_pre_norm_encoder_layer() -> None:
    spec = TowerSpec(width=64, layers=1, heads=4, norm_eps=1e-5, gelu="none")
    torch.manual_seed(0)
    theirs = nn.TransformerEncoderLayer(
        64, 4, dim_feedforward=256, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.2)
    ours = ResidualBlock(spec, causal=False)
    names = {
        "self_attn": "attn",
        "linear1": "mlp.c_fc",
        "linear2": "mlp.c_proj",
        "norm1": "ln_1",
        "norm2": "ln_2",
    }
    renamed = {}
    for name, tensor in theirs.state_dict().items():
        first = name.split(".")[0]
        renamed[name.replace(first, names[first], 1)] = tensor
    ours.load_state_dict(renamed)
    x = torch.randn(3, 7, 64)
    assert (ours(x) - theirs(x)).abs().max() <= 1e-5

    causal = ResidualBlock(spec, causal=True)
    causal.load_state_dict(renamed)
    mask = nn.Transformer.generate_square_subsequent_mask(7)
    assert (causal(x) - theirs(x, src_mask=mask, is_causal=True)).abs().max() <= 1e-5


def test_flip_reads_in_both_directions_and_pools_the_first_token() -> None:
    model = build_model(preset("vit_micro_p8", vocab_size=100))
    texts = torch.arange(64).view(2, 32)
    changed = texts.clone()
    changed[:, -1] = 99  # padding, say: it is attended to like any token
    assert not torch.allclose(model.encode_text(texts), model.encode_text(changed), atol=1e-6)


def test_clip_reads_forwards_and_pools_the_end_of_text() -> None:
    model = build_model(preset("clip_micro_p8", vocab_size=100))
    texts = torch.arange(77).repeat(2, 1) % 50
    end = torch.tensor([5, 20])
    texts[torch.arange(2), end] = 99
    after, before = texts.clone(), texts.clone()
    after[:, 30:] = 3
    before[:, 2] = 60
    assert torch.allclose(model.encode_text(texts), model.encode_text(after), atol=1e-6)
    assert not torch.allclose(model.encode_text(texts), model.encode_text(before), atol=1e-6)
